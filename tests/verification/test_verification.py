"""`gimli.verify`: each oracle by itself, the verdicts, the report, claims from elsewhere, and the command."""

from __future__ import annotations

import argparse
import importlib.util
import json
import random
import sys
from itertools import product
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import gimli_core as gimli
from gimli_core.arguments.call import Call
from gimli_core.commands import verify as command
from gimli_core.errors import ArgumentError, VerificationError
from gimli_core.memory import StoreStates
from gimli_core.optimizers import SGD, Adagrad, Adam, AdamW, Optimizer
from gimli_core.verification import Report, Verdict, verify
from gimli_core.verification.cases import CASES
from gimli_core.verification.oracles.closed_forms import CLOSED_FORMS
from gimli_core.verification.oracles.dense_chain import LIMIT, dense_chain
from gimli_core.verification.oracles.finite_differences import finite_differences
from gimli_core.verification.oracles.plain_rules import flat_root, initial_state, plain_step, values_at
from gimli_core.verification.question import Question, flatten
from gimli_core.verification.report import HEADER

# --- the oracles -----------------------------------------------------------------------------------------------------

TORCH_RULES = [
    (
        SGD,
        torch.optim.SGD,
        {"momentum": (0, 0.9), "dampening": (0, 0.3), "weight_decay": (0, 0.1), "maximize": (False, True)},
    ),
    (SGD, torch.optim.SGD, {"momentum": (0.9,), "nesterov": (True,), "weight_decay": (0, 0.1)}),
    (
        Adagrad,
        torch.optim.Adagrad,
        {"lr_decay": (0, 0.1), "initial_accumulator_value": (0, 0.5), "weight_decay": (0, 0.1)},
    ),
    (
        Adam,
        torch.optim.Adam,
        {"betas": ((0.8, 0.9),), "weight_decay": (0, 0.1), "amsgrad": (False, True), "maximize": (False, True)},
    ),
    (AdamW, torch.optim.AdamW, {"betas": ((0.8, 0.9),), "weight_decay": (0, 0.1), "amsgrad": (False, True)}),
]
COMBINATIONS = [
    (ours, theirs, dict(zip(options, values, strict=True)))
    for ours, theirs, options in TORCH_RULES
    for values in product(*options.values())
]


@pytest.mark.parametrize(
    ("ours", "theirs", "options"), COMBINATIONS, ids=lambda v: v.__name__ if isinstance(v, type) else str(v)
)
def test_plain_rules_are_torchs(ours: Any, theirs: Any, options: dict[str, Any]) -> None:
    question = Question(Call(gimli.Problem(bowl, bowl, ours(lr=0.05, **options)), {"w": torch.randn(5)}, [], None, 20))
    theta = {"w": question.call.theta_0["w"].clone()}
    reference = question.call.theta_0["w"].clone().requires_grad_()
    optimizer = theirs([reference], lr=0.05, **options)
    state = initial_state(question, {}, theta)
    for j in range(20):
        G = torch.randn(5)
        theta, state = plain_step(question, theta, state, {"w": G}, values_at(question, {}, theta, j))
        reference.grad = G
        optimizer.step()
    # 20 steps, each a handful of roundings of numbers of order 1
    torch.testing.assert_close(theta["w"], reference.detach(), rtol=1e-13, atol=1e-14)


def bowl(theta: dict[str, Tensor], phi: dict[str, Tensor], batch: Any) -> Tensor:
    return theta["w"].square().sum() / 2


def test_flat_root() -> None:
    x = torch.tensor([0.0, 4.0], requires_grad=True)
    root = flat_root(x)
    (slope,) = torch.autograd.grad(root.sum(), x)
    assert root.tolist() == [0.0, 2.0]
    assert slope.tolist() == [0.0, 0.25]


