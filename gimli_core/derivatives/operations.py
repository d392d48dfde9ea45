"""Looking on at every operation of torch, without what torch's own class loads for it.

`TorchDispatchMode` wraps the method of each class that defines it for the sake of `torch.compile`, and imports all of
`torch._dynamo` at the first operation: 36 MiB and a second of a process that compiles nothing. What a class inherits is
not wrapped. Nothing here is ever compiled.
"""

from __future__ import annotations

from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["Operations"]


class _Dispatched:
    def operation(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What an operation gives; by default what it gives by itself."""
        return function(*args, **kwargs)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.operation(func, args, kwargs or {})


class Operations(_Dispatched, TorchDispatchMode):
    """Within it, `operation` is called in the place of every operation."""
