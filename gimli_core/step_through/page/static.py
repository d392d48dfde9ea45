"""The part of a page that stands without its script, and is printed: the lesson's text, the lines, a table of steps."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from typing import Any

from gimli_core.step_through.page.algorithm import LINES, MEANING

__all__ = ["cards", "lines", "symbols", "table"]

MOST_ROWS = 60
INDEXED = re.compile(r"(?<!\w)(d?[^\W\d_])_([^\W_]+)(₊₁)?(?!\w)")  # as the page's script finds them


def cards(sections: Sequence[Mapping[str, Any]]) -> str:
    """The lesson's cards, one article each."""
    return "\n".join(
        f'<article class="page-card" id="card{n}" data-kind="{_text(part["kind"])}">'
        f'<h2 tabindex="-1">{symbols(part["heading"])}</h2>\n<p class="words">{symbols(part["text"])}</p>'
        f"{_why(part.get('why'))}\n</article>"
        for n, part in enumerate(sections, start=1)
    )


def lines() -> str:
    """Algorithm 1 as a list, with what its lines mean."""
    return "\n".join(
        f'<li data-line="{number}"><span class="no">{number}</span><span class="{"in" if indent else "out"}">'
        f"{symbols(text)}</span>{f' <small>{symbols(MEANING[number])}</small>' if number in MEANING else ''}</li>"
        for number, indent, text in LINES
    )


def table(data: Mapping[str, Any]) -> str:
    """A row a step: its loss, ‖B_j‖ and what it added to each meta-gradient that is one number."""
    J, leaves = data["steps"], [leaf for leaf in data["A"] if leaf["shape"] == []][:4]
    norms = data["q"].get("B", {"norm": {}})["norm"]
    head = ["step j", "loss ℓ_j", "‖B_j‖", *(f"step j's term of A, {leaf['label']}" for leaf in leaves)]
    stride = max(1, -(-(J + 1) // MOST_ROWS))
    rows = [
        [
            j,
            data["loss"][j] if j < len(data["loss"]) else None,
            norms.get(j),
            *((leaf["inc"][j] or {}).get("v", [None])[0] if j < J else None for leaf in leaves),
        ]
        for j in sorted({*range(0, J + 1, stride), J})
    ]
    sums = ["all", None, None, *((leaf.get("final") or {}).get("v", [None])[0] for leaf in leaves)]
    body = "\n".join(f"<tr>{''.join(f'<td>{_number(x)}</td>' for x in row)}</tr>" for row in [*rows, sums])
    heads = "".join(f"<th scope=col>{symbols(text)}</th>" for text in head)
    return f"<table><thead><tr>{heads}</tr></thead><tbody>\n{body}\n</tbody></table>"


def symbols(text: str) -> str:
    """`text` as HTML, its indices set below the line: `B_j₊₁` becomes B<sub>j+1</sub>."""
    return INDEXED.sub(lambda m: f"{m[1]}<sub>{m[2]}{'+1' if m[3] else ''}</sub>", _text(text))


def _why(why: Sequence[str] | None) -> str:
    if not why:
        return ""
    question, answer = why
    return (
        f'\n<details class="why"><summary>{symbols(question)}</summary><p class="words">{symbols(answer)}</p></details>'
    )


def _text(text: str) -> str:
    return html.escape(text, quote=True)


def _number(x: Any) -> str:
    return "" if x is None else str(x) if isinstance(x, int) else _text(x) if isinstance(x, str) else f"{x:.6g}"
