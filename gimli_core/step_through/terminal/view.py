"""What the terminal shows, as lines of text for a given width; nothing is read or written here."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Mapping, Sequence
from textwrap import wrap
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gimli_core.errors import printable
from gimli_core.notation import slots
from gimli_core.step_through.lessons.lesson import Lesson
from gimli_core.step_through.page.algorithm import LINES, MEANING
from gimli_core.step_through.terminal.stepper import Stepper
from gimli_core.trees import KeyPath, folded, leaves

__all__ = ["Style", "exact_text", "introduction", "row", "screen", "sparkline", "tensor_text", "value_text"]

SYMBOLS = {
    "theta": "θ",
    "curvature": "V·∇²ℓ",
    "direct": "through opt",
    "loss": "loss",
    "dA_opt": "A_opt +=",
    "dA_loss": "A_loss +=",
}
ASCII = str.maketrans(
    {
        "θ": "theta",
        "φ": "phi",
        "ℓ": "l",
        "∇": "D",
        "∂": "d",
        "←": "<-",
        "·": "*",
        "‖": "|",
        "…": "...",
        "−": "-",
        "▶": ">",
    }
    | {"│": "|", "₀": "0", "₊": "+", "₁": "1", "²": "^2", "─": "-", "×": "x", "µ": "u"}
)
BLOCKS = "▁▂▃▄▅▆▇█"


class Style:
    """Colours where they are wanted, and plain ASCII where the encoding has nothing else."""

    def __init__(self, colour: bool, unicode: bool = True) -> None:
        self.colour, self.unicode = colour, unicode

    def __call__(self, code: str, text: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self.colour and text else text

    def plain(self, text: str) -> str:
        """`text` in what the terminal can print."""
        return text if self.unicode else text.translate(ASCII).encode("ascii", "replace").decode()


def introduction(lesson: Lesson) -> list[str]:
    """A lesson's title, what it is about, and the question that it asks."""
    return [lesson.title, lesson.summary, lesson.sections[0]["heading"]]


def section_of(lesson: Lesson, line: int, j: int) -> Mapping[str, Any] | None:
    """The section of the text that belongs to a moment: the one with a place on its line, nearest to its step, and of
    several the last, which builds on those before. The section that only the page can show is left out."""
    near = [
        (abs(step - j), -number)
        for number, part in enumerate(lesson.sections)
        for _, at, step in part["go"]
        if at == line and part["kind"] != "say"
    ]
    return lesson.sections[-min(near)[1]] if near else None


def screen(
    stepper: Stepper,
    width: int,
    style: Style,
    followed: Sequence[tuple[str, int, str]] = (),
    lesson: Lesson | None = None,
) -> list[str]:
    """The algorithm with its current line marked, the values beside it (below, where it is narrow), the watches; of a
    lesson its title and the section of the moment too."""
    beside, column = width >= 92, 56 if width >= 108 else 48
    values = _values(stepper, style, width - column - 3 if beside else width)
    algorithm = _algorithm(stepper.here.line, style, column if beside else width)
    head = _header(stepper, style, width)
    if beside:
        rows = max(len(algorithm), len(values))
        algorithm += [" " * column] * (rows - len(algorithm))
        values += [""] * (rows - len(values))
        body = [f"{a} {style('2', '│')} {v}" for a, v in zip(algorithm, values, strict=True)]
    else:
        body = [*algorithm, style("2", "─" * width), *values]
    tail = []
    for text in stepper.watches:
        try:
            actual = value_text(stepper.evaluate(text))
        except ValueError:
            actual = "not there yet"
        tail.append(f"{style('36', 'watch')} {printable(text)} = {printable(actual)}")
    for name, index, label in followed:
        for quantity, by_step in stepper.series(name, index).items():
            line = sparkline(list(by_step.values())) if style.unicode else ""
            latest = next(reversed(by_step.values()))
            tail.append(
                f"{style('36', 'follow')} {SYMBOLS.get(quantity, quantity)} of {printable(label)} = {latest:.10g}  "
                f"{line[-max(8, width - 44) :]}"
            )
    told = _lesson(lesson, stepper.here.line, stepper.here.j, style, width) if lesson else []
    lines = [*head, *body, *([style("2", "─" * width), *tail] if tail else []), *told]
    return [_cut(style.plain(line), width) for line in lines]


def row(stepper: Stepper, style: Style, width: int) -> str:
    """One line of text for one moment: what a listing is made of."""
    here = stepper.here
    again = " replay" if here.replay else ""
    parts = "  ".join(f"‖{SYMBOLS.get(k, k).removesuffix(' +=')}‖ {v:.6g}" for k, v in here.norms.items())
    return _cut(style.plain(f"line {here.line:2}  step {here.j:3}{again}  {parts}"), width)


def value_text(value: Any) -> str:
    """A watched value on one line."""
    if isinstance(value, Tensor):
        return f"{value.item():.10g}" if value.numel() == 1 else tensor_text(value, 100)
    if isinstance(value, float):
        return f"{value:.10g}"
    return str(value)


