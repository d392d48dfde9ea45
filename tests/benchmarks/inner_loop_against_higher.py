"""The example written for `higher`, run with either library: accuracy, time and peak memory.

    python -m tests.benchmarks.inner_loop_against_higher [--repeats 3] [--optimizer SGD Adam] [options of the example]

Runs examples/maml_omniglot_as_for_higher.py as it is, and with its import line put back to `import higher`, in turn
(A B A B …), each in a process of its own. The peak is resident memory above what the process held before
training. `--optimizer Adam` puts Adam into the inner loop of both, where `higher` follows an older formula.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
import warnings
from pathlib import Path

import torch

from tests.benchmarks.history import Run, add_history, noted
from tests.benchmarks.measure import MIB, in_fresh_process, median_ratio, peak_above_base, ratios

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "maml_omniglot_as_for_higher.py"
OURS = "import gimli_core.inner_loop as higher\n"
SGD = "optim.SGD(net.parameters(), lr=1e-1)"
INNER = {"SGD": SGD, "Adam": "optim.Adam(net.parameters(), lr=1e-2)"}
LIBRARIES = ("gimli_core", "higher")


def once(library: str, optimizer: str, options: list[str]) -> None:
    """Run the script here; its own lines, then its seconds and its peak in bytes, on standard output."""
    source = SCRIPT.read_text()
    assert source.count(OURS) == 1
    assert source.count(SGD) == 2
    source = source.replace(SGD, INNER[optimizer])
    if library == "higher":
        source = source.replace(OURS, "import higher\n")
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    namespace: dict[str, object] = {"__name__": "script", "__file__": str(SCRIPT)}
    exec(compile(source, str(SCRIPT), "exec"), namespace)
    sys.argv = [SCRIPT.name, *options]
    start = time.perf_counter()
    peak = peak_above_base(lambda: namespace["main"])  # type: ignore[arg-type,return-value]
    print(time.perf_counter() - start)
    print(peak)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--optimizer", nargs="+", choices=INNER, default=list(INNER))
    parser.add_argument("--once", choices=LIBRARIES, help="run with this library only, here")
    add_history(parser)
    arguments, options = parser.parse_known_args()
    if arguments.once:
        once(arguments.once, arguments.optimizer[0], options)
        return
    with noted("inner_loop_against_higher", arguments) as run:
        compare(run, arguments.optimizer, arguments.repeats, options)


def compare(run: Run, optimizers: list[str], repeats: int, options: list[str]) -> None:
    """Both libraries in turn, with each of the inner optimizers."""
    for optimizer in optimizers:
        seconds: dict[str, list[float]] = {library: [] for library in LIBRARIES}
        peaks: dict[str, list[float]] = {library: [] for library in LIBRARIES}
        for _ in range(repeats):
            for library in LIBRARIES:
                flags = ("--once", library, "--optimizer", optimizer, *options)
                *said, wall, peak = in_fresh_process("tests.benchmarks.inner_loop_against_higher", *flags).splitlines()
                if not seconds[library]:
                    print(f"inner {optimizer}, {library}:", *said, sep="\n    ")
                seconds[library].append(float(wall))
                peaks[library].append(float(peak))
        for library in LIBRARIES:
            wall, memory = statistics.median(seconds[library]), statistics.median(peaks[library]) / MIB
            print(f"{library:12}{wall:8.2f} s{memory:10.0f} MiB")
            run.note(f"{optimizer}/{library}/time", seconds[library], "s")
            run.note(f"{optimizer}/{library}/peak", peaks[library], "bytes")
        for name, taken in (("time", seconds), ("peak", peaks)):
            run.note(f"{optimizer}/{name} ratio", ratios(taken["gimli_core"], taken["higher"]), "ratio")
        both = [median_ratio(taken["gimli_core"], taken["higher"]) for taken in (seconds, peaks)]
        print(f"ratio       {both[0]:8.2f}  {both[1]:10.2f}\n", flush=True)


if __name__ == "__main__":
    main()