@pytest.mark.parametrize("name", [name for name in CLOSED_FORMS if name != "zero-adam"])
def test_finite_differences_know_their_error(name: str) -> None:
    """The true error stays within the ten uncertainties that the report grants, and the estimate is not empty."""
    made = CLOSED_FORMS[name].build()
    exact = flatten(made.pop("closed_form"), ())
    question = Question(Call(**made))
    seen = 0
    for key, slopes in finite_differences(question, question.environment()).items():
        if key not in exact:
            continue
        true = slopes.of(exact[key].reshape(question.entries()[key].shape))
        error = (slopes.values - true).abs()
        assert bool((error <= 10 * slopes.uncertainty).all()), (key, error, slopes.uncertainty)
        seen += bool(slopes.uncertainty.max() < 1e-5 * true.abs().max())
    assert seen >= 1


def test_finite_differences_admit_a_kink() -> None:
    """At a kink there is no derivative: the estimate must not be trusted."""

    def kinked(theta: dict[str, Tensor], phi: dict[str, Tensor], batch: Any) -> Tensor:
        return (theta["w"] + phi["shift"]).abs().sum() + theta["w"].sum() * 0

    problem, theta_0 = gimli.Problem(kinked, kinked, SGD(lr=0.1)), {"w": torch.zeros(())}
    question = Question(Call(problem, theta_0, [], None, 0, phi_loss={"shift": torch.tensor(1e-3)}))
    (slopes,) = (v for k, v in finite_differences(question, question.environment()).items() if k[0] == "B_0")
    assert abs(slopes.values.item() - 1) <= 10 * slopes.uncertainty.item()


def test_dense_chain_leaves_out_what_is_too_large() -> None:
    problem, theta_0 = gimli.Problem(bowl, bowl, SGD(lr=0.1)), {"w": torch.randn(LIMIT)}
    question = Question(Call(problem, theta_0, lambda j: None, None, 1))
    assert dense_chain(question, question.environment()) is None
    report = verify(question.call.problem, question.call.theta_0, question.call.train_batches, None, steps=1)
    report.assert_ok()
    assert any("dense chain is left out" in note for note in report.notes)


# --- the verdicts ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in CASES if name not in CLOSED_FORMS])
def test_bundled_cases_agree(name: str) -> None:
    report = verify(**CASES[name].build())
    report.assert_ok()
    for key in {c.key for c in report.checks} - {("val_loss",)}:
        confirmed = [c.oracle for c in report.checks if c.key == key and c.verdict is Verdict.OK]
        assert len(confirmed) >= 2, (key, confirmed)


def _rates(*shape: int) -> Tensor:
    return 0.05 + 0.1 * torch.rand(shape)


