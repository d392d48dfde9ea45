"""A session in the terminal: typed commands, carried out on a stepper and drawn."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from gimli_core.errors import ArgumentError, GimliError, closest, first_line, printable, unexpected
from gimli_core.step_through.page.entries import entry
from gimli_core.step_through.terminal.expressions import assignment, entry_of
from gimli_core.step_through.terminal.stepper import Stepper
from gimli_core.step_through.terminal.view import Style, row, screen, value_text
from gimli_core.trees import cloned, tensors

__all__ = ["HELP", "Session", "typed"]

HELP = """\
next [N]       n   one line on, or N lines          back [N]      b   one line back, or N lines
line N             to the next time on line N       step J            to step J
run            r   on to a breakpoint or the end    end               to the end
print NAME     p   a quantity or an expression      follow NAME[I]    one scalar parameter through the run
watch EXPR         show it at every moment          unwatch           forget all watches and followed entries
break line N       stop there; also: break step J, break norm(B) > 1e3, break not finite(B)
breaks             list breakpoints                 clear             forget all breakpoints
change NAME[ENTRY] = VALUE   intervene: change G['w'][0] = 0.5     change V = 0
result             the meta-gradient, at the end    help              this text      quit   q
Names: theta s G V B S direct curvature A_opt A_loss dA_opt dA_loss loss line j, and norm(), finite(), largest()."""


class Session:
    """What the commands do."""

    def __init__(self, stepper: Stepper, style: Style) -> None:
        self.stepper, self.style = stepper, style
        self.followed: list[tuple[str, int, str]] = []

    def obey(self, text: str) -> bool:
        """Carry out one command; False to quit."""
        word, _, rest = text.partition(" ")
        word = {
            "": "next",
            "n": "next",
            "b": "back",
            "p": "print",
            "r": "run",
            "c": "run",
            "q": "quit",
            "h": "help",
            "?": "help",
        }.get(word, word)
        if word in ("quit", "exit"):
            return False
        try:
            if word not in COMMANDS:
                raise ArgumentError(f"{word!r} is no command.{closest(word, COMMANDS)} help lists them.")
            COMMANDS[word](self, rest.strip())
        except BrokenPipeError:
            raise  # nobody reads on
        except GimliError as error:
            self.say(str(error))
        except Exception as error:  # whatever was typed, the session and all that has run stay
            self.say(f"{text!r} could not be carried out: {first_line(error)}. help lists the commands.")
        return True

    def show(self) -> None:
        """Draw the moment under the cursor."""
        lines = screen(self.stepper, _width(), self.style, self.followed)
        print(("\x1b[H\x1b[2J" if self.style.colour else "") + "\n".join(lines), flush=True)

    def say(self, text: str) -> None:
        print(self.style.plain(printable(text)), flush=True)

    def complain(self) -> None:
        """Why there is no next line."""
        stepper = self.stepper
        if stepper.error is not None:
            self.say(f"The run ended here: {type(stepper.error).__name__}: {stepper.error}")
        else:
            self.say("This is the end of the run. back goes back; result shows the meta-gradient.")

    def moved(self, arrived: bool) -> None:
        if self.stepper.passed:
            self.show()
        if not arrived:
            self.complain()

    def next(self, rest: str) -> None:
        self.moved(all(self.stepper.next() for _ in range(_number(rest or "1"))))

    def back(self, rest: str) -> None:
        self.stepper.back(_number(rest or "1"))
        self.moved(True)

    def line(self, rest: str) -> None:
        self._to(line=_number(rest))

    def step(self, rest: str) -> None:
        self._to(step=_number(rest))

    def _to(self, **where: int) -> None:
        if self.stepper.to(**where):
            self.show()
        else:
            ((kind, value),) = where.items()
            self.say(
                f"This run does not come to {kind} {value}."
                + (" It ended with an error." if self.stepper.error else "")
            )

    def run(self, rest: str) -> None:
        stopped = self.stepper.run()
        self.moved(stopped is not None)
        if stopped is not None:
            self.say(f"Stopped at the breakpoint: {stopped}")

    def end(self, rest: str) -> None:
        self.stepper.until(lambda kept: False)
        self.moved(self.stepper.error is None)

    def print(self, rest: str) -> None:
        value = self.stepper.evaluate(rest or "line")
        self.say(
            f"{rest or 'line'} = {value_text(value)}"
            if not isinstance(value, (dict, list, tuple))
            else f"{rest} =\n{value}"
        )

    def follow(self, rest: str) -> None:
        self.followed.append((*entry(rest, self.stepper.walk.inputs.values.theta_0), rest))
        if self.stepper.passed:
            self.show()

    def watch(self, rest: str) -> None:
        self.stepper.add_watch(rest)
        self.show()

    def unwatch(self, rest: str) -> None:
        self.stepper.watches.clear()
        self.followed.clear()
        self.show()

    def add_break(self, rest: str) -> None:
        self.stepper.add_break(rest)
        self.say(f"Breakpoint: {rest}. run goes on to it.")

    def list_breaks(self, rest: str) -> None:
        self.say("\n".join(self.stepper.breaks) or "No breakpoints.")

    def clear(self, rest: str) -> None:
        self.stepper.breaks.clear()
        self.say("No breakpoints.")

    def change(self, rest: str) -> None:
        """change NAME[KEY]…[i] = EXPR: a copy of the quantity with that entry changed, or all its entries."""
        name, keys, value = assignment(rest, self.stepper.known())
        old = self.stepper.evaluate(name)
        if not any(True for _ in tensors(old)):
            do = "A value is changed at the line that computes it."
            raise unexpected(f"change {rest!r}", "a quantity of tensors", f"{name!r}", do)
        copied = cloned(old)
        try:
            _fill(copied, keys, value)
        except (IndexError, RuntimeError, TypeError, ValueError) as error:
            do = "Give a number, or a tensor of the entry's shape."
            raise unexpected(f"change {rest!r}", "a value that fits", first_line(error), do) from None
        self.stepper.change(name, copied)
        self.show()

    def result(self, rest: str) -> None:
        result = self.stepper.walk.result
        self.say(f"{result}\nA_opt = {result.A_opt}\nA_loss = {result.A_loss}\nB_0 = {result.B_0}")

    def help(self, rest: str) -> None:
        self.say(HELP)

    def list_all(self) -> int:
        """One line a moment, for a file or a pipe."""
        width = 10_000
        while self.stepper.next():
            print(row(self.stepper, self.style, width))
            for text in self.stepper.watches:
                try:
                    self.say(f"    {text} = {value_text(self.stepper.evaluate(text))}")
                except ArgumentError:
                    continue
        if self.stepper.error is not None:
            self.complain()
            return 2
        self.say(repr(self.stepper.walk.result))
        return 0


COMMANDS: dict[str, Callable[[Session, str], None]] = {
    "next": Session.next,
    "back": Session.back,
    "line": Session.line,
    "step": Session.step,
    "run": Session.run,
    "end": Session.end,
    "print": Session.print,
    "follow": Session.follow,
    "watch": Session.watch,
    "unwatch": Session.unwatch,
    "break": Session.add_break,
    "breaks": Session.list_breaks,
    "clear": Session.clear,
    "change": Session.change,
    "result": Session.result,
    "help": Session.help,
}


def _fill(tree: Any, keys: Sequence[Any], value: Any) -> None:
    """Put `value` at `keys` in a tree of tensors: keys of mappings first, then indices into each tensor."""
    if isinstance(tree, Mapping) and keys:
        _fill(entry_of(tree, keys[0]), keys[1:], value)
        return
    for t in tensors(tree):
        place = t
        for key in keys:  # each gives a view, which is written through
            place = entry_of(place, key)
        place.copy_(torch.as_tensor(value, dtype=t.dtype, device=t.device))


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise unexpected("command", "a whole number", repr(text), "For example: line 14.")
    return int(text)


def typed(style: Style) -> Iterator[str]:
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 - history and editing, where the system has it
    while True:
        try:
            yield input("gimli> ")
        except EOFError:
            print()
            return


def _width() -> int:
    return max(20, shutil.get_terminal_size((100, 30)).columns)
