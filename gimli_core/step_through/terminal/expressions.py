"""What can be asked of a moment: a small language over its quantities, in Python's syntax but never run as Python.

Names of quantities, their entries and slices, a few harmless attributes, arithmetic, comparisons, and the tools.
Nothing else can be written, so no module, no file and no other object is in reach; and no operation is begun whose
result would be larger than what a session may hold.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Collection, Mapping
from typing import Any

from gimli_core.errors import ArgumentError, closest, first_line, listing, unexpected
from gimli_core.step_through.terminal.operations import TOOLS, bounded, number_or_tensor, tensor_of

__all__ = ["QUANTITIES", "assignment", "checked", "evaluate", "quantities_in"]

QUANTITIES = (
    "theta",
    "s",
    "G",
    "V",
    "B",
    "B_next",
    "growth",
    "S",
    "direct",
    "curvature",
    "A_opt",
    "A_loss",
    "dA_opt",
    "dA_loss",
    "loss",
    "line",
    "j",
)
AS_THETA = ("theta", "G", "V", "B", "B_next", "direct", "curvature")  # a tensor for each of theta's
LONGEST = 400  # characters of an expression, so that neither it nor its nesting is a load
ATTRIBUTES = ("shape", "ndim", "T", "mT")  # of tensors

ARITHMETIC: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
    ast.MatMult: operator.matmul,
}
COMPARISONS: Mapping[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}
SIGNS: Mapping[type[ast.unaryop], Callable[[Any], Any]] = {ast.USub: operator.neg, ast.UAdd: operator.pos}


def checked(text: str) -> ast.expr:
    """The expression in `text`, if this language has all of it: known from its words alone, before anything has run.

    Raises:
        ArgumentError: another syntax, an unknown name, a form that is not allowed.
    """
    expression: ast.expr = _parsed(text, "eval").body
    _check(expression, text)
    return expression


def quantities_in(expression: ast.expr, theta: Collection[str]) -> set[str]:
    """The quantities that an expression names; of those laid out as theta, an entry's name must be one of `theta`.

    Raises:
        ArgumentError: an entry that no tensor of the run has.
    """
    for node in ast.walk(expression):
        match node:
            case ast.Subscript(value=ast.Name(id=name), slice=ast.Constant(value=str() as key)):
                if name in AS_THETA and key not in theta:
                    do = f"Use one of them.{closest(key, theta)}"
                    raise unexpected(f"entry of {name}", f"one of {listing(theta)}", repr(key), do)
    return {node.id for node in ast.walk(expression) if isinstance(node, ast.Name) and node.id in QUANTITIES}


def evaluate(text: str, names: Mapping[str, Any]) -> Any:
    """The value of an expression, in which `names` are the quantities known so far.

    Raises:
        ArgumentError: what `checked` raises, a quantity that is not there yet, an operation that cannot be done.
    """
    return _value_of(checked(text), text, names)


def assignment(text: str, names: Mapping[str, Any]) -> tuple[str, list[Any], Any]:
    """(name, keys, value) of `NAME[KEY]…[i, j] = EXPRESSION`."""
    statements = _parsed(text, "exec").body
    assigned = statements[0] if len(statements) == 1 else None
    target = assigned.targets[0] if isinstance(assigned, ast.Assign) and len(assigned.targets) == 1 else None
    keys: list[ast.expr] = []
    while isinstance(target, ast.Subscript):
        keys.insert(0, target.slice)
        target = target.value
    if not isinstance(target, ast.Name):
        raise unexpected("change", "NAME[ENTRY] = VALUE", repr(text), "For example: change G['w'][0] = 0.5.")
    assert isinstance(assigned, ast.Assign)
    for part in (target, assigned.value):
        _check(part, text)
    for key in keys:
        _check(key, text, inside=True)
    return target.id, [_value_of(key, text, names) for key in keys], _value_of(assigned.value, text, names)


def _parsed(text: str, mode: str) -> Any:
    try:
        if len(text) > LONGEST:
            raise ValueError(f"{len(text)} characters")
        return ast.parse(text.strip(), mode=mode)
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        actual = error.msg if isinstance(error, SyntaxError) else str(error)
        raise unexpected(f"expression {text[:80]!r}", "Python, such as norm(B) > 1e3", actual, "Mend it.") from None


def _check(node: ast.AST, text: str, inside: bool = False) -> None:
    """Go through what an expression is made of; `inside` brackets there may be strings, slices and several indices."""

    def refuse(actual: str, do: str) -> ArgumentError:
        expected = f"an expression over {', '.join(QUANTITIES)}, with {', '.join(TOOLS)}"
        return unexpected(f"expression {text!r}", expected, actual, do)

    match node:
        case ast.Constant(value=bool() | int() | float()):
            return
        case ast.Constant(value=str()) if inside:
            return
        case ast.Constant(value=value) if inside and (value is None or value is ...):
            return
        case ast.Name(id=name):
            if name not in QUANTITIES:
                raise refuse(f"the name {name!r}", f"norm(B) is one.{closest(name, (*QUANTITIES, *TOOLS))}")
        case ast.Attribute(value=value, attr=name):
            if name not in ATTRIBUTES:
                raise refuse(f"the attribute {name!r}", f"The attributes are {', '.join(ATTRIBUTES)}.")
            _check(value, text)
        case ast.Subscript(value=value, slice=key):
            _check(value, text)
            _check(key, text, inside=True)
        case ast.Slice(lower=lower, upper=upper, step=step) if inside:
            for part in filter(None, (lower, upper, step)):
                _check(part, text)
        case ast.Tuple(elts=parts) if inside:
            for part in parts:
                _check(part, text, inside=True)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in ARITHMETIC:
            _check(left, text)
            _check(right, text)
        case ast.UnaryOp(op=op, operand=operand) if type(op) in SIGNS or isinstance(op, ast.Not):
            _check(operand, text)
        case ast.BoolOp(values=parts):
            for part in parts:
                _check(part, text)
        case ast.Compare(left=left, ops=ops, comparators=others) if all(type(op) in COMPARISONS for op in ops):
            for part in (left, *others):
                _check(part, text)
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if arguments:
            if name not in TOOLS:
                raise refuse(f"a call of {name!r}", f"Use one of the tools.{closest(name, TOOLS)}")
            for part in arguments:
                _check(part, text)
        case _:
            raise refuse(
                f"another form ({type(node).__name__})", "Entries, arithmetic and comparisons are all that there is."
            )


def _value_of(expression: ast.expr, text: str, names: Mapping[str, Any]) -> Any:
    try:
        return _value(expression, names)
    except ArgumentError:
        raise
    except (
        Exception
    ) as error:  # of torch and of Python's numbers: a shape, a key, a division by zero, too little memory
        expected = f"an expression over {', '.join(names)}"
        raise unexpected(text, expected, first_line(error), "norm(B) is one.") from None


def _value(node: ast.expr | None, names: Mapping[str, Any]) -> Any:
    match node:
        case None:
            return None
        case ast.Constant(value=value):
            return value
        case ast.Name(id=name):
            if name not in names:
                do = f"Known so far: {listing(names, len(names))}."
                raise unexpected(name, "a quantity that has been computed", "none yet", do)
            return names[name]
        case ast.Attribute(value=value, attr=name):
            return getattr(tensor_of(_value(value, names), f".{name}"), name)
        case ast.Subscript(value=value, slice=key):
            return entry_of(_value(value, names), _value(key, names))
        case ast.Slice(lower=lower, upper=upper, step=step):
            return slice(_value(lower, names), _value(upper, names), _value(step, names))
        case ast.Tuple(elts=parts):
            return tuple(_value(part, names) for part in parts)
        case ast.BinOp(left=left, op=op, right=right):
            return bounded(
                ARITHMETIC[type(op)], number_or_tensor(_value(left, names)), number_or_tensor(_value(right, names))
            )
        case ast.UnaryOp(op=op, operand=operand):
            value = number_or_tensor(_value(operand, names))
            return not value if isinstance(op, ast.Not) else SIGNS[type(op)](value)
        case ast.BoolOp(op=op, values=parts):
            value = None
            for part in parts:
                value = number_or_tensor(_value(part, names))
                if bool(value) is isinstance(op, ast.Or):
                    break
            return value
        case ast.Compare(left=left, ops=ops, comparators=others):
            value, before = True, number_or_tensor(_value(left, names))
            for comparison, other in zip(ops, others, strict=True):
                after = number_or_tensor(_value(other, names))
                value = bounded(COMPARISONS[type(comparison)], before, after)
                if len(ops) > 1 and not value:
                    return value
                before = after
            return value
        case ast.Call(func=ast.Name(id=name), args=arguments):
            return TOOLS[name](*[_value(part, names) for part in arguments])
    raise AssertionError(f"{node} passed the check")


def entry_of(value: Any, key: Any) -> Any:
    """`value[key]`: of a mapping by its own keys, of a tensor or a list by whole numbers and slices."""
    if isinstance(value, Mapping):
        if not isinstance(key, (str, int)) or key not in value:
            do = f"Use one of them.{closest(key, map(str, value))}"
            raise unexpected("entry", f"one of {listing(value)}", repr(key), do)
        return value[key]
    parts = key if isinstance(key, tuple) else (key,)
    if not all(part is None or part is ... or isinstance(part, (int, slice)) for part in parts):
        do = "Count from 0."
        raise unexpected("entry", "whole numbers and slices", repr(key), do)
    return value[key]