FORMS: dict[str, Any] = {
    "number": lambda: 0.1,
    "step": lambda: _rates(4),
    "group": lambda: _rates(2),
    "step-group": lambda: _rates(4, 2),
    "groups": lambda: {"first": 0.1, "rest": _rates(4)},
    "tensors": lambda: {"a": _rates(3), "b": 0.1, "c": _rates(4, 3)},
    "some-tensors": lambda: {"b": _rates()},
    "marked": lambda: gimli.per_step({"d": _rates(4)}),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_hyperparameter(form: str) -> None:
    """The oracle reads the forms by itself; d has 4 elements, as many as there are steps."""

    def loss(theta: dict[str, Tensor], phi: dict[str, Tensor], x: Tensor) -> Tensor:
        return ((theta["a"] * x).sum() * theta["b"] + theta["c"] @ x - theta["d"].sum()).square().sum() / 4

    theta_0 = {"a": torch.randn(3), "b": torch.randn(()), "c": torch.randn(2, 3), "d": torch.randn(4)}
    if form == "tensors":
        theta_0["c"] = torch.randn(3)
    optimizer = SGD(lr=0.1, momentum=0.5, groups={"first": ["a", "b"], "rest": ["[cd]"]})
    torch.manual_seed(2)
    phi_opt = {"lr": FORMS[form](), "momentum": 0.4}
    report = verify(gimli.Problem(loss, loss, optimizer), theta_0, torch.randn(4, 3), torch.randn(3), phi_opt=phi_opt)
    report.assert_ok()
    assert {c.family for c in report.checks} == {"autograd", "finite differences", "dense chain"}


def test_dead_unit_is_undefined_for_autograd_only() -> None:
    report = verify(**CASES["dead-unit"].build())
    undefined = {c.oracle for c in report.checks if c.verdict is Verdict.UNDEFINED}
    assert undefined == {"autograd"}
    assert all(c.verdict is Verdict.OK for c in report.checks if c.oracle == "finite differences")


def test_theta_only_recurrence_is_caught() -> None:
    """The literal reading of lines 11-14 loses the momentum buffer's adjoint: first seen in S_{J-1}."""
    made = CASES["along-the-way"].build()
    verify(**made, oracles=()).assert_ok()
    report = verify(**made, oracles=(), approximation=gimli.ThetaOnly())
    assert not report.ok
    assert report.finding is not None
    assert report.finding.quantity == "S_3[momentum_buffer] of 0.weight: the S pullback at step 3"


def test_ill_conditioned_problem_gets_a_stated_bound() -> None:
    """Gradient descent on a quartic at a chaotic rate: rounding grows far beyond 1e-10, and a fault still shows."""

    def quartic(theta: dict[str, Tensor], phi: dict[str, Tensor], batch: Any) -> Tensor:
        return (theta["w"] ** 4 / 4 - theta["w"] ** 2 / 2).sum()

    made: dict[str, Any] = {
        "problem": gimli.Problem(quartic, quartic, SGD()),
        "theta_0": {"w": torch.tensor([0.3, 0.7])},
        "train_batches": lambda j: None,
        "val_batch": None,
        "phi_opt": {"lr": 1.8},
    }
    report = verify(**made, steps=25)
    report.assert_ok()
    (rate,) = (c for c in report.checks if c.key == ("A_opt", "lr") and c.oracle == "autograd")
    assert 1e-8 < rate.allowed < 1e-2
    (blind,) = (c for c in report.checks if c.key == ("A_opt", "lr") and c.oracle == "finite differences")
    assert blind.verdict is Verdict.INCONCLUSIVE
    assert blind.applied == blind.allowed + 10 * blind.uncertainty
    row = list(report.rows())[report.checks.index(blind)]
    assert row[-2:] == (f"{blind.applied:.1e}", f"inconclusive: {blind.reason}")
    assert blind.reason == f"rounding alone may be {blind.allowed:.2g} of the entry"
    assert blind._replace(uncertainty=3.0).reason == "the oracle may err by 30 of the entry"
    wrong = {"lr": gimli.meta_gradient(**made, steps=25).A_opt["lr"] * (1 + 2 * rate.allowed)}
    assert not verify(**made, steps=25, oracles=(), claimed=wrong).ok
    # After 60 steps nothing is left to compare, and the report does not pretend that there is.
    hopeless = verify(**made, steps=60)
    assert not hopeless.disagreements
    assert hopeless.headline.startswith("not verified: no oracle could judge")
    assert not verify(**made, steps=60, oracles=(), claimed={"lr": float("nan")}).of("claimed").ok


def test_tolerance_is_for_the_caller_to_choose() -> None:
    made = CASES["quadratic"].build()
    exact = made.pop("closed_form")["A_opt"]["lr"]
    claim = {"lr": exact * (1 + 1e-6)}
    assert not verify(**made, claimed=claim, oracles=()).ok
    assert verify(**made, claimed=claim, oracles=(), tolerance=1e-5).ok


def test_steps_0() -> None:
    verify(gimli.Problem(bowl, bowl, Adam()), {"w": torch.randn(3)}, [], None, steps=0).assert_ok()


def test_empty_and_frozen_tensors() -> None:
    def loss(theta: dict[str, Tensor], phi: dict[str, Tensor], batch: Any) -> Tensor:
        return (theta["w"] * theta["fixed"]).square().sum() + theta["none"].sum()

    theta_0 = {"w": torch.randn(3), "none": torch.zeros(0), "fixed": nn.Parameter(torch.randn(3), requires_grad=False)}
    report = verify(gimli.Problem(loss, loss, Adam(eps=1e-2)), theta_0, lambda j: None, None, steps=2)
    report.assert_ok()
    assert {c.key for c in report.checks} == {("val_loss",), ("B_0", "w"), ("B_0", "none")}


def test_losses_that_refuse_float64() -> None:
    table = torch.randn(3, 3, dtype=torch.float32)

    def loss(theta: dict[str, Tensor], phi: dict[str, Tensor], batch: Any) -> Tensor:
        return (table @ theta["w"]).square().sum()

    made = gimli.Problem(loss, loss, SGD(lr=0.01)), {"w": torch.randn(3, dtype=torch.float32)}, lambda j: None, None
    report = verify(*made, steps=3)
    report.assert_ok()
    assert any("refuse float64" in note for note in report.notes)
    assert any("oracles in float64" in note for note in verify(**CASES["float32"].build(), oracles=()).notes)


class Halving(Optimizer):
    """theta' = theta - G / 2, by someone else."""

    def initial_state(self, theta: Any, hyper: Any) -> Any:
        return {"step": torch.zeros((), dtype=torch.float64)}

    def step(self, theta: Any, state: Any, G: Any, hyper: Any) -> Any:
        return {k: v - G[k] / 2 for k, v in theta.items()}, {"step": state["step"] + 1}

    def pullback(self, theta: Any, state: Any, G: Any, hyper: Any, B: Any, S: Any, wanted: Any) -> Any:
        return gimli.optimizers.Pulled({k: -b / 2 for k, b in B.items()}, B, {}, {k: {} for k in B})


class WrongHalving(Halving):
    def pullback(self, theta: Any, state: Any, G: Any, hyper: Any, B: Any, S: Any, wanted: Any) -> Any:
        return gimli.optimizers.Pulled({k: b / 2 for k, b in B.items()}, B, {}, {k: {} for k in B})


def test_an_optimizer_of_ones_own() -> None:
    def verified(optimizer: Optimizer) -> Report:
        return verify(gimli.Problem(bowl, bowl, optimizer), {"w": torch.randn(3)}, lambda j: None, None, steps=3)

    right, wrong = verified(Halving()), verified(WrongHalving())
    right.assert_ok()
    assert any("Halving has no plain rule here" in note for note in right.notes)
    assert wrong.finding is not None
    assert wrong.finding.quantity == "V_2 of w"


class Detached(Halving):
    def step(self, theta: Any, state: Any, G: Any, hyper: Any) -> Any:
        return {k: v.detach() - G[k].detach() / 2 for k, v in theta.items()}, {"step": state["step"] + 1}


def test_a_step_that_autograd_cannot_follow_is_refused() -> None:
    """Rather than to accuse the pullback on the word of a broken graph."""
    with pytest.raises(ArgumentError, match=r"Detached\.step: expected a step that autograd can differentiate"):
        verify(gimli.Problem(bowl, bowl, Detached()), {"w": torch.randn(3)}, lambda j: None, None, steps=2)


@pytest.mark.parametrize("schedule", [None, StoreStates()], ids=["retain", "store"])
def test_random_numbers_and_buffers_are_left_alone(schedule: Any) -> None:
    made = CASES["modules"].build()
    network = made["problem"].modules[0]

    def world() -> list[Any]:
        return [
            torch.get_rng_state().tolist(),
            np.random.get_state()[1].tolist(),  # noqa: NPY002
            random.getstate(),
            {k: b.tolist() for k, b in network.named_buffers()},
        ]

    before = world()
    verify(**made, memory=schedule).assert_ok()
    assert world() == before


# --- the report ------------------------------------------------------------------------------------------------------


def test_statistics_that_move() -> None:
    """Steps in train mode, validation in eval mode along the way: the oracles too take the statistics for constants.

    BatchNorm moves them without counting a version, so plain autograd would read later ones.
    """
    net = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 1, bias=False))
    x = torch.tensor([[0.2, -1.0], [1.5, 0.3], [-0.7, 2.0]])

    def train_loss(theta: dict[str, Tensor], phi: dict[str, Tensor], batch: Tensor) -> Tensor:
        return torch.func.functional_call(net.train(), theta, batch * theta["1.weight"]).exp().mean()

    def val_loss(theta: dict[str, Tensor], phi: dict[str, Tensor], batch: Tensor) -> Tensor:
        return torch.func.functional_call(net.eval(), theta, batch * theta["1.weight"]).square().mean()

    report = verify(
        gimli.Problem(train_loss, val_loss, SGD(lr=0.1)),
        dict(net.named_parameters()),
        [x, 2 * x],
        x,
        phi_opt={"lr": 0.1},
        val_weights=[0.2, 0.3, 0.5],
    )
    report.assert_ok()
    assert {c.family for c in report.checks} == {"autograd", "finite differences", "dense chain"}
    assert any("buffers of modules move" in note for note in report.notes)


