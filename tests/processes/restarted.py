"""A program for torchrun: one inner loop over ranks, killed in its first life on one of them, that goes on in its
second. Writes what each rank has at the end."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import distributed

from tests.processes.killed import of_data

if __name__ == "__main__":
    where = Path(sys.argv[1])
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    first = not (where / "run").exists()  # before the ranks have met: none has begun yet
    distributed.init_process_group("gloo")
    result = of_data(str(where / "run"), 0 if first else 99, 1, 6 if first else None)
    torch.save(result, where / f"result-{distributed.get_rank()}")
    distributed.destroy_process_group()
