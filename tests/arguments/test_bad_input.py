"""Bad input is refused before any work; the message's first line names argument, expectation, arrival and remedy."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gimli_core as gimli
import gimli_core.meta_parameters.leaf as leaf_module
from gimli_core.errors import ArgumentError, GimliError, NotFiniteError, ReplayError
from gimli_core.memory import RetainGraphs, StoreStates
from gimli_core.optimizers import SGD, Adagrad, Adam


def loss(theta: dict[str, Tensor], phi: dict[str, Tensor], batch: Any) -> Tensor:
    return ((theta["w"] - batch) ** 2).sum()


def arguments(**changed: Any) -> dict[str, Any]:
    problem = gimli.Problem(
        changed.pop("train_loss", loss), changed.pop("val_loss", loss), changed.pop("optimizer", SGD(lr=0.1))
    )
    return {
        "problem": problem,
        "theta_0": {"w": torch.tensor([1.0, 2.0])},
        "train_batches": [0.0, 1.0, 2.0],
        "val_batch": 0.5,
        **changed,
    }


W = torch.zeros(2, dtype=torch.float64)
WARM = {"step": 1, "momentum_buffer": {"w": W}}
MOMENTUM = {"optimizer": SGD(momentum=0.9)}

CASES: dict[str, tuple[dict[str, Any], list[str]]] = {
    # theta that is not a dict of floating tensors
    "theta, a module": ({"theta_0": nn.Linear(2, 2)}, ["theta_0: expected a dict", "got Linear", "named_parameters()"]),
    "theta, a generator": (
        {"theta_0": nn.Linear(2, 2).named_parameters()},
        ["theta_0: expected a dict", "got generator"],
    ),
    "theta, a list": ({"theta_0": [W]}, ["theta_0: expected a dict", "got list"]),
    "theta, empty": ({"theta_0": {}}, ["theta_0: expected a dict", "an empty dict"]),
    "theta, integers": (
        {"theta_0": {"w": torch.tensor([1, 2])}},
        ["theta_0['w']: expected a dense floating", "torch.int64"],
    ),
    "theta, a number": ({"theta_0": {"w": 1.0}}, ["theta_0['w']", "got float"]),
    "theta, complex": ({"theta_0": {"w": W + 0j}}, ["theta_0['w']", "complex"]),
    "theta, sparse": ({"theta_0": {"w": torch.eye(2).to_sparse()}}, ["theta_0['w']", "sparse"]),
    "theta, without values": (
        {"theta_0": {"w": W.to("meta")}},
        ["theta_0['w']: expected a tensor that holds values", "meta device"],
    ),
    "theta, of a lazy module": (
        {"theta_0": dict(nn.LazyLinear(2).named_parameters())},
        ["theta_0['weight']: expected a tensor that holds values", "lazy module"],
    ),
    "theta, nan": ({"theta_0": {"w": W / 0}}, ["theta_0['w']: expected finite values", "inf or nan"]),
    "theta, a key": ({"theta_0": {0: W}}, ["theta_0: expected names that are strings", "the key 0"]),
    "theta, nested": ({"theta_0": {"w": {"v": W}}}, ["theta_0['w']", "got dict"]),
    "theta, all frozen": ({"theta_0": {"w": nn.Parameter(W, False)}}, ["theta_0: expected at least one trained entry"]),
    "theta, twice": ({"theta_0": {"w": W, "v": W}}, ["theta_0['v']: expected each tensor once", "'w' again"]),
    # losses
    "loss, a vector": (
        {"train_loss": lambda t, p, b: t["w"]},
        ["train_loss: expected to return a scalar", "shape [2]", ".sum()"],
    ),
    "loss, shape [1]": ({"train_loss": lambda t, p, b: t["w"][:1]}, ["train_loss", "shape [1]"]),
    "loss, a float": ({"train_loss": lambda t, p, b: 1.0}, ["train_loss", "got float"]),
    "loss, none": ({"val_loss": lambda t, p, b: None}, ["val_loss", "got NoneType"]),
    "loss, an integer": ({"val_loss": lambda t, p, b: (t["w"] > 0).sum()}, ["val_loss", "torch.int64"]),
    "loss without theta": (
        {"train_loss": lambda t, p, b: torch.ones((), requires_grad=True) * 2},
        ["train_loss: expected a loss that depends on theta", "no gradient path", ".detach()"],
    ),
    "loss, detached": ({"train_loss": lambda t, p, b: t["w"].detach().sum()}, ["train_loss", "no gradient path"]),
    # batches
    "batches run out": ({"steps": 5}, ["train_batches: expected a batch for each of the 5 steps", "got 3", "lambda j"]),
    "batches, a generator": (
        {"train_batches": (b for b in [1.0])},
        ["train_batches: expected a sequence", "generator", "list(...)"],
    ),
    "batches, an iterator": ({"train_batches": iter([1.0])}, ["train_batches", "list_iterator"]),
    "batches, zipped": ({"train_batches": zip([1.0], [2.0], strict=True), "steps": 1}, ["train_batches", "a zip"]),
    "batches, a loader": (
        {"train_batches": torch.utils.data.DataLoader([1.0, 2.0])},
        ["train_batches", "DataLoader", "only in order"],
    ),
    "batches, a dict": ({"train_batches": {0: 1.0}, "steps": 1}, ["train_batches", "got dict"]),
    "batches, a tensor of one number": ({"train_batches": torch.tensor(1.0)}, ["train_batches: expected", "lambda j"]),
    "batches, a number": ({"train_batches": 1.0, "steps": 1}, ["train_batches", "got float", "lambda j: batch"]),
    "batches, a scalar": ({"train_batches": torch.tensor(1.0), "steps": 1}, ["train_batches", "got Tensor"]),
    "batches, none": ({"train_batches": None, "steps": 1}, ["train_batches", "got NoneType"]),
    "batches, empty": ({"train_batches": []}, ["train_batches: expected at least one batch", "steps=0"]),
    "a function without steps": ({"train_batches": lambda j: 1.0}, ["steps: expected a number", "got None"]),
    # steps
    "steps < 0": ({"steps": -1}, ["steps: expected a whole number J >= 0", "got -1", "steps=0"]),
    "steps, a float": ({"steps": 2.0}, ["steps", "got 2.0"]),
    "steps, a switch": ({"steps": True}, ["steps", "got True"]),
    # phi_loss
    "phi_loss, a tensor": ({"phi_loss": W}, ["phi_loss: expected a dict", "got Tensor"]),
    "phi_loss, a list": ({"phi_loss": {"a": [1.0]}}, ["phi_loss['a']", "got list"]),
    "phi_loss, an integer": ({"phi_loss": {"a": torch.tensor(1)}}, ["phi_loss['a']", "torch.int64"]),
    "phi_loss, a switch": ({"phi_loss": {"a": True}}, ["phi_loss['a']", "got bool"]),
    "phi_loss, another dtype": (
        {"phi_loss": {"a": W.float()}},
        ["phi_loss['a']: expected torch.float64", "torch.float32"],
    ),
    "phi_loss, a key": ({"phi_loss": {0: W}}, ["phi_loss: expected names that are strings", "the key 0"]),
    "phi_loss, nan": ({"phi_loss": {"a": float("nan")}}, ["phi_loss['a']: expected finite"]),
    # hyperparameters
    "phi_opt, a key that is no name": (
        {"phi_opt": {Ellipsis: 0.1}},
        ["phi_opt: expected hyperparameters of SGD", "got Ellipsis"],
    ),
    "beta2, 1 in theta's dtype": (
        {
            "theta_0": {"w": W.bfloat16()},
            "optimizer": Adam(),
            "phi_opt": {"beta2": torch.full((2,), 0.999)},
        },
        ["phi_opt['beta2'], rounded to torch.bfloat16: expected a number in [0, 1); got 1.0"],
    ),
    "lr, nan": ({"phi_opt": {"lr": float("nan")}}, ["phi_opt['lr']: expected finite values"]),
    "a part's beta, a tensor": (
        {
            "optimizer": gimli.optimizers.Partition({"all": (Adam(), ["*"])}),
            "phi_opt": {"all.beta1": torch.tensor(1.5)},
        },
        ["phi_opt['all.beta1']: expected a number in [0, 1); got 1.5"],
    ),
    "a value per step, and no step": (
        {"steps": 0, "phi_opt": {"lr": gimli.per_step(torch.zeros(0))}},
        ["phi_opt['lr']: expected no value per step, as J = 0", "[0]"],
    ),
    "groups, a number": ({"optimizer": SGD(groups=3)}, ["optimizer groups: expected a dict", "got int"]),  # type: ignore[arg-type]
    # state_0
    "state, a tensor": ({**MOMENTUM, "state_0": W}, ["state_0: expected a dict with the keys", "got Tensor"]),
    "state, torch.optim's": (
        {**MOMENTUM, "state_0": {0: {"momentum_buffer": W}}},
        ["state_0", "'step', 'momentum_buffer'"],
    ),
    "state, a misspelt slot": (
        {**MOMENTUM, "state_0": {"step": 1, "momentum_bufer": {"w": W}}},
        ["state_0", "Did you mean 'momentum_buffer'?"],
    ),
    "state, another tensor": (
        {**MOMENTUM, "state_0": {**WARM, "momentum_buffer": {"v": W}}},
        ["state_0['momentum_buffer']", "'w'"],
    ),
    "state, a shape": (
        {**MOMENTUM, "state_0": {**WARM, "momentum_buffer": {"w": torch.zeros(3)}}},
        ["state_0['momentum_buffer']['w']: expected a tensor of shape [2]", "[3]"],
    ),
    "state, nan": ({**MOMENTUM, "state_0": {**WARM, "momentum_buffer": {"w": W / 0}}}, ["state_0", "finite"]),
    "state, steps < 0": (
        {**MOMENTUM, "state_0": {**WARM, "step": -1}},
        ["state_0['step']: expected a whole number", "got -1"],
    ),
    "state, half a step": ({**MOMENTUM, "state_0": {**WARM, "step": 0.5}}, ["state_0['step']", "got 0.5"]),
    "state of a rule that keeps none": ({"state_0": WARM}, ["state_0", "'step'"]),
    # val_weights
    "weights, too few": (
        {"val_weights": [1.0]},
        ["val_weights: expected 3 numbers (for theta_1 … theta_3) or 4", "got 1"],
    ),
    "weights, zeros": ({"val_weights": [0.0] * 3}, ["val_weights", "not 0"]),
    "weights, nan": ({"val_weights": [1.0, float("nan"), 1.0]}, ["val_weights: expected finite"]),
    "weights, a number": ({"val_weights": 1.0}, ["val_weights", "float"]),
    "weights, a matrix": ({"val_weights": torch.ones(3, 2)}, ["val_weights", "Tensor"]),
    # the rest
    "memory, a class": ({"memory": StoreStates}, ["memory: expected a schedule", "Call it"]),
    "memory, a size": ({"memory": "8MB"}, ["memory: ", "got '8MB'", "memory=gimli.memory.Budget('8MB')."]),
    "memory, a number": ({"memory": 2**20}, ["memory: ", "got 1048576", "memory=gimli.memory.Budget(1048576)."]),
    "memory, a string": ({"memory": "store"}, ["memory: ", "got 'store'", "gimli.memory.StoreStates()"]),
    "memory, a switch": ({"memory": True}, ["memory: ", "got True", "gimli.memory.StoreStates()"]),
    "approximation": ({"approximation": "first order"}, ["approximation: expected None, or one of", "'first order'"]),
    "problem": ({"problem": loss}, ["problem: expected a gimli.Problem", "got function"]),
}


@pytest.mark.parametrize("call", [gimli.meta_gradient, gimli.unroll], ids=["meta_gradient", "unroll"])
@pytest.mark.parametrize("case", CASES)
def test_refused(case: str, call: Any) -> None:
    changed, says = CASES[case]
    with pytest.raises(ArgumentError) as caught:
        call(**arguments(**changed))
    assert isinstance(caught.value, (GimliError, ValueError))
    first_line = str(caught.value).splitlines()[0]
    assert all(part in first_line for part in says), first_line
    assert ": expected " in first_line
    assert "; got " in first_line
    assert not first_line.rstrip().endswith("; got")


@pytest.mark.parametrize(
    "lr",
    [
        torch.tensor(-0.1, dtype=torch.float64),
        gimli.per_step(torch.tensor([0.1, -0.1, 0.1], dtype=torch.float64)),
        {"w": torch.tensor(-0.1, dtype=torch.float64)},
        gimli.per_element(torch.tensor([0.1, -0.1], dtype=torch.float64)),
    ],
    ids=["one", "per step", "per tensor", "per element"],
)
def test_a_rate_that_is_learned_may_be_below_zero(lr: Any) -> None:
    """As Meta-SGD's are: the step is up the slope then, and as differentiable as any other. So may a number be that is
    differenced at the end of its range."""
    gimli.verify(**arguments(phi_opt={"lr": lr, "weight_decay": 0.0})).assert_ok()


@pytest.mark.parametrize("value", [-1.0, torch.tensor(-1.0), {"w": -1}], ids=["number", "tensor", "by name"])
def test_a_number_that_the_constructor_would_refuse_is_told_of_once(
    value: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(leaf_module, "_TOLD", set())
    for lr in (0.1, value, value):
        gimli.meta_gradient(**arguments(phi_opt={"lr": lr}))
    (told,) = (record.getMessage() for record in caplog.records)
    label = "phi_opt['lr']['w']" if isinstance(value, dict) else "phi_opt['lr']"
    assert f"{label}: expected a number in [0, inf); got -1.0." in told
    assert "SGD would refuse it" in told


def test_it_is_told_of_in_a_later_call_of_the_same_problem_too(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(leaf_module, "_TOLD", set())
    made = arguments()
    for lr in (0.1, 0.2, -1.0, -2.0):
        gimli.meta_gradient(**{**made, "phi_opt": {"lr": lr}})
    (told,) = (record.getMessage() for record in caplog.records)
    assert "phi_opt['lr']: expected a number in [0, inf); got -1.0." in told


def test_a_refused_iterator_is_not_read() -> None:
    iterator = iter([1.0, 2.0])
    with pytest.raises(ArgumentError):
        gimli.meta_gradient(**arguments(train_batches=iterator))
    assert list(iterator) == [1.0, 2.0]


def test_nothing_is_run_before_the_check() -> None:
    def never(theta: Any, phi: Any, batch: Any) -> Tensor:
        raise AssertionError("the loss was called")

    for changed in ({"steps": -1}, {"theta_0": {}}, {"phi_opt": {"rate": 1.0}}, {"memory": 3}, {"val_weights": [1.0]}):
        with pytest.raises(ArgumentError):
            gimli.meta_gradient(**arguments(train_loss=never, val_loss=never, **changed))


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: SGD(lr=-0.1), ["SGD(lr=…)", "[0, inf)", "-0.1"]),
        (lambda: SGD(lr=float("nan")), ["SGD(lr=…)", "nan"]),
        (lambda: SGD(nesterov=True), ["SGD(nesterov=True)", "momentum > 0"]),
        (lambda: SGD(momentum=0.9, dampening=0.1, nesterov=True), ["dampening=0.1"]),
        (lambda: Adam(betas=(0.9, 1.0)), ["Adam(beta2=…)", "[0, 1)", "1.0"]),
        (lambda: Adam(betas=0.9), ["Adam(betas=…)", "a pair", "0.9"]),
        (lambda: Adagrad(eps=-1.0), ["Adagrad(eps=…)", "-1.0"]),
        (lambda: gimli.Problem(3, loss, SGD()), ["train_loss: expected a function", "got int"]),
        (lambda: gimli.Problem(loss, None, SGD()), ["val_loss: expected a function", "got NoneType"]),
        (
            lambda: gimli.Problem(loss, loss, SGD),
            ["optimizer: expected an optimizer of gimli_core", "the class SGD", "SGD(...)"],
        ),
        (
            lambda: gimli.Problem(loss, loss, torch.optim.SGD([W.clone().requires_grad_()], lr=0.1)),
            ["optimizer: expected an optimizer of gimli_core", "torch.optim.sgd.SGD", "without parameters"],
        ),
        (
            lambda: gimli.Problem(loss, loss, SGD(), modules=nn.Linear(1, 1)),
            ["modules", "a list", "got Linear", "[net]"],
        ),
        (lambda: gimli.Problem(loss, loss, SGD(), modules=[loss]), ["modules", "something else"]),
    ],
)
def test_refused_when_built(build: Any, says: list[str]) -> None:
    with pytest.raises(ArgumentError) as caught:
        build()
    assert all(part in str(caught.value).splitlines()[0] for part in says), str(caught.value)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"theta": [W]}, ["theta: expected a dict", "got list"]),
        ({"theta": {"w": 1.0}}, ["theta: expected a dict {name: floating-point tensor}"]),
        ({"G": {"v": W}}, ["G: expected a dict", "'v'"]),
        ({"G": {"w": torch.zeros(())}}, ["G['w']: expected shape [2]", "got []"]),
        ({"state": {"step": 0}}, ["state: expected a dict with the keys 'step', 'exp_avg', 'exp_avg_sq'"]),
        ({"hyper": {"w": {"lr": 0.1}}}, ["hyper: expected {name: {hyperparameter: value}} with 'lr', 'beta1'"]),
        ({"hyper": {"lr": 0.1}}, ["hyper: expected"]),
        ({"lr": {"w": 0.1}}, ["hyper: expected the values of one step", "'lr'"]),
    ],
)
def test_jacobians_refuse(given: dict[str, Any], says: list[str]) -> None:
    optimizer = Adam(lr=given.pop("lr", 0.1))
    with pytest.raises(ArgumentError) as caught:
        optimizer.jacobians(**{"theta": {"w": W}, **given})
    assert all(part in str(caught.value) for part in says), str(caught.value)


@pytest.mark.parametrize("actual", ["a lazy module", "the meta device"])
@pytest.mark.parametrize("name", ["theta_0", "train_batches", "val_batch", "phi_loss", "phi_opt", "state_0"])
def test_tensors_without_values_are_refused_by_name(name: str, actual: str) -> None:
    bad = nn.LazyLinear(2).weight if actual == "a lazy module" else W.to("meta")
    place = {"train_batches": [bad, bad], "val_batch": bad}.get(name, {"w": bad})
    with pytest.raises(ArgumentError, match=rf"{name}\S*: expected a tensor that holds values; got .* {actual}"):
        gimli.meta_gradient(**arguments(**{name: place}))


@pytest.mark.parametrize("name", ["theta_0", "train_batches", "val_batch", "phi_loss", "phi_opt"])
def test_tensors_made_in_inference_mode_are_refused(name: str) -> None:
    def loss(theta: Any, phi: Any, target: Any) -> Any:
        return phi["scale"] * (theta["w"] - target).square().sum()

    def made() -> dict[str, Any]:
        one = torch.ones(2)
        phi = {"phi_loss": {"scale": torch.ones(())}, "phi_opt": {"lr": torch.tensor(0.1)}}
        return {"theta_0": {"w": torch.zeros(2)}, "train_batches": [one, one], "val_batch": one, **phi}

    with torch.inference_mode():
        bad = made()[name]
    problem = gimli.Problem(loss, loss, gimli.optimizers.SGD(lr=0.1))
    with pytest.raises(ArgumentError, match=rf"{name}\S*: expected a tensor made outside of torch.inference_mode"):
        gimli.meta_gradient(problem, **{**made(), name: bad})


def test_inference_mode_is_refused() -> None:
    with torch.inference_mode(), pytest.raises(ArgumentError, match=r"torch.inference_mode: expected it to be off"):
        gimli.meta_gradient(**arguments())


# --- what breaks on the way --------------------------------------------------------------------------------------


@pytest.mark.parametrize("memory", [RetainGraphs(), StoreStates()], ids=str)
@pytest.mark.parametrize(
    ("train_loss", "batches", "says"),
    [
        (lambda t, p, b: (t["w"] * b).sum(), [1.0, float("nan"), 1.0], ["j = 1", "loss of nan", "G_1 of 'w'"]),
        (lambda t, p, b: (t["w"].exp() ** b).sum(), [1.0, 1.0, 1e6], ["j = 2", "loss of inf"]),
        # sqrt has slope infinity at 0: the loss is finite, and the gradient is what breaks, in one parameter only
        (lambda t, p, b: (t["v"] * b).sqrt().sum() + t["w"].sum(), [1.0, 0.0, 1.0], ["j = 1", "G_1 of 'v'", "first"]),
        (lambda t, p, b: (1e200 * t["v"] * b).sum() ** 2 + t["w"].sum(), [0.0, 1.0, 1.0], ["j = 1", "'v'"]),
    ],
)
def test_not_finite_names_the_step_and_the_parameter(
    memory: Any, train_loss: Any, batches: Any, says: list[str]
) -> None:
    theta_0 = {"w": torch.tensor([1.0, 2.0]), "v": torch.tensor([4.0])}
    keep = {"val_loss": lambda t, p, b: t["w"].sum() + t["v"].sum()}
    # "w" alone in the first two
    wrapped = lambda t, p, b: train_loss(t, p, b) + 0 * t["v"].sum()  # noqa: E731
    with pytest.raises(NotFiniteError) as caught:
        gimli.meta_gradient(
            **arguments(theta_0=theta_0, train_loss=wrapped, train_batches=batches, memory=memory, **keep)
        )
    first_line = str(caught.value).splitlines()[0]
    assert all(part in first_line for part in ["train_loss at inner step", *says]), first_line


def test_an_update_that_breaks_is_named() -> None:
    """A finite gradient, and a step that overflows."""
    with pytest.raises(NotFiniteError, match=r"theta_1 of 'w' is not finite already: the update of step 0 broke it"):
        gimli.meta_gradient(**arguments(optimizer=SGD(lr=1e308), train_batches=[1e3, 1.0]))
    with pytest.raises(NotFiniteError, match=r"theta_1 of 'w': expected finite values"):
        gimli.meta_gradient(**arguments(optimizer=SGD(lr=1e308), train_batches=[1e3]))


def test_a_validation_loss_that_breaks_is_named() -> None:
    with pytest.raises(NotFiniteError, match=r"val_loss: expected a finite number; got nan, though theta_3 is finite"):
        gimli.meta_gradient(**arguments(val_batch=float("nan")))


@pytest.mark.parametrize("more", [{}, {"compile": "steps", "memory": StoreStates()}], ids=["eager", "compiled"])
@pytest.mark.parametrize(
    ("flawed", "says"),
    [
        (torch.zeros(0, 2), r"Its batch holds an empty tensor, of shape \(0, 2\): drop that batch"),
        (torch.tensor([1.0, float("nan")]), r"Its batch holds inf or nan, in a tensor of shape \(2,\): clean the data"),
    ],
    ids=["empty", "nan"],
)
def test_a_batch_that_no_loss_is_finite_on_is_named(flawed: torch.Tensor, says: str, more: Any) -> None:
    """The learning rate is not to blame."""
    mean = lambda t, p, b: ((t["w"] * b).mean() ** 2).sum()  # noqa: E731
    keep = {"train_loss": mean, **more}
    with pytest.raises(NotFiniteError, match=r"train_loss at inner step j = 0.*" + says):
        gimli.meta_gradient(**arguments(train_batches=[flawed], **keep))
    with pytest.raises(NotFiniteError, match=r"val_loss.*" + says):
        gimli.meta_gradient(**arguments(train_batches=[torch.ones(2)], val_batch=flawed, val_loss=mean, **keep))


def test_a_large_sum_is_not_taken_for_infinity() -> None:
    """The entries are finite, though their sum is not."""
    huge = {"train_loss": lambda t, p, b: (t["w"] * 1e308).sum() * 1.0}
    result = gimli.meta_gradient(
        **arguments(theta_0={"w": torch.full((4,), 1e-10)}, optimizer=SGD(lr=1e-308), train_batches=[0.0], **huge)
    )
    assert bool(torch.isfinite(result.B_0["w"]).all())


def test_a_loss_that_is_not_deterministic() -> None:
    """Refused where steps are replayed; welcome where they are not."""
    generator = torch.Generator().manual_seed(0)

    def noisy(theta: dict[str, Tensor], phi: dict[str, Tensor], batch: Any) -> Tensor:
        return ((theta["w"] - torch.rand((), generator=generator)) ** 2).sum()

    with pytest.raises(ReplayError, match=r"train_loss: expected the same value twice.*RetainGraphs\(\)"):
        gimli.meta_gradient(**arguments(train_loss=noisy, memory=StoreStates()))
    with pytest.raises(ReplayError, match=r"train_loss at inner step j = 1: expected .* again"):
        gimli.meta_gradient(**arguments(train_loss=noisy, memory=StoreStates(), check=False))
    assert gimli.meta_gradient(**arguments(train_loss=noisy, memory=RetainGraphs())).B_0["w"].any()


def test_batches_that_change_on_replay() -> None:
    seen: list[int] = []

    def batch(j: int) -> float:
        seen.append(j)
        return float(len(seen))

    with pytest.raises(ReplayError):
        gimli.meta_gradient(**arguments(train_batches=batch, steps=3, memory=StoreStates()))


def test_an_error_in_the_loss_tells_the_step() -> None:
    def fails(theta: dict[str, Tensor], phi: dict[str, Tensor], batch: float) -> Tensor:
        if batch == 2.0:
            raise KeyError("labels")
        return loss(theta, phi, batch)

    with pytest.raises(KeyError, match="labels") as caught:
        gimli.meta_gradient(**arguments(train_loss=fails))
    assert caught.value.__notes__ == ["in train_loss", "at inner step j = 2 of 3"]
    with pytest.raises(KeyError, match="absent") as caught:
        gimli.meta_gradient(**arguments(val_loss=lambda t, p, b: t["absent"]))
    assert caught.value.__notes__[0] == "in val_loss"
    assert caught.value.__notes__[1].startswith("while the requirements were tested")


def test_a_function_of_j_that_reads_an_iterator() -> None:
    read = iter([0.0] * 9)
    with pytest.raises(ArgumentError, match=r"train_batches: expected a batch for each of the 20 steps; got StopIter"):
        gimli.meta_gradient(**arguments(train_batches=lambda j: next(read), steps=20))