def test_report_forms() -> None:
    made = CASES["zero-adam"].build()
    report = verify(**made)
    lines = str(report).splitlines()
    assert lines[0] == report.headline
    assert lines[0] == "ok: 8 entries agree with autograd, closed form, finite differences, dense chain"
    assert all(name in lines[1] for name in HEADER)
    assert sum(line.startswith('A_opt["lr"]') for line in lines) == 1
    found = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert found["ok"] is True
    assert found["first_wrong"] is None
    assert len(found["checks"]) == len(report.checks) == len(lines) - 2 - len(report.notes)
    undefined = [c for c in found["checks"] if c["verdict"] == "undefined here"]
    assert undefined
    assert all(c["oracle"] == "autograd" and c["expected"] == "nan" for c in undefined)


def test_rich_report_holds_every_number() -> None:
    console = pytest.importorskip("rich.console")
    report = verify(**CASES["unused-embedding"].build())
    output = console.Console(width=report.width, record=True, file=open("/dev/null", "w", encoding="utf-8"))  # noqa: SIM115
    output.print(report)
    text = output.export_text()
    output.file.close()
    assert "…" not in text
    for row in report.rows():
        assert all(cell in text for cell in row)


def test_what_no_oracle_can_judge_is_not_ok() -> None:
    def loss(theta: dict[str, Tensor], phi: dict[str, Tensor], batch: Any) -> Tensor:
        return theta["w"].square().sum() / 2

    made = gimli.Problem(loss, loss, Adam(eps=1e-2)), {"w": torch.ones(2)}, lambda j: None, None
    report = verify(*made, steps=2, oracles=())
    blind = Report(tuple(c._replace(verdict=Verdict.INCONCLUSIVE) for c in report.checks))
    assert report.ok
    assert not blind.ok
    with pytest.raises(VerificationError, match=r'no oracle could judge engine val_loss, engine B_0\["w"\]'):
        blind.assert_ok()


