"""One self-contained page from what a recorder kept. It asks the network for nothing, and runs no text as code.

Names and messages reach the page as JSON alone and are put there as text; a content security policy, with the
hash of the one script, forbids everything else.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.resources import files
from string import Template
from typing import Any

from gimli_core.step_through.page.static import cards, lines, symbols, table

__all__ = ["LIMIT", "page"]

LIMIT = 9_500_000  # bytes of a page
SCRIPTS = (
    "data.js",
    "symbols.js",
    "patch.js",
    "draw.js",
    "maths.js",
    "rules.js",
    "formula.js",
    "twin_losses.js",
    "twin_rules.js",
    "twin.js",
    "explore.js",
    "map.js",
    "step.js",
    "strip.js",
    "curve.js",
    "cards.js",
    "widgets.js",
    "quantities.js",
    "panels.js",
    "where_it_grows.js",
    "address.js",
    "printed.js",
    "main.js",
)
COMMENT = re.compile(r"(^|(?<=[;,{)]))\s*// .*$")  # a line's own, or one behind a finished part of it
STYLES = ("page.css", "stage.css", "cards.css", "print.css")


def page(data: Mapping[str, Any]) -> str:
    """The document. Where it would pass 9.5 MB the steps in between lose detail, every second one at a time."""
    text = to_json(_packed(data, 1))
    stride = 2
    while len(text.encode()) > LIMIT - 200_000 and stride <= 2 * data["steps"]:
        text = to_json(_packed(data, stride))
        stride *= 2
    script, style = _script(), _style()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    body = Template(_asset("body.html")).substitute(
        title=html.escape(data["title"]),
        summary=symbols(data["notes"].get("summary", "")),
        cards=cards(data["notes"].get("sections", ())),
        lines=lines(),
        table=table(data),
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        '<link rel="icon" href="data:,">\n'
        f"<title>{html.escape(data['title'])}</title>\n<style>\n{style}</style>\n</head>\n"
        f'{body}<script type="application/json" id="data">{text}</script>\n'
        f"<script>{script}</script>\n</body>\n</html>\n"
    )


def to_json(data: Mapping[str, Any]) -> str:
    """JSON that may stand inside a script element, whatever names it holds."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _packed(data: Mapping[str, Any], stride: int) -> dict[str, Any]:
    """`data` with lists in place of dicts keyed by step; only every `stride`-th step keeps its cells."""
    length, notes = data["steps"] + 1, data["notes"]
    kept = {j for j in range(length) if j % stride == 0 or j >= length - 2}
    return {
        **data,
        "notes": {**notes, "sections": [_placed(part) for part in notes.get("sections", ())]},
        "q": {
            name: {"norm": _row(q["norm"], range(length)), "cells": _row(q["cells"], range(length), kept)}
            for name, q in data["q"].items()
        },
        "follow": [
            {"label": one["label"], "q": {name: _row(values, range(length)) for name, values in one["q"].items()}}
            for one in ([] if stride == 1 and _shows_all(data) else data["follow"])
        ],
        **{key: [m if j in kept else None for j, m in enumerate(data[key])] for key in ("hessian", "jacobian")},
    }


def _placed(section: Mapping[str, Any]) -> dict[str, Any]:
    """A card without its text, which stands in the document itself."""
    return {key: x for key, x in section.items() if key not in ("text", "why")}


def _shows_all(data: Mapping[str, Any]) -> bool:
    """Whether every entry of theta stands on the page, so that the followed ones need not stand there twice."""
    by_step = data["q"].get("theta", {"cells": {}})["cells"].values()
    return bool(by_step) and all(cells and all(cell.get("v") for cell in cells) for cells in by_step)


def _row(by_step: Mapping[int, Any], steps: Iterable[int], kept: set[int] | None = None) -> list[Any]:
    return [by_step.get(j) if kept is None or j in kept else None for j in steps]


@cache
def _script() -> str:
    """One function of all the files; their comments and indents stay at home."""
    lines = (COMMENT.sub("", line).strip() for name in SCRIPTS for line in _asset(name).splitlines())
    return '"use strict";\n(() => {\n' + "\n".join(x for x in lines if x) + "\n})();\n"


@cache
def _style() -> str:
    return "\n".join(re.sub(r"/\*.*?\*/\n?|^ +", "", _asset(name), flags=re.M | re.S) for name in STYLES)


def _asset(name: str) -> str:
    return (files("gimli_core.step_through.page") / "assets" / name).read_text(encoding="utf-8")
