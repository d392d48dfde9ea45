"""The imperative inner loop gives the engine's meta-gradient, torch.optim's trajectory and autograd's derivatives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

import gimli_core as gimli
import gimli_core.inner_loop as inner_loop
from gimli_core.inner_loop.differentiable_step import differentiable_step
from gimli_core.optimizers.recordable import TWICE
from tests.inner_loop.rules import ALL, ALL_IDS, IDS, RULES, as_options, live

ROUNDING = 1e-11  # float64, a few hundred operations, condition numbers up to 1e3
STEPS = 4

SGD, Adam, AdamW, Adagrad = torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.Adagrad


# class, fixed options, options that are learned
def small_problem() -> tuple[nn.Module, Tensor, Tensor]:
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)), torch.randn(6, 3), torch.randn(6, 1)


def tensors(learned: dict[str, float]) -> dict[str, Tensor]:
    return {k: torch.tensor(v, requires_grad=True) for k, v in learned.items()}


def imperative(kind: Any, fixed: dict[str, Any], values: dict[str, float], order: int = 1) -> list[Tensor]:
    """The outer loss and its gradients with respect to the module's parameters and the learned options."""
    torch.manual_seed(1)
    module, x, y = small_problem()
    learned = tensors(values)
    override = {k: [v] for k, v in as_options(learned).items()}
    opt = live(kind, module, fixed, values)
    with inner_loop.innerloop_ctx(module, opt, copy_initial_weights=False, override=override) as (fmodel, diffopt):
        for j in range(STEPS):
            diffopt.step(((fmodel(x) - y) ** 2).mean() * (1 + j))
        loss = ((fmodel(x[:3]) - y[:3]) ** 2).mean()
        return differentiated(loss, [*module.parameters(), *learned.values()], order)


def differentiated(loss: Tensor, leaves: list[Tensor], order: int) -> list[Tensor]:
    """The loss and its gradient; of second order, the gradient of the sum of the gradient's sines."""
    found = torch.autograd.grad(loss, leaves, create_graph=order > 1)
    if order > 1:
        found = torch.autograd.grad(sum(g.sin().sum() for g in found), leaves)
    return [loss.detach(), *found]


def plain(kind: Any, fixed: dict[str, Any], values: dict[str, float], order: int = 1) -> list[Tensor]:
    """The same by autograd, through the rule's own step written out as a plain unroll."""
    torch.manual_seed(1)
    module, x, y = small_problem()
    learned = tensors(values)
    decoupled = {"decoupled_weight_decay"} & set(fixed)
    name = "AdamW" if decoupled else kind.__name__
    options = {k: v for k, v in fixed.items() if k not in decoupled}
    rule = getattr(gimli.optimizers, name)(**options, **as_options(learned))
    theta: dict[str, Tensor] = dict(module.named_parameters())
    leaves = [*theta.values(), *learned.values()]
    hyper = {k: {n: torch.as_tensor(v, dtype=torch.float64) for n, v in rule.hyperparameters().items()} for k in theta}
    state = rule.initial_state(theta, hyper)
    for j in range(STEPS):
        loss = ((functional_call(module, theta, (x,)) - y) ** 2).mean() * (1 + j)
        G = dict(zip(theta, torch.autograd.grad(loss, list(theta.values()), create_graph=True), strict=True))
        theta, state = _out_of_place(rule, theta, state, G, hyper)
    return differentiated(((functional_call(module, theta, (x[:3],)) - y[:3]) ** 2).mean(), leaves, order)


def _out_of_place(rule: Any, theta: Any, state: Any, G: Any, hyper: Any) -> Any:
    """The rule's step as torch.optim's formulas say it, with nothing done in place."""
    new_theta, new_state = {}, {slot: {} for slot in state if slot != "step"}
    t = state["step"] + 1
    for k, p in theta.items():
        h, g = hyper[k], -G[k] if rule.maximize else G[k]
        kind = type(rule).__name__
        if kind != "AdamW":
            g = g + h["weight_decay"] * p
        if kind == "SGD":
            d = g
            if rule.slots():
                b = g if t == 1 else h["momentum"] * state["momentum_buffer"][k] + (1 - h["dampening"]) * g
                new_state["momentum_buffer"][k] = b
                d = g + h["momentum"] * b if rule.nesterov else b
            new_theta[k] = p - h["lr"] * d
        elif kind == "Adagrad":
            x = new_state["sum"][k] = state["sum"][k] + g * g
            new_theta[k] = p - h["lr"] / (1 + (t - 1) * h["lr_decay"]) * g / (x.sqrt() + h["eps"])
        else:
            m = new_state["exp_avg"][k] = h["beta1"] * state["exp_avg"][k] + (1 - h["beta1"]) * g
            x = new_state["exp_avg_sq"][k] = h["beta2"] * state["exp_avg_sq"][k] + (1 - h["beta2"]) * g * g
            if rule.amsgrad:
                x = new_state["max_exp_avg_sq"][k] = torch.maximum(state["max_exp_avg_sq"][k], x)
            if kind == "AdamW":
                p = p * (1 - h["lr"] * h["weight_decay"])
            d = (x / (1 - h["beta2"] ** t)).sqrt() + h["eps"]
            new_theta[k] = p - h["lr"] / (1 - h["beta1"] ** t) * m / d
    return new_theta, {"step": t, **new_state}


