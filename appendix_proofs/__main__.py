"""Run every proof and print what was proved: `python -m appendix_proofs`."""

import importlib
import time

from appendix_proofs import PROOFS


def main() -> None:
    """Print each module's statements, numbered, and the time that the proofs took."""
    started = time.perf_counter()
    count = 0
    for name in PROOFS:
        statements = importlib.import_module(f"appendix_proofs.{name}").prove()
        print(f"\n{name}")
        for number, statement in enumerate(statements, 1):
            print(f"  {number:3}  {statement}")
        count += len(statements)
    print(f"\n{count} statements proved in {time.perf_counter() - started:.0f} s.")


if __name__ == "__main__":
    main()
