"""The `gimli` command: one table of subcommands, one place where errors become exit codes.

A subcommand is a module with `add_arguments(parser)` and `run(arguments) -> exit code`.
Only the module that is asked for is imported, so an optional package is needed only by the
subcommand that uses it.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from typing import NamedTuple, NoReturn

from gimli_core.errors import GimliError, printable

__all__ = ["main"]


class _Command(NamedTuple):
    module: str
    extra: str  # of setup.cfg, that brings the packages which the module needs
    summary: str


COMMANDS = {
    "demo": _Command("gimli_core.commands.demo", "demo", "learn a small network's hyperparameters on real data"),
    "step": _Command("gimli_core.commands.step", "figures", "walk through Algorithm 1 in the terminal"),
    "trace": _Command("gimli_core.commands.trace", "figures", "write a run as one self-contained page"),
    "plan": _Command("gimli_core.commands.plan", "demo", "what each memory schedule would cost, in bytes and seconds"),
    "learn-optimizer": _Command(
        "gimli_core.commands.learn_optimizer", "demo", "train an optimizer that is a network, beside a tuned Adam"
    ),
    "attribute": _Command(
        "gimli_core.commands.attribute", "demo", "which training examples helped and hurt which test examples"
    ),
    "few-shot": _Command("gimli_core.commands.few_shot", "few_shot", "train a few-shot method, beside its paper"),
    "verify": _Command("gimli_core.commands.verify", "verify", "check meta-gradients against every oracle"),
}

FAILED, INTERRUPTED, CUT_OFF = 2, 130, 141  # the latter two as a shell reports SIGINT and SIGPIPE
UNWRITTEN = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)  # of standard output on a full disk


def main(argv: Sequence[str] | None = None) -> int:
    """Run `gimli` with `argv` and return its exit code.

    0 done, 1 a check disagreed, 2 bad input or a failure (one line on stderr), 130 interrupted, 141 nobody reads on.
    `--help`, `--version` and usage errors leave through `SystemExit`, as argparse does. A fault of this package's
    own shows its traceback too, and is a 2: a 1 would say that a check disagreed.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    try:
        arguments = _parser(argv).parse_args(argv)
        command = importlib.import_module(COMMANDS[arguments.command].module)
        try:
            with _no_quiet_end():
                code = int(command.run(arguments))
        except SystemExit as left:
            # A command returns its code, so this came from code that it ran: nothing of its work is certain.
            return _complain(f"expected code that runs through; got sys.exit({left.code!r}). The run did not end.")
        sys.stdout.flush()
        return code
    except GimliError as error:
        return _complain(str(error))
    except ModuleNotFoundError as error:
        if (error.name or "gimli_core").startswith("gimli_core"):
            return _refusal(error)
        extra = next((COMMANDS[name].extra for name in argv if name in COMMANDS), "demo")
        return _complain(f"the package {error.name!r} is missing. Install it with pip install 'gimli_core[{extra}]'.")
    except KeyboardInterrupt:
        print("gimli: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader (`| head`, say) has what it wants; keep the interpreter's last flush quiet too.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return CUT_OFF
    except OSError as error:
        if error.errno not in UNWRITTEN or error.filename is not None:
            return _refusal(error)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _complain(f"the output could not be written: {error.strerror}. Nothing of it is certain to be there.")
    except Exception as error:
        return _refusal(error)


def _parser(argv: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="gimli", description="Exact meta-gradients, shown and verified.")
    parser.add_argument("--version", action="version", version=f"gimli_core {version('gimli_core')}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        summary = command.summary
        subparser = subparsers.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.")
        if name in argv:
            importlib.import_module(command.module).add_arguments(subparser)
    return parser


@contextmanager
def _no_quiet_end() -> Iterator[None]:
    """`os._exit` in code that a command runs, in any thread, would end it with a code of its own and without a word. A
    fork may leave as it likes.
    """
    leave, process = os._exit, os.getpid()

    def told(code: int) -> NoReturn:
        if os.getpid() == process:
            code = _complain(f"expected code that runs through; got os._exit({code!r}). The run did not end.")
            sys.stderr.flush()
        leave(code)

    setattr(os, "_exit", told)  # noqa: B010 - a function of a module is no variable to mypy
    try:
        yield
    finally:
        setattr(os, "_exit", leave)  # noqa: B010


def _complain(message: str) -> int:
    print(printable(f"gimli: {' '.join(message.split())}"), file=sys.stderr)
    return FAILED


def _refusal(error: Exception) -> int:
    traceback.print_exception(error)
    return _complain(f"a fault of gimli_core's own: {type(error).__name__}: {error}. Please report it.")