def assert_close(found: list[Tensor], expected: list[Tensor], rtol: float = ROUNDING) -> None:
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=rtol * float(b.abs().max()))


@pytest.mark.parametrize(("kind", "fixed", "values"), RULES, ids=IDS)
def test_first_derivatives_are_those_of_a_plain_unroll(
    kind: Any, fixed: dict[str, Any], values: dict[str, float]
) -> None:
    assert_close(imperative(kind, fixed, values), plain(kind, fixed, values))


@pytest.mark.parametrize(("kind", "fixed", "values"), RULES, ids=IDS)
def test_second_derivatives_are_those_of_a_plain_unroll(
    kind: Any, fixed: dict[str, Any], values: dict[str, float]
) -> None:
    assert_close(imperative(kind, fixed, values, order=2), plain(kind, fixed, values, order=2), rtol=100 * ROUNDING)


def test_second_derivatives_are_tested_for_every_rule_that_has_them() -> None:
    tested = {"AdamW" if "decoupled_weight_decay" in fixed else kind.__name__ for kind, fixed, _ in RULES}
    assert tested == {kind.__name__ for kind in TWICE}


class Frozen(gimli.optimizers.SGD):
    """SGD under another name, for which nobody has vouched."""


def test_second_derivatives_through_another_rule_are_refused() -> None:
    theta = {"w": torch.tensor([1.0, 2.0], requires_grad=True)}
    rule = Frozen(lr=0.1)
    hyper = {"w": {n: torch.tensor(float(v)) for n, v in rule.hyperparameters().items()}}
    state = rule.initial_state(theta, hyper)
    (G,) = torch.autograd.grad((theta["w"] ** 3).sum(), theta["w"], create_graph=True)
    stepped, _ = differentiable_step(rule, theta, state, {"w": G}, hyper)
    (first,) = torch.autograd.grad(stepped["w"].sum(), theta["w"], create_graph=True)
    torch.testing.assert_close(first.detach(), 1 - 0.1 * 6 * theta["w"].detach())
    with pytest.raises(gimli.errors.SecondDerivativeError, match="Frozen"):
        torch.autograd.grad(first.sum(), theta["w"])


@pytest.mark.parametrize(("kind", "fixed", "values"), ALL, ids=ALL_IDS)
def test_the_engine_gives_the_same_meta_gradient(kind: Any, fixed: dict[str, Any], values: dict[str, float]) -> None:
    torch.manual_seed(1)
    module, x, y = small_problem()
    decoupled = kind is Adam and "decoupled_weight_decay" in fixed
    options = {k: v for k, v in fixed.items() if not decoupled}
    options |= {"momentum": 0.5} if "nesterov" in fixed else {}  # a start that phi_opt replaces
    name = "AdamW" if decoupled else kind.__name__
    problem = gimli.Problem(
        lambda theta, phi, j: ((functional_call(module, theta, (x,)) - y) ** 2).mean() * (1 + j),
        lambda theta, phi, _: ((functional_call(module, theta, (x[:3],)) - y[:3]) ** 2).mean(),
        getattr(gimli.optimizers, name)(**options),
    )
    result = gimli.meta_gradient(
        problem,
        dict(module.named_parameters()),
        lambda j: j,
        None,
        steps=STEPS,
        phi_opt={k: torch.tensor(v) for k, v in values.items()},
    )
    assert_close(imperative(kind, fixed, values), [result.val_loss, *result.B_0.values(), *result.A_opt.values()])


@pytest.mark.parametrize("track", [True, False], ids=["tracked", "plain"])
@pytest.mark.parametrize(("kind", "fixed", "values"), ALL, ids=ALL_IDS)
def test_the_trajectory_is_torch_optims_from_a_warm_start(
    kind: Any, fixed: dict[str, Any], values: dict[str, float], track: bool
) -> None:
    module, x, y = small_problem()
    opt = live(kind, module, fixed, values)
    loss = lambda m: ((m(x) - y) ** 2).mean()  # noqa: E731

    def train(steps: int) -> None:
        for _ in range(steps):
            opt.zero_grad()
            loss(module).backward()
            opt.step()

    train(3)
    before = [p.detach().clone() for p in module.parameters()]
    state = opt.state_dict()
    with inner_loop.innerloop_ctx(module, opt, track_higher_grads=track) as (fmodel, diffopt):
        for _ in range(100):
            diffopt.step(loss(fmodel))
        fast = [p.detach() for p in fmodel.parameters()]
    assert all(torch.equal(p, b) for p, b in zip(module.parameters(), before, strict=True)), "the module has moved"
    assert str(opt.state_dict()) == str(state), "the optimizer has changed"
    train(100)
    assert_close(fast, [p.detach() for p in module.parameters()], rtol=1e-9)