# --- claims from elsewhere -------------------------------------------------------------------------------------------


def momentum_case() -> dict[str, Any]:
    made = CASES["quadratic-momentum"].build()
    del made["closed_form"]
    return made


def test_claims_right_and_wrong() -> None:
    made = momentum_case()
    result = gimli.meta_gradient(**made)
    nested = {"A_opt": result.A_opt, "A_loss": result.A_loss, "B_0": result.B_0, "S_0": result.S_0}
    verify(**made, claimed=nested, oracles=()).assert_ok()
    flat = {"lr": result.A_opt["lr"].item(), "w": result.B_0["w"].numpy()}
    verify(**made, claimed=flat, oracles=()).assert_ok()

    report = verify(**made, claimed={"momentum": result.A_opt["momentum"] * 1.001})
    assert [(c.subject, c.name) for c in report.disagreements] == [("claimed", 'A_opt["momentum"]')] * 4
    assert {c.oracle for c in report.disagreements} == {"autograd", "finite differences", "dense chain", "engine"}
    assert report.of("engine").ok
    assert report.finding is None  # the engine is right: there is no step to name
    with pytest.raises(VerificationError, match=r'^DISAGREES: claimed A_opt\["momentum"\] = 0\.148'):
        report.assert_ok()


def test_a_claim_of_nan_is_named() -> None:
    report = verify(**momentum_case(), claimed={"lr": float("nan")}, oracles=())
    assert report.headline.startswith('DISAGREES: claimed A_opt["lr"] = nan where autograd gives 4.73669')
    assert json.loads(json.dumps(report.to_dict(), allow_nan=False))["checks"][2]["value"] == "nan"


