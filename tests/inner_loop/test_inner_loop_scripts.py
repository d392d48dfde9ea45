"""Scripts written for `higher` 0.2.1: each runs with either library, and where gradients agree gives the same numbers.

A script takes the library under the name that it would have imported it by. Where `higher` is not installed the
comparison is left out; that our library runs each of them is tested all the same.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import gimli_core.inner_loop

ROUNDING = 1e-10
Numbers = list[Tensor]


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.BatchNorm1d(8), nn.Linear(8, 1))


def task() -> tuple[Tensor, Tensor]:
    x = torch.randn(10, 1)
    return x, torch.sin(x + torch.rand(1))


def maml(higher: Any) -> Numbers:
    model = net()
    meta_opt = torch.optim.Adam(model.parameters(), lr=1e-2)
    inner_opt = torch.optim.SGD(model.parameters(), lr=1e-1)
    losses = []
    for _ in range(3):
        meta_opt.zero_grad()
        for _ in range(2):
            (x, y), (xq, yq) = task(), task()
            with higher.innerloop_ctx(model, inner_opt, copy_initial_weights=False) as (fnet, diffopt):
                for _ in range(3):
                    diffopt.step(F.mse_loss(fnet(x), y))
                query = F.mse_loss(fnet(xq), yq)
                losses.append(query.detach())
                query.backward()
        meta_opt.step()
    x, y = task()
    with higher.innerloop_ctx(model, inner_opt, track_higher_grads=False) as (fnet, diffopt):
        for _ in range(3):
            diffopt.step(F.mse_loss(fnet(x), y))
        losses.append(F.mse_loss(fnet(x), y).detach())
    return [*losses, *(p.detach() for p in model.parameters())]


def learned_hyperparameters(higher: Any) -> Numbers:
    model = net()
    opt = torch.optim.SGD(
        [{"params": model[0].parameters()}, {"params": [*model[2].parameters(), *model[3].parameters()], "lr": 0.02}],
        lr=0.1,
        momentum=0.5,
        weight_decay=0.01,
    )
    override = higher.optim.get_trainable_opt_params(opt)
    override = {name: override[name] for name in ("lr", "momentum", "weight_decay")}
    meta_opt = torch.optim.SGD([v for values in override.values() for v in values], lr=1e-3)
    x, y = task()
    for _ in range(3):
        with higher.innerloop_ctx(model, opt, override=override) as (fmodel, diffopt):
            for _ in range(4):
                diffopt.step(F.mse_loss(fmodel(x), y))
            meta_opt.zero_grad()
            F.mse_loss(fmodel(x), y).backward()
        meta_opt.step()
    higher.optim.apply_trainable_opt_params(opt, override)
    return [torch.tensor(group[name]) for group in opt.param_groups for name in override]


def learned_initialisation_by_hand(higher: Any) -> Numbers:
    model = net()
    opt = torch.optim.Adagrad(model.parameters(), lr=0.1)
    fmodel = higher.monkeypatch(model)
    diffopt = higher.get_diff_optim(opt, model.parameters(), fmodel=fmodel, track_higher_grads=True)
    x, y = task()
    for _ in range(3):
        diffopt.step(F.mse_loss(fmodel(x), y))
    loss = F.mse_loss(fmodel(x), y)
    gradients = torch.autograd.grad(loss, fmodel.parameters(time=0))
    first = [p.detach() for p in fmodel.init_fast_params]
    assert len(fmodel._fast_params if hasattr(fmodel, "_fast_params") else fmodel._fast_weights.history) == 4
    return [
        loss.detach(),
        *gradients,
        *first,
        *(p.detach() for p in fmodel.fast_params),
        *(p.detach() for p in fmodel.parameters(time=2)),
    ]


def functional_style(higher: Any) -> Numbers:
    model = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1))
    fmodel = higher.patch.make_functional(model)
    params = [p.clone() for p in model.parameters()]
    fmodel.update_params(params)
    diffopt = higher.create_diff_optim(torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}, params=params)
    x, y = task()
    for _ in range(3):
        loss = F.mse_loss(fmodel(x, params=params), y)
        params = diffopt.step(loss, params=params)
    loss = F.mse_loss(fmodel(x, params=params), y)
    return [loss.detach(), *torch.autograd.grad(loss, list(model.parameters()))]


def callbacks_and_overrides(higher: Any) -> Numbers:
    model = net()
    lrs = [torch.tensor([0.1], requires_grad=True) for _ in range(3)]
    weight = torch.zeros(10, 1, requires_grad=True)
    opt = torch.optim.SGD(model.parameters(), lr=1.0)
    x, y = task()

    def clip(grads: Any) -> Any:
        norm = torch.sqrt(sum((g * g).sum() for g in grads))
        return [g / norm for g in grads]

    with higher.innerloop_ctx(model, opt) as (fmodel, diffopt):
        for j, lr in enumerate(lrs):
            loss = (torch.sigmoid(weight) * (fmodel(x) - y) ** 2).sum()
            diffopt.step(loss, override={"lr": [lr]}, grad_callback=clip if j else None)
        outer = F.mse_loss(fmodel(x), y)
        outer.backward()
    return [outer.detach(), weight.grad, *(lr.grad for lr in lrs)]


def frozen_and_unused(higher: Any) -> Numbers:
    class Parts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused, self.frozen = nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.frozen(self.used(x))

    model = Parts()
    model.frozen.requires_grad_(False)
    opt = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
    x = torch.randn(3, 2)
    with higher.innerloop_ctx(model, opt, copy_initial_weights=False) as (fmodel, diffopt):
        for _ in range(2):
            diffopt.step(fmodel(x).square().mean() + fmodel.used.weight.square().sum())
        fmodel(x).square().mean().backward()
        fast = [p.detach() for p in fmodel.parameters()]
    assert model.frozen.weight.grad is None
    return [*fast, model.used.weight.grad]


def a_rule_of_its_own(higher: Any) -> Numbers:
    class Signed(torch.optim.Optimizer):
        def __init__(self, params: Any, lr: float) -> None:
            super().__init__(params, {"lr": lr})

    class DifferentiableSigned(higher.optim.DifferentiableOptimizer):  # type: ignore[name-defined,misc]
        def _update(self, grouped_grads: Any, **kwargs: Any) -> None:
            for group_idx, (group, grads) in enumerate(zip(self.param_groups, grouped_grads, strict=True)):
                for p_idx, (p, g) in enumerate(zip(group["params"], grads, strict=True)):
                    if g is None:
                        continue
                    state = self.state[group_idx][p_idx]
                    state["total"] = state["total"] + g if "total" in state else g
                    group["params"][p_idx] = p - group["lr"] * torch.tanh(state["total"])

    higher.register_optim(Signed, DifferentiableSigned)
    model = net()
    lr = torch.tensor(0.1, requires_grad=True)
    x, y = task()
    opt = Signed(model.parameters(), lr=1.0)
    with higher.innerloop_ctx(model, opt, copy_initial_weights=False, override={"lr": [lr]}) as (fmodel, diffopt):
        for _ in range(3):
            diffopt.step(F.mse_loss(fmodel(x), y))
        F.mse_loss(fmodel(x), y).backward()
    return [lr.grad, *(p.grad for p in model.parameters())]


def recurrent_with_dropout(higher: Any) -> Numbers:
    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.drop, self.head = nn.LSTM(3, 4, batch_first=True), nn.Dropout(0.3), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.drop(self.rnn(x)[0]))

    model = Tagger()
    x = torch.randn(2, 5, 3)
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    with higher.innerloop_ctx(model, opt, copy_initial_weights=False) as (fmodel, diffopt):
        for _ in range(2):
            diffopt.step(fmodel(x).square().mean())
        fmodel.eval()
        loss = fmodel(x).square().mean()
        loss.backward()
    return [loss.detach(), *(p.grad for p in model.parameters())]


SCRIPTS: list[Callable[[Any], Numbers]] = [
    maml,
    learned_hyperparameters,
    learned_initialisation_by_hand,
    functional_style,
    callbacks_and_overrides,
    frozen_and_unused,
    a_rule_of_its_own,
    recurrent_with_dropout,
]


def run(script: Callable[[Any], Numbers], library: ModuleType) -> Numbers:
    torch.manual_seed(3)
    return script(library)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda s: s.__name__)
def test_a_script_runs_with_our_library(script: Callable[[Any], Numbers]) -> None:
    numbers = run(script, gimli_core.inner_loop)
    assert all(bool(n.isfinite().all()) for n in numbers)


@pytest.mark.filterwarnings("ignore")  # of the old library's own
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda s: s.__name__)
def test_a_script_gives_the_numbers_that_it_gave(script: Callable[[Any], Numbers]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        higher = pytest.importorskip("higher")
    ours, theirs = run(script, gimli_core.inner_loop), run(script, higher)
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=ROUNDING, atol=ROUNDING)


EXAMPLE = Path(__file__).parents[2] / "examples" / "maml_omniglot_as_for_higher.py"
OUR_IMPORT = "import gimli_core.inner_loop as higher\n"


def run_example(source: str, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    namespace = {"__name__": "example", "__file__": str(EXAMPLE)}
    exec(compile(source, str(EXAMPLE), "exec"), namespace)
    few = ["--epochs", "1", "--batches", "1", "--task_num", "2", "--width", "4", "--k_qry", "5"]
    monkeypatch.setattr(sys, "argv", [EXAMPLE.name, "--data", str(data), *few])
    namespace["main"]()  # type: ignore[operator]


@pytest.fixture
def drawings(tmp_path: Path) -> Path:
    """A file in Omniglot's form: twelve characters, noise around a pattern each."""
    torch.set_default_dtype(torch.float32)
    rng = np.random.default_rng(0)
    patterns = rng.integers(0, 200, (12, 1, 28, 28))
    images = (patterns + rng.integers(0, 55, (12, 20, 28, 28))).astype(np.uint8).reshape(240, 28, 28)
    character = np.arange(12).repeat(20)
    np.savez(tmp_path / "drawings.npz", images=images, character=character, vinyals_split=np.arange(12) // 6 * 2)
    return tmp_path / "drawings.npz"


def test_the_example_runs(drawings: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    source = EXAMPLE.read_text(encoding="utf-8")
    run_example(source, drawings, monkeypatch)
    said = capsys.readouterr().out
    assert said.count("accuracy") == 2
    with pytest.raises(SystemExit, match="--data PATH"):
        run_example(source, drawings.parent / "nowhere.npz", monkeypatch)


@pytest.mark.filterwarnings("ignore")  # of the old library's own
def test_the_example_says_the_same_with_either_library(
    drawings: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("higher")
    source = EXAMPLE.read_text(encoding="utf-8")
    assert source.count(OUR_IMPORT) == 1
    said = []
    for line in (OUR_IMPORT, "import higher\n"):
        run_example(source.replace(OUR_IMPORT, line), drawings, monkeypatch)
        said.append(capsys.readouterr().out)
    assert said[0] == said[1]


def test_the_public_names() -> None:
    module = importlib.import_module("gimli_core.inner_loop")
    for name in ("innerloop_ctx", "monkeypatch", "get_diff_optim", "create_diff_optim", "register_optim"):
        assert callable(getattr(module, name))
    for name in ("get_trainable_opt_params", "apply_trainable_opt_params"):
        assert getattr(module, name) is getattr(module.optim, name)


def test_trainable_options_are_numbers_and_pairs_but_no_switches() -> None:
    opt = torch.optim.Adam([{"params": [torch.zeros(1)]}, {"params": [torch.zeros(2)], "lr": 1}], lr=torch.tensor(0.5))
    override = gimli_core.inner_loop.get_trainable_opt_params(opt)
    assert set(override) == {"lr", "betas", "eps", "weight_decay"}
    assert [v.item() for v in override["lr"]] == [0.5, 1.0]
    assert [tuple(x.item() for x in pair) for pair in override["betas"]] == [(0.9, 0.999)] * 2
    assert all(x.requires_grad and x.is_leaf for pair in override["betas"] for x in pair)
    with torch.no_grad():
        override["lr"][1].fill_(0.25)
        override["betas"][0][1].fill_(0.75)
    gimli_core.inner_loop.apply_trainable_opt_params(opt, override)
    assert opt.param_groups[1]["lr"] == 0.25, "an int becomes the number learned, not its whole part"
    assert opt.param_groups[0]["betas"] == (0.9, 0.75)
    assert isinstance(opt.param_groups[0]["lr"], Tensor)
    gimli_core.inner_loop.apply_trainable_opt_params(opt, {"eps": [torch.tensor(1e-3)]})
    assert [g["eps"] for g in opt.param_groups] == [pytest.approx(1e-3)] * 2
    for wrong in ({"eps": [torch.ones(2)]}, {"betas": [torch.tensor(0.1)]}, {"lr": [torch.tensor(0.1)] * 3}):
        with pytest.raises(gimli_core.errors.ArgumentError):
            gimli_core.inner_loop.apply_trainable_opt_params(opt, wrong)


def test_an_optimizer_made_anew_takes_groups_and_tensors() -> None:
    a, b = torch.ones(2, requires_grad=True), torch.ones(3, requires_grad=True)
    lr = torch.tensor(0.5, requires_grad=True)
    diffopt = gimli_core.inner_loop.create_diff_optim(
        torch.optim.SGD, {"lr": 0.1}, params=[{"params": [a]}, {"params": b, "lr": lr}]
    )
    new_a, new_b = diffopt.step(a.sum() + b.sum(), params=[a, b])
    torch.testing.assert_close(new_a.detach(), torch.full((2,), 0.9))
    torch.testing.assert_close(new_b.detach(), torch.full((3,), 0.5))
    new_b.sum().backward()
    assert lr.grad is not None
    assert lr.grad.item() == -3.0
    model = nn.Linear(2, 1)
    fmodel = gimli_core.inner_loop.monkeypatch(model)
    diffopt = gimli_core.inner_loop.create_diff_optim(torch.optim.Adam, fmodel=fmodel)
    diffopt.step(fmodel(torch.ones(2)).sum())
    torch.testing.assert_close(fmodel.weight.detach(), model.weight.detach() - 1e-3, rtol=1e-6, atol=1e-8)