def test_dead_units_give_no_nan() -> None:
    module = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    with torch.no_grad():
        module[0].bias[1] = -100.0  # its unit never fires: G is exactly 0 there
    for kind in (Adam, AdamW, Adagrad):
        opt = kind(module.parameters(), lr=0.1)
        with inner_loop.innerloop_ctx(module, opt, copy_initial_weights=False) as (fmodel, diffopt):
            for _ in range(3):
                diffopt.step((fmodel(torch.ones(4, 2)) - 1).square().mean())
            loss = fmodel(torch.ones(4, 2)).mean()
            gradients = torch.autograd.grad(loss, list(module.parameters()))
        assert all(bool(g.isfinite().all()) for g in gradients)


def test_what_the_loss_does_not_reach_is_left_alone_as_torch_optim_leaves_it() -> None:
    module = nn.ModuleDict({"a": nn.Linear(2, 1), "b": nn.Linear(2, 1)})
    opt = Adam(module.parameters(), lr=0.1, weight_decay=0.5)
    x = torch.ones(1, 2)

    def losses(m: nn.Module) -> list[Tensor]:  # b joins in the third step, so that its count lags behind
        return [m["a"](x).sum().square(), m["a"](x).sum(), (m["a"](x) * m["b"](x)).sum(), (m["a"](x) + m["b"](x)).sum()]

    with inner_loop.innerloop_ctx(module, opt) as (fmodel, diffopt):
        for j in range(4):
            diffopt.step(losses(fmodel)[j])
            if j < 2:
                assert torch.equal(fmodel["b"].weight, module["b"].weight)
        fast = [p.detach() for p in fmodel.parameters()]
    for j in range(4):
        opt.zero_grad()
        losses(module)[j].backward()
        opt.step()
    assert_close(fast, [p.detach() for p in module.parameters()])


def test_options_per_group_per_element_and_changed_by_the_way() -> None:
    module = nn.ModuleList([nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)])
    w, v = (layer.weight.detach().clone() for layer in module)
    opt = SGD([{"params": module[0].parameters()}, {"params": module[1].parameters(), "lr": 0.5}], lr=0.1)
    one, rows = torch.tensor([0.2], requires_grad=True), torch.tensor([[0.3], [0.4]], requires_grad=True)
    later = torch.tensor(0.7, requires_grad=True)
    with inner_loop.innerloop_ctx(module, opt, override={"lr": [one, rows]}) as (fmodel, diffopt):
        diffopt.step(fmodel[0].weight.sum() + fmodel[1].weight.sum())
        assert_close([p.detach() for p in fmodel.parameters()], [w - 0.2, v - rows.detach()])
        diffopt.step(fmodel[0].weight.sum() + fmodel[1].weight.sum(), override={"lr": [later]})
        diffopt.step(fmodel[0].weight.sum() + fmodel[1].weight.sum())  # an override stays
        assert_close([p.detach() for p in fmodel.parameters()], [w - 1.6, v - rows.detach() - 1.4])
        diffopt.param_groups[1]["lr"] = 1.0  # as a schedule would
        diffopt.step(fmodel[0].weight.sum() + fmodel[1].weight.sum())
        assert_close([p.detach() for p in fmodel.parameters()], [w - 2.3, v - rows.detach() - 2.4])
        sum(p.sum() for p in fmodel.parameters()).backward()
    assert one.grad is not None
    assert one.grad.tolist() == [-4.0]
    assert rows.grad is not None
    assert rows.grad.tolist() == [[-2.0], [-2.0]]
    assert later.grad is not None
    assert later.grad.item() == pytest.approx(-(3 * 4 + 2 * 4), rel=1e-12)


def test_an_option_whose_value_is_0_has_its_derivative() -> None:
    values = {"lr": 0.1, "momentum": 0.0, "weight_decay": 0.0}
    found = imperative(SGD, {}, values)
    assert_close(found, plain(SGD, {}, values))
    assert all(bool(g != 0) for g in found[-3:])