@pytest.mark.parametrize(
    ("claim", "message"),
    [
        ({"lrr": 1.0}, r"claimed: expected names of one meta-parameter each .* got 'lrr'\. .* Did you mean 'lr'\?"),
        ({"w": torch.zeros(3)}, r'claimed: B_0\["w"\]: expected shape \[4\], .* got \[3\]'),
        ({"A_opt": {"beta1": 1.0}}, r'claimed: expected entries among .* got A_opt\["beta1"\]'),
        ({"A_opt": 1.0}, r"claimed: expected entries among .* got A_opt"),
    ],
)
def test_claims_that_fit_nothing(claim: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        verify(**momentum_case(), claimed=claim)


@pytest.mark.parametrize(
    ("claim", "message"),
    [
        ([1.0], "claimed: expected a dict of derivatives, .* got list"),
        ({}, "claimed: expected at least one derivative; got none"),
        ({"B_0": {}}, "claimed: expected at least one derivative; got none"),
        ({"lr": None}, r'claimed: A_opt\["lr"\]: expected numbers or tensors; got .*NoneType'),
        ({"lr": "0.1"}, r'claimed: A_opt\["lr"\]: expected numbers or tensors'),
        ({"w": torch.zeros(4) + 0j}, r'claimed: B_0\["w"\]: expected real numbers; got torch.complex'),
        ({"lr": 0.1, "A_opt": {"lr": 0.2}}, r'claimed: A_opt\["lr"\]: expected one value; got two'),
    ],
)
def test_claims_that_are_no_numbers(claim: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        verify(**momentum_case(), claimed=claim)


@pytest.mark.parametrize("tolerance", [-1.0, 1.0, float("nan"), "1e-3"])
def test_a_tolerance_that_is_none(tolerance: Any) -> None:
    with pytest.raises(ArgumentError, match=r"tolerance: expected a number in \[0, 1\)"):
        verify(**momentum_case(), tolerance=tolerance)


def test_claims_that_are_nearly_right() -> None:
    """A sign, a millionth in one element, a transposed matrix: none is excused."""
    A = torch.tensor([[0.3, -0.8], [0.5, 0.4]])

    def loss(theta: dict[str, Tensor], phi: dict[str, Tensor], batch: Any) -> Tensor:
        return (theta["w"] @ A).sin().square().sum()

    made = {
        "problem": gimli.Problem(loss, loss, Adam(lr=0.1)),
        "theta_0": {"w": torch.tensor([[1.0, 2.0], [3.0, 5.0]])},
        "train_batches": lambda j: None,
        "val_batch": None,
        "steps": 2,
        "phi_opt": {"lr": 0.1},
        "oracles": (),
    }
    right = gimli.meta_gradient(**{k: v for k, v in made.items() if k != "oracles"}).B_0["w"]
    off = right.clone()
    off[0, 1] *= 1 + 1e-6
    assert verify(**made, claimed={"w": right}).ok
    for wrong in (-right, off, right.T, right * (1 + 1e-6)):
        assert not verify(**made, claimed={"w": wrong}).ok


def test_an_ambiguous_claim_is_refused() -> None:
    def loss(theta: dict[str, Tensor], phi: dict[str, Tensor], batch: Any) -> Tensor:
        return (theta["w"] * phi["w"]).square().sum()

    made = gimli.Problem(loss, loss, SGD(lr=0.1)), {"w": torch.ones(2)}, lambda j: None, None
    with pytest.raises(ArgumentError, match="'w', which is in 'A_loss', 'B_0'"):
        verify(*made, steps=1, phi_loss={"w": torch.ones(2)}, claimed={"w": torch.ones(2)})


def test_unknown_oracle() -> None:
    with pytest.raises(ArgumentError, match=r"got 'autograd'\. Give a list of them"):
        verify(**momentum_case(), oracles="autograd")
    for oracles in (("jax",), torch.tensor(1.0), torch.zeros(0)):
        with pytest.raises(ArgumentError, match="oracles: expected some of"):
            verify(**momentum_case(), oracles=oracles)


def example() -> ModuleType:
    pytest.importorskip("sklearn")
    path = Path(__file__).parents[2] / "examples" / "verify_claims.py"
    specification = importlib.util.spec_from_file_location("verify_claims", path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


DETACHED = "ignore:Converting a tensor with requires_grad=True:UserWarning"  # the very fault


@pytest.mark.filterwarnings(DETACHED)
def test_finding_higher_places_eps_elsewhere() -> None:
    pytest.importorskip("higher")
    module = example()
    net = module.network()
    report = verify(
        **module.question(net, 1e-3, {"lr": 0.05, "beta1": 0.9, "beta2": 0.99}),
        claimed=module.claim_of_higher(net, 1e-3),
    )
    assert report.of("engine").ok
    claims = [c for c in report.of("claimed").checks if c.oracle == "finite differences"]
    assert claims
    assert all(c.verdict is Verdict.DISAGREES and c.error > 1e-2 for c in claims)


@pytest.mark.filterwarnings(DETACHED)
def test_finding_higher_has_a_wrong_beta2_gradient() -> None:
    pytest.importorskip("higher")
    module = example()
    net = module.network()
    report = verify(
        **module.question(net, 1e-15, {"lr": 0.05, "beta1": 0.9, "beta2": 0.99}),
        claimed=module.claim_of_higher(net, 1e-15),
    )
    assert report.of("engine").ok
    wrong = [c for c in report.disagreements if c.oracle == "finite differences"]
    assert [c.key for c in wrong] == [("A_opt", "beta2")]
    assert wrong[0].error > 100


def test_finding_torchopt_is_nan_at_a_dead_unit() -> None:
    pytest.importorskip("torchopt")
    module = example()
    alive, dead = module.network(), module.network(dead_unit=True)
    verify(**module.question(alive, 1e-3), claimed=module.claim_of_torchopt(alive, 1e-3)).assert_ok()
    report = verify(**module.question(dead, 1e-3), claimed=module.claim_of_torchopt(dead, 1e-3))
    assert report.of("engine").ok
    against_engine = [c for c in report.of("claimed").checks if c.oracle == "engine"]
    assert len(against_engine) == 4
    assert all(np.isnan(c.value) and c.verdict is Verdict.DISAGREES for c in against_engine)


# --- the command -----------------------------------------------------------------------------------------------------


def gimli_verify(*argv: str) -> int:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return command.run(parser.parse_args(argv))


def test_command_tells_every_case(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "CASES", {name: CASES[name] for name in ("quadratic", "zero-adam", "modules")})
    before = torch.get_rng_state()
    assert gimli_verify() == 0
    assert torch.equal(torch.get_rng_state(), before)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:4]] == ["case", "quadratic", "zero-adam", "modules"]
    assert all(line.endswith("ok") for line in lines[1:4])


def test_command_with_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gimli_verify("--case", "quadratic", "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert gimli_verify("--case", "quadratic", "--json", str(tmp_path / "report.json")) == 0
    assert json.loads((tmp_path / "report.json").read_text()) == printed
    assert printed["cases"]["quadratic"]["ok"] is True
    assert "quadratic under SGD" in capsys.readouterr().out


USER = """
import torch, gimli_core as gimli
def loss(theta, phi, batch):
    return (theta["w"] * phi["a"]).square().sum()
def build(**claimed):
    problem = gimli.Problem(loss, loss, gimli.optimizers.SGD(lr=0.1))
    return problem, dict(theta_0={"w": torch.ones(2)}, train_batches=lambda j: None, val_batch=None, steps=3,
                         phi_loss={"a": torch.ones(2)}, oracles=(), **claimed)
def wrong():
    return build(claimed={"a": torch.zeros(2)})
def as_dict():
    problem, more = build()
    return {"problem": problem, **more}
def misspelt():
    return build(claim={})
def nothing():
    pass
three = 3
"""


@pytest.fixture
def users_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "users_problem.py").write_text(USER)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "users_problem", raising=False)


