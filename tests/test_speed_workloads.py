"""The speed benchmark's workloads, small and in float64: the engine and the peers in torch compute the same."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch

from tests.benchmarks.speed.engines import prepare
from tests.benchmarks.speed.floor import Products, products
from tests.benchmarks.speed.worker import Question, together, worst_difference
from tests.benchmarks.speed.workloads import DATA, Workload, build

SMALL = {
    "sinusoid": {"steps": 2, "tasks": 3, "width": 5},
    "tiny": {"steps": 3, "width": 5},
    "mnist": {"steps": 3, "width": 6},
    "omniglot": {"steps": 2, "tasks": 2, "width": 3},
    "transformer": {"steps": 2, "width": 8, "context": 64},
}
NEEDS = {"mnist": "mnist.npz", "omniglot": "omniglot28.npz"}


@pytest.fixture(params=SMALL)
def work(request: pytest.FixtureRequest) -> Workload:
    name = request.param
    path = DATA / NEEDS[name] if name in NEEDS else Path(__file__)
    if not path.exists():
        pytest.skip(f"{path.name} is not here")
    return build(name, **SMALL[name]).to(torch.float64)


def test_all_compute_the_same(work: Workload) -> None:
    found = {}
    for engine in ("autograd", "func", "eager"):
        run, tensors, _ = prepare(engine, work)
        found[engine] = {k: v.numpy() for k, v in tensors(run()).items()}
    reference = found.pop("autograd")
    assert {k.split(".")[0] for k in reference} == set(work.wanted)
    for engine, gradient in found.items():
        assert worst_difference(gradient, reference) < 1e-13, engine  # 1e-15 found: short runs, sums of up to 1e3 terms


def test_the_floor_repeats_the_products_and_nothing_else() -> None:
    a, b = torch.randn(3, 4), torch.randn(4, 5)

    def run() -> None:
        torch.relu((a @ b).exp() + (b.T @ a.T).T)
        torch.conv2d(a.expand(1, 2, 3, 4), b[None, None, :1, :2].expand(3, 2, 1, 2))

    with Products() as noted:
        run()
    only_products = products(run)
    with Products() as repeated:
        only_products()
    assert [f.overloadpacket.__name__ for f, _, _ in noted.calls] == ["mm", "mm", "convolution"]
    assert [(f, leaves) for f, leaves, _ in repeated.calls] == [(f, leaves) for f, leaves, _ in noted.calls]


def test_an_engine_whose_process_ends_is_left_out_and_told(capsys: pytest.CaptureFixture[str]) -> None:
    questions = [Question("tiny", engine, DATA, 1, sizes=SMALL["tiny"]) for engine in ("eager", "autograd")]
    with together(questions) as workers:
        os.kill(workers.by_engine["autograd"].process.pid or 0, signal.SIGKILL)
        wall, processors = workers.turns(2)
        assert workers.ask("gradient").keys() == {"eager"}
    assert wall.keys() == processors.keys() == {"eager"}
    assert len(wall["eager"]) == 2
    told = [line for line in capsys.readouterr().out.splitlines() if "autograd" in line]
    assert len(told) == 1
    assert "killed" in told[0]
