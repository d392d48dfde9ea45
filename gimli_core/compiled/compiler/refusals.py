"""What a traced function must not do, since a run looks at it once: NOTE [one look a run] in compiled_function.py.

- Change something besides what it returns: counters, lists, attributes, hooks. Between one guarded call and the next
  such changes would be left out, and what reads them would go on with the value that it met first.
- Branch on a number in a tensor, or index with it. The compiler guards what it takes there (`.item()` of an int64 or
  a float64), and a run would go on with the first step's.
"""

from __future__ import annotations

from typing import Any

from gimli_core.compiled.compiler.trial import Uncompiled

__all__ = ["refuse_branches", "refuse_side_effects"]


def refuse_side_effects() -> None:
    """What a backend asks before it compiles. Raises Uncompiled."""
    if what := changed_besides():
        raise Uncompiled(f"each evaluation changes {what}, and a compiled one would not")


def refuse_branches() -> None:
    """What a backend asks before and after it compiles. Raises Uncompiled."""
    if traced().shape_env.guards:
        raise Uncompiled("it branches on a number in a tensor, or takes one as an index or a size (.item(), int())")


def traced() -> Any:
    """What the compiler knows of the function that is being traced."""
    from torch._dynamo.symbolic_convert import InstructionTranslator

    return InstructionTranslator.current_tx().output


def changed_besides() -> str | None:
    """What the function that is being traced changes besides its results; None if nothing."""
    output = traced()
    effects = output.side_effects
    if output.random_calls or effects.tensor_hooks or effects.save_for_backward:
        return "the state of Python's random numbers, or hooks"
    for changed in effects._get_modified_vars():
        if changed.source is not None and not is_as_before(changed, effects):
            return f"a {changed.python_type_name()} that outlives it"
    return None


def is_as_before(changed: Any, effects: Any) -> bool:
    """Whether the entries of a dict are again what they were, as a module's are behind `functional_call`."""
    now, before = getattr(changed, "items", None), getattr(changed, "original_items", None)
    if not isinstance(now, dict) or not isinstance(before, dict) or effects.store_attr_mutations.get(changed):
        return False
    of_now, of_before = ([x.source and x.source.name for x in items.values()] for items in (now, before))
    return of_now == of_before and None not in of_now