def test_the_gradient_flows_through_a_callback() -> None:
    w = torch.tensor([3.0, 4.0], requires_grad=True)
    scale = torch.tensor(2.0, requires_grad=True)
    clip = lambda grads: [g * (scale / g.norm()) for g in grads]  # noqa: E731
    diffopt = inner_loop.get_diff_optim(SGD([w], lr=1.0), [w], grad_callback=clip)
    (w_1,) = diffopt.step(w.square().sum() / 2, params=[w])
    torch.testing.assert_close(w_1.detach(), torch.tensor([3 - 1.2, 4 - 1.6]))
    expected = torch.autograd.grad((w - scale * w / w.norm()).square().sum(), [w, scale])
    assert_close(list(torch.autograd.grad(w_1.square().sum(), [w, scale])), list(expected))
    (other,) = diffopt.step(w.square().sum() / 2, params=[w], grad_callback=lambda grads: [0 * g for g in grads])
    torch.testing.assert_close(other, w)


def test_a_step_under_no_grad_still_has_a_graph() -> None:
    w = torch.ones(2, requires_grad=True)
    diffopt = inner_loop.get_diff_optim(SGD([w], lr=0.25), [w])
    loss = w.square().sum()
    with torch.no_grad():
        (w_1,) = diffopt.step(loss, params=[w])
    torch.testing.assert_close(torch.autograd.grad(w_1.sum(), w)[0], torch.full((2,), 0.5))


def test_autocast_does_not_reach_into_the_optimizer() -> None:
    module, x, y = small_problem()
    module, x, y = module.float(), x.float(), y.float()
    opt = Adam(module.parameters(), lr=0.1)
    loop = inner_loop.innerloop_ctx(module, opt, copy_initial_weights=False)
    with torch.autocast("cpu", dtype=torch.bfloat16), loop as (fmodel, diffopt):
        for _ in range(3):
            diffopt.step((fmodel(x).float() - y).square().mean())
        assert all(p.dtype == torch.float32 for p in fmodel.parameters())
        assert all(s["exp_avg"].dtype == torch.float32 for s in diffopt.state[0])
        assert fmodel(x).dtype == torch.bfloat16
        (fmodel(x).float() - y).square().mean().backward()
    assert all(
        p.grad is not None and bool(p.grad.isfinite().all()) and p.grad.abs().max() > 0 for p in module.parameters()
    )


def test_dampening_without_momentum_is_ignored_as_torch_ignores_it() -> None:
    w = torch.ones(2, requires_grad=True)
    diffopt = inner_loop.get_diff_optim(SGD([w], lr=0.25, dampening=0.5), [w])
    fast = [w]
    for _ in range(2):
        fast = diffopt.step(fast[0].sum(), params=fast)
    assert fast[0].tolist() == [0.5, 0.5]


@dataclass(frozen=True, eq=False)
class Mixed(gimli.optimizers.DerivedOptimizer):
    """theta' = theta - lr·(a_0 + a_1·G)·G, with a its own parameter."""

    lr: Any = gimli.optimizers.hyperparameter(0.1)
    a: Any = gimli.optimizers.hyperparameter(1.0)

    def own_parameters(self) -> tuple[str, ...]:
        return ("a",)

    def step(self, theta: Any, state: Any, G: Any, hyper: Any) -> Any:
        h = hyper["0"]
        return {k: v - h["lr"] * (h["a"][0] + h["a"][1] * G[k]) * G[k] for k, v in theta.items()}, {
            "step": state["step"] + 1
        }


class Learned(torch.optim.SGD):
    """A live optimizer that Mixed stands for."""


def test_a_rules_own_parameters_reach_it_in_their_own_shape() -> None:
    a = torch.tensor([2.0, 3.0], requires_grad=True)
    w = torch.tensor([1.0, -2.0, 0.5], requires_grad=True)  # another shape than a
    inner_loop.register_optim(Learned, lambda group: Mixed(lr=group["lr"], a=a))
    diffopt = inner_loop.get_diff_optim(Learned([w], lr=0.1), [w])
    (w_1,) = diffopt.step(w.square().sum() / 2, params=[w])  # G = w
    expected = w - 0.1 * (a[0] + a[1] * w) * w
    leaves = [a, w]
    assert_close(differentiated(w_1.sum(), leaves, 1), differentiated(expected.sum(), leaves, 1))
    assert_close([w_1.detach()], [expected.detach()])


def test_what_acts_on_a_whole_tensor_is_one_number() -> None:
    w = torch.ones(2, requires_grad=True)
    opt = torch.optim.Adafactor([w], d=1.0)
    diffopt = inner_loop.get_diff_optim(opt, [w], override={"d": [torch.ones(2)]})
    with pytest.raises(gimli.errors.ArgumentError, match=r"d of group 0.*one number.*got shape \[2\]"):
        diffopt.step(w.sum(), params=[w])