def tensor_text(t: Tensor, width: int, most: int = 6) -> str:
    """A small tensor's numbers, a large one's norm, range and shape."""
    if t.numel() <= most:
        return " ".join(f"{x:+.6g}" for x in t.reshape(-1).tolist()) if t.ndim else f"{t.item():+.8g}"
    t = t if t.is_floating_point() else t.double()
    norm = float(torch.linalg.vector_norm(t, dtype=torch.float64))
    return f"norm {norm:.6g} in [{t.min().item():.3g}, {t.max().item():.3g}] {'×'.join(map(str, t.shape))}"


def exact_text(value: Any) -> str:
    """A value with every entry to its last digit: the shortest number that reads back as the same."""
    return str(folded(value, lambda _, leaf: _exact_leaf(leaf), _exact_node))


def _exact_leaf(leaf: Any) -> str:
    if not isinstance(leaf, Tensor):
        return repr(leaf)
    t = leaf.detach().cpu()
    t = t.float() if t.dtype in (torch.bfloat16, torch.float16) else t
    return np.array2string(t.numpy(), threshold=sys.maxsize, floatmode="unique", separator=", ")


def _exact_node(path: KeyPath, tree: Any, texts: dict[Any, str]) -> str:
    named = isinstance(tree, Mapping)
    return "\n".join(f"{printable(str(key))}:\n{text}" if named else text for key, text in texts.items())


def sparkline(values: Sequence[float]) -> str:
    """Values as a row of blocks, from their lowest to their highest."""
    finite = [v for v in values if math.isfinite(v)]
    if not finite:
        return ""
    low, span = min(finite), max(finite) - min(finite)
    return "".join(BLOCKS[round((v - low) / span * 7) if span else 3] if math.isfinite(v) else "!" for v in values)


def _header(stepper: Stepper, style: Style, width: int) -> list[str]:
    here, J = stepper.here, stepper.walk.inputs.form.steps
    direction = "the end" if here.line == 16 else "backward" if here.backward else "forward"
    colour = "35" if here.backward else "32"
    again = style("33", "  replay") if here.replay else ""
    title = f"line {here.line}  step {here.j} of {J}  {style(colour, direction)}{again}"
    last = len(stepper.passed) - 1
    where = f"moment {here.number + 1}" + (f" (back from {last + 1})" if here.number < last else "")
    lines = [style("1", title), style("2", f"{where}  {here.seconds * 1e6:.0f} µs  {here.bytes:,} bytes computed")]
    changed = stepper.walk.interventions
    if changed:
        lines += [
            style("33", text)
            for text in wrap(f"after interventions, not the exact meta-gradient: {'; '.join(map(str, changed))}", width)
        ]
    return [*lines, style("2", "─" * width)]


def _lesson(lesson: Lesson, line: int, j: int, style: Style, width: int) -> list[str]:
    part = section_of(lesson, line, j)
    lines = [style("2", "─" * width), *(style("2", text) for text in wrap(style.plain(lesson.title), width))]
    if part is None:
        return lines
    heading = (style("1", text) for text in wrap(style.plain(part["heading"]), width))
    return [*lines, *heading, *wrap(style.plain(part["text"]), width)]


def _algorithm(current: int, style: Style, width: int) -> list[str]:
    lines = []
    for number, indent, formula in LINES:
        mark = f"{'▶' if number == current else ' '}{number:3} {'  ' * indent}"
        hanging = " " * (len(mark) + 2)
        for text in wrap(style.plain(mark + formula), width, subsequent_indent=hanging):
            padded = text.ljust(min(width, 56))
            lines.append(style("1;33", padded) if number == current else padded)
    return lines


def _values(stepper: Stepper, style: Style, width: int) -> list[str]:
    here = stepper.here
    lines = wrap(MEANING.get(here.line, ""), max(width, 20))
    for name in here.fresh:
        symbol = SYMBOLS.get(name, name)
        index = here.j + 1 if here.line == 6 else here.j
        indexed = f"{symbol}_{index}" if name in ("theta", "s", "G", "V", "B", "S") else symbol
        lines.append(style("1;36", indexed) + style("2", f"  norm {here.norms[name]:.8g}"))
        if here.names is None:
            lines.append("  (its tensors were let go; the norm is kept)")
            continue
        tree = slots(here.names[name]) if name == "s" else here.names[name]
        lines += [f"  {text}" for text in _leaves(tree, width - 2)]
    if here.names is not None and "growth" in here.names:
        step = style("2", f"  ‖B_{here.j}‖ / ‖B_{here.j + 1}‖")
        lines.append(style("1;36", "growth") + step + f" = {here.names['growth']:.6g}")
    return lines


def _leaves(tree: Any, width: int) -> list[str]:
    named = [(printable(".".join(map(str, path))), tensor_text(t, width)) for path, t in leaves(tree)]
    lines = [f"{name:14} {text}" if name else text for name, text in named]
    return lines if len(lines) <= 12 else [*lines[:12], f"… and {len(lines) - 12} more (print NAME shows all)"]


def _cut(line: str, width: int) -> str:
    """`line` cut to `width` columns, escape sequences not counted."""
    out, used = [], 0
    for part in re.split(r"(\x1b\[[0-9;]*m)", line):
        if part.startswith("\x1b"):
            out.append(part)
        else:
            out.append(part[: max(0, width - used)])
            used += len(part)
    return "".join(out)
