"""`vmap` for functions of trees: quick to call on small tensors, and quick to trace.

`torch.func.vmap` takes its arguments apart four times and what the function returns three times, in Python: on a small
network that takes longer than the function itself, and under `torch.compile` it is most of what is traced. Here trees
are gone through once; the vectorising is torch's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch._functorch.predispatch import _add_batch_dim, _remove_batch_dim, lazy_load_decompositions
from torch._functorch.vmap import vmap_increment_nesting
from torch.utils import _pytree as pytree

__all__ = ["vectorised"]


def vectorised(
    function: Callable[..., Any],
    which: Sequence[Any],
    count: int,
    *,
    randomness: str = "error",
    mapped: Callable[..., Any] = pytree.tree_map,
) -> Callable[..., Any]:
    """`vmap(function)` over the first dimension, `[count, …]`, of what `which` says; the rest is shared.

    Args:
        function: of as many trees as there are in `which`, to a tree of tensors.
        which: of each argument whether its tensors have that dimension; True, False, or a tree of these.
        count: how many.
        randomness: as `vmap` has it.
        mapped: `mapped(function, *trees)`, that goes through the trees.

    Raises:
        ValueError: in a call, where something that should have that dimension, or that is returned, is no tensor.

    >>> import torch
    >>> over = vectorised(lambda x, shared: x * shared["y"], (True, False), 2)
    >>> over(torch.tensor([1.0, 2.0]), {"y": torch.tensor([1.0, 10.0])})
    tensor([[ 1., 10.],
            [ 2., 20.]])
    """

    def over(*arguments: Any) -> Any:
        lazy_load_decompositions()
        with vmap_increment_nesting(count, randomness) as level:

            def one(x: Any) -> Any:
                if not isinstance(x, Tensor):
                    raise ValueError(f"a tensor [{count}, …] is expected to vectorise over, not {type(x).__name__}")
                return _add_batch_dim(x, 0, level)

            def all_of(x: Any) -> Any:
                if not isinstance(x, Tensor):
                    raise ValueError(f"a function that is vectorised returns tensors, not {type(x).__name__}")
                return _remove_batch_dim(x, level, count, 0)

            ones = []
            for has, argument in zip(which, arguments, strict=True):
                if has is True:
                    argument = mapped(one, argument)
                elif has is not False:
                    argument = mapped(lambda has, x: one(x) if has else x, has, argument)
                ones.append(argument)
            return mapped(all_of, function(*ones))

    return over
