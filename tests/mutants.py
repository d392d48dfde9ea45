"""Planted faults: each operator and number of a function, changed one at a time."""

from __future__ import annotations

import ast
import copy
import inspect
import textwrap
from collections.abc import Iterator
from typing import Any

__all__ = ["mutants"]

SWAPPED: dict[type, type] = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult}


def mutants(function: Any) -> Iterator[tuple[str, Any]]:
    """Copies of a function, each with one fault: a number times 1.0005, + for -, * for /, >= for >, a sign dropped."""
    original = ast.parse(textwrap.dedent(inspect.getsource(function)))
    for index in range(len(list(ast.walk(original)))):
        tree = copy.deepcopy(original)
        nodes: list[Any] = list(ast.walk(tree))
        node = nodes[index]
        bounds = [bound for each in nodes if isinstance(each, ast.Compare) for bound in each.comparators]
        before = ast.unparse(node) if isinstance(node, ast.expr) else ""
        if isinstance(node, ast.Constant) and type(node.value) in (int, float) and node not in bounds:
            node.value = float(node.value) * 1.0005 if node.value else 0.001
        elif isinstance(node, ast.Compare) and isinstance(node.ops[0], ast.Gt):
            node.ops[0] = ast.GtE()
        elif isinstance(node, ast.BinOp) and type(node.op) in SWAPPED:
            node.op = SWAPPED[type(node.op)]()
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            node.op = ast.UAdd()
        else:
            continue
        names: dict[str, Any] = {}
        exec(compile(tree, f"<mutant of {function.__qualname__}>", "exec"), function.__globals__, names)
        yield f"{function.__qualname__}: {before} -> {ast.unparse(node)}", names[function.__name__]
