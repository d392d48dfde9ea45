"""Whether what a call cannot do without would fit into the machine's memory: asked before any of it is made."""

from __future__ import annotations

import os

import torch

from gimli_core.errors import unexpected

__all__ = ["check_fits"]


def check_fits(argument: str, count: int, each: int, what: str, device: torch.device | None = None) -> None:
    """Raise ArgumentError if `count` times `each` bytes are more than the memory of the device; of the processor's.

    >>> check_fits("steps", 10**15, 256, "the losses of so many steps")
    Traceback (most recent call last):
    ...
    gimli_core.errors.ArgumentError: steps: expected a number for which the losses of so many steps fit into memory...
    """
    memory = _memory(device or torch.device("cpu"))
    if memory and count * each > memory:
        expected = f"a number for which {what} fit into memory, {memory / 2**30:.3g} GiB"
        actual = f"{count}, which take {count * each / 2**30:.3g} GiB at least"
        raise unexpected(argument, expected, actual, "Lower it.")


def _memory(device: torch.device) -> int:
    """Bytes that a device has in all; 0 where that is not told."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    if device.type != "cpu" or not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return 0
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
