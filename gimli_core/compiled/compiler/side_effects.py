"""What a function that is being traced changes besides what it returns: counters, lists, attributes, hooks.

Between one guarded call and the next (NOTE [one look a run] in compiled_function.py) such changes would be left out,
and what reads them would go on with the value that it met first: a function that makes them is not compiled.
"""

from __future__ import annotations

from typing import Any

from gimli_core.compiled.compiler.trial import Uncompiled

__all__ = ["refuse_side_effects"]


def refuse_side_effects() -> None:
    """What a backend asks before it compiles. Raises Uncompiled."""
    if what := changed_besides():
        raise Uncompiled(f"each evaluation changes {what}, and a compiled one would not")


def changed_besides() -> str | None:
    """What the function that is being traced changes besides its results; None if nothing."""
    from torch._dynamo.symbolic_convert import InstructionTranslator

    output: Any = InstructionTranslator.current_tx().output
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