@pytest.mark.usefixtures("users_module")
def test_command_on_a_problem_of_ones_own(capsys: pytest.CaptureFixture[str]) -> None:
    assert gimli_verify("users_problem:build") == 0
    assert gimli_verify("users_problem:as_dict") == 0
    assert "ok: 3 entries agree with autograd" in capsys.readouterr().out
    assert gimli_verify("users_problem:wrong") == 1
    assert "DISAGREES: claimed" in capsys.readouterr().out


@pytest.mark.usefixtures("users_module")
@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["users_problem"], "source 'users_problem': expected MODULE:FUNCTION"),
        (["users_problen:build"], "No module named 'users_problen'"),
        (["users_problem:bild"], "got no 'bild' in it. Check the name. Did you mean 'build'?"),
        (
            ["users_problem:three"],
            "source 'users_problem:three': expected a function that can be called without arguments",
        ),
        (["users_problem:nothing"], "source 'users_problem:nothing': expected to return a dict"),
        (["users_problem:misspelt"], "unexpected keyword argument 'claim'"),
        (["--case", "quadratik"], "Did you mean 'quadratic'?"),
        (["users_problem:build", "--case", "quadratic"], "MODULE:FUNCTION or --case"),
        (
            ["--case", "quadratic", "--json", "no/such/folder.json"],
            "--json 'no/such/folder.json': expected a file that can be written",
        ),
    ],
)
def test_command_refuses_bad_input(argv: list[str], message: str) -> None:
    with pytest.raises(ArgumentError) as raised:
        gimli_verify(*argv)
    assert message in str(raised.value)


def test_findings_of_bergson() -> None:
    """Its Muon detaches weight decay; its AdamW at eps_root = 0 is NaN with a dead unit. Restated where it is not."""
    module = example()
    muon, adamw = module.rules_of_bergson().values()
    net = module.network(biases=False)
    asked = module.question_of_muon(net)
    report = verify(**asked, claimed=module.claim_of_bergson(net, muon), oracles=["autograd"])
    assert report.of("engine").ok
    claims = report.of("claimed").checks
    assert claims
    assert all(c.verdict is Verdict.DISAGREES and 0.01 < c.error < 0.1 for c in claims)
    net = module.network(dead_unit=True)
    found = module.claim_of_bergson(net, adamw)["B_0"]
    assert all(bool(v.isnan().any()) for v in found.values())
    assert verify(**module.question_of_adamw(net), oracles=["autograd"]).ok
