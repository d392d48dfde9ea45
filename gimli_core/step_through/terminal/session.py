"""A session in the terminal: typed commands, carried out on a stepper and drawn."""

from __future__ import annotations

import contextlib
import math
import shutil
from collections.abc import Callable, Iterator

from torch import Tensor

from gimli_core.errors import ArgumentError, GimliError, closest, first_line, printable, unexpected
from gimli_core.layout import cloned
from gimli_core.step_through.lessons.lesson import Lesson
from gimli_core.step_through.page.entries import entry
from gimli_core.step_through.terminal.expressions import assignment
from gimli_core.step_through.terminal.help_text import HELP
from gimli_core.step_through.terminal.places import at, fill
from gimli_core.step_through.terminal.stepper import Stepper
from gimli_core.step_through.terminal.view import Style, exact_text, introduction, row, screen, value_text
from gimli_core.trees import tensors

__all__ = ["Session", "typed"]

LONGEST = 1000  # characters of a command, which answers repeat
SHORT = {"n": "next", "b": "back", "p": "print", "r": "run", "c": "run", "q": "quit", "h": "help", "?": "help"}


class Session:
    """What the commands do."""

    def __init__(self, stepper: Stepper, style: Style, lesson: Lesson | None = None) -> None:
        self.stepper, self.style, self.lesson = stepper, style, lesson
        self.followed: list[tuple[str, int, str]] = []

    def obey(self, text: str) -> bool:
        """Carry out one command; False to quit."""
        word, _, rest = text.partition(" ")
        word = SHORT.get(word, word or "next")
        if word in ("quit", "exit"):
            return False
        try:
            if len(text) > LONGEST:
                do = "Type less, or set the values in Python."
                raise unexpected("a command", f"at most {LONGEST} characters", f"{len(text)}", do)
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
        if not self.stepper.passed:
            self.complain()
            return
        lines = screen(self.stepper, _width(), self.style, self.followed, self.lesson)
        print(("\x1b[H\x1b[2J" if self.style.colour else "") + "\n".join(lines), flush=True)

    def say(self, text: str) -> None:
        print(self.style.plain(printable(text)), flush=True)

    def complain(self) -> None:
        """Why there is no next line."""
        stepper = self.stepper
        if stepper.error is not None:
            self.say(f"The run ended here: {type(stepper.error).__name__}: {stepper.error}")
        elif not stepper.passed:
            self.say("No line has run yet. next runs the first.")
        else:
            self.say("This is the end of the run. back goes back; result shows the meta-gradient.")

    def moved(self, arrived: bool) -> None:
        if self.stepper.passed:
            self.show()
        if not (arrived and self.stepper.passed):
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
        name, keys, value = assignment(rest, self.stepper.quantities())
        old, before = self.stepper.evaluate(name), self.stepper.here.norms.get(name, math.nan)
        if not any(True for _ in tensors(old)):
            do = "A value is changed at the line that computes it."
            raise unexpected(f"change {rest!r}", "a quantity of tensors", f"{name!r}", do)
        copied = cloned(old)
        try:
            fill(copied, keys, value)
        except (IndexError, OverflowError, RuntimeError, TypeError, ValueError) as error:
            do = "Give a number, or a tensor of the entry's shape."
            raise unexpected(f"change {rest!r}", "a value that fits", first_line(error), do) from None
        self.stepper.change(name, copied)
        self.show()
        was, now = (at(tree, keys) for tree in (old, copied))
        if isinstance(was, Tensor) and was.numel() == 1:
            place = name + "".join(f"[{key!r}]" for key in keys)
            self.say(f"{place}: {exact_text(was.reshape(()))} → {exact_text(now.reshape(()))}")
        else:
            self.say(f"norm of {name}: {before:.10g} → {self.stepper.here.norms[name]:.10g}")

    def result(self, rest: str) -> None:
        result = self.stepper.walk.result
        self.say(f"{result}\nA_opt = {result.A_opt}\nA_loss = {result.A_loss}\nB_0 = {result.B_0}")

    def exact(self, rest: str) -> None:
        """All digits of an expression, or of the result."""
        if rest == "result":
            result = self.stepper.walk.result
            for name in ("A_opt", "A_loss", "B_0", "S_0"):
                self.say(f"{name} =\n{exact_text(getattr(result, name))}")
        else:
            self.say(f"{rest} =\n{exact_text(self.stepper.evaluate(rest))}")

    def introduce(self) -> None:
        """The lesson's title, what it is about, and its question."""
        if self.lesson is not None:
            self.say("\n".join(introduction(self.lesson)))

    def help(self, rest: str) -> None:
        self.say(HELP)

    def list_all(self) -> int:
        """One line a moment, for a file or a pipe."""
        width = 10_000
        self.introduce()
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
    "exact": Session.exact,
    "result": Session.result,
    "help": Session.help,
}


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
