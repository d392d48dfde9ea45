"""Values from elsewhere, keyed like a result or by flat names, as entries of a question."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gimli_core.errors import closest, listing, unexpected
from gimli_core.verification.question import RESULTS, Entries, Key, flatten, label

__all__ = ["entries_of"]


def entries_of(nested: Mapping[str, Any] | None, entries: Entries, argument: str) -> Entries:
    """`nested`, keyed like a result or by flat names, as entries of the same shapes.

    Raises:
        ArgumentError: a name that belongs to no meta-parameter or to several, a value given twice, one that is not
            of real numbers, or another shape.
    """
    if nested is not None and not isinstance(nested, Mapping):
        expected = f"a dict of derivatives, keyed by names or by {', '.join(RESULTS)}"
        remedy = "Of a result: {'A_opt': result.A_opt, 'B_0': result.B_0}."
        raise unexpected(argument, expected, type(nested).__name__, remedy)
    flat: Entries = {}
    for name, tree in ({} if nested is None else nested).items():
        for key, value in _flat(tree, _path(name, entries, argument), argument).items():
            if key in flat:
                raise unexpected(f"{argument}: {label(key)}", "one value", "two", "Leave one out.")
            flat[key] = value
    for key, value in flat.items():
        if key not in entries:
            names = listing(map(label, entries))
            raise unexpected(argument, f"entries among {names}", label(key), "Key it as the inputs are.")
        if value.shape != entries[key].shape:
            expected = f"shape {list(entries[key].shape)}, as in a result"
            remedy = "Give the derivative with respect to all of it."
            raise unexpected(f"{argument}: {label(key)}", expected, str(list(value.shape)), remedy)
    if nested is not None and not flat:
        do = "Leave it out to have the engine judged alone."
        raise unexpected(argument, "at least one derivative", "none", do)
    return flat


def _flat(tree: Any, path: Key, argument: str) -> Entries:
    try:
        flat = flatten(tree, path)
    except (TypeError, ValueError, RuntimeError) as error:
        remedy = "Convert it."
        raise unexpected(f"{argument}: {label(path)}", "numbers or tensors", str(error), remedy) from error
    for key, value in flat.items():
        if value.is_complex():
            raise unexpected(f"{argument}: {label(key)}", "real numbers", str(value.dtype), "Take .real.")
    return flat


def _path(name: str, entries: Entries, argument: str) -> Key:
    if name in RESULTS or (name,) in entries:
        return (name,)
    homes = [result for result in RESULTS if any(key[:2] == (result, name) for key in entries)]
    if len(homes) == 1:
        return homes[0], name
    names = list(dict.fromkeys(key[1] for key in entries if len(key) > 1))
    expected = f"names of one meta-parameter each ({listing(names)}), or {', '.join(RESULTS)}"
    actual = f"{name!r}, which is in {listing(homes)}" if homes else repr(name)
    remedy = f"Nest it under the result that it belongs to.{closest(name, names)}"
    raise unexpected(argument, expected, actual, remedy)
