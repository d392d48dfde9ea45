"""A function run by several real processes that share a gloo group; what each returned, or raised."""

from __future__ import annotations

import multiprocessing
import os
import time
import traceback
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import distributed

import gimli_core

__all__ = ["Ended", "on_ranks", "results_on_ranks"]


class Ended(NamedTuple):
    """How one rank ended."""

    value: Any  # what its function returned
    error: str | None  # the traceback of what it raised
    exitcode: int | None  # negative: the signal that ended it


def on_ranks(size: int, work: Callable[..., Any], *args: Any, directory: Path, timeout: float = 20.0) -> list[Ended]:
    """`work(*args)` on each of `size` processes of one gloo group, in rank order.

    Args:
        work: a function at the top of a module: it is found by name.
        directory: where the processes meet; another for each call.
        timeout: of the group, in seconds. A process that still runs a minute later is killed.

    A forkserver that has torch loaded already starts them, so that a start takes a fraction of a second.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    directory.mkdir(parents=True, exist_ok=True)
    processes = [
        context.Process(target=_rank, args=(rank, size, str(directory), timeout, work, args)) for rank in range(size)
    ]
    for process in processes:
        process.start()
    end = time.monotonic() + timeout + 60
    for process in processes:
        process.join(max(0.1, end - time.monotonic()))
        if process.is_alive():
            process.kill()
            process.join()
    return [_ended(directory / f"rank-{rank}", process.exitcode) for rank, process in enumerate(processes)]


def results_on_ranks(
    size: int, work: Callable[..., Any], *args: Any, directory: Path, timeout: float = 20.0
) -> list[Any]:
    """What `work` returned on each rank; none may fail."""
    every = on_ranks(size, work, *args, directory=directory, timeout=timeout)
    failed = "\n".join(f"rank {rank} ({e.exitcode}): {e.error}" for rank, e in enumerate(every) if e.exitcode != 0)
    assert not failed, failed
    return [ended.value for ended in every]


def _ended(path: Path, exitcode: int | None) -> Ended:
    if not path.exists():
        return Ended(None, None, exitcode)
    value, error = torch.load(path, weights_only=False)
    return Ended(value, error, exitcode)


def _rank(
    rank: int, size: int, directory: str, timeout: float, work: Callable[..., Any], args: tuple[Any, ...]
) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    warnings.simplefilter("error")
    store = distributed.FileStore(f"{directory}/store", size)
    value, error = None, None
    try:
        distributed.init_process_group(
            "gloo", store=store, rank=rank, world_size=size, timeout=timedelta(seconds=timeout)
        )
        value = work(*args)
    except BaseException:
        error = traceback.format_exc()
    torch.save((value, error), f"{directory}/rank-{rank}.new")
    os.replace(f"{directory}/rank-{rank}.new", f"{directory}/rank-{rank}")
    os._exit(0 if error is None else 1)  # as a process that ends does: its connections close at once


_ = gimli_core  # loaded here, so that the forkserver has it
