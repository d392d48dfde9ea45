"""Windows of one inner loop: what each leaves out is what a truncated unroll leaves out, and nothing else."""

from __future__ import annotations

import pytest
import torch

import gimli_core as gimli
from gimli_core.errors import ArgumentError
from tests.outer_loop.problems import TARGETS, end_of, learned_rate, leaves, loss, noisy, outer_loop, problem, same

STEPS, LENGTH = 6, 2


def rates(phi, targets):
    """As `learned_rate`, with the rate decaying over the steps."""
    decay = torch.arange(1, STEPS + 1, dtype=torch.float64) ** -0.5
    return {**learned_rate(phi, targets), "phi_opt": {"lr": gimli.per_step(phi["log_lr"].exp() * decay)}}


@pytest.mark.parametrize("inner", [learned_rate, rates])
@pytest.mark.parametrize("carry", [1, 2])
@pytest.mark.parametrize("rule", [gimli.optimizers.Adam(), gimli.optimizers.SGD(momentum=0.9)])
def test_each_window_is_a_truncated_unroll(rule, carry, inner):
    """L at the window's end by an unroll from the begin, truncated to the window's steps, at the same phi.

    An unroll that is truncated counts the steps before as the identity for theta_0, the window as constants: so of phi,
    log_lr alone is compared past the first.
    """
    phi = leaves()
    estimator = gimli.Windows(problem(rule), phi, inner, length=LENGTH, carry=carry, steps=STEPS)
    assert estimator.draws_last == (STEPS - LENGTH) // carry + 1
    for number in range(estimator.draws_last + 1):
        start = number % estimator.draws_last * carry
        found = estimator(TARGETS)
        call = inner(leaves(), TARGETS)
        batches, end = {"train_batches": TARGETS, "val_batch": TARGETS[-1]}, start + LENGTH
        lr = call["phi_opt"]["lr"]
        lr = gimli.per_step(lr.value[:end]) if inner is rates else lr
        expected = gimli.meta_gradient(
            problem(rule),
            call["theta_0"],
            **batches,
            steps=end,
            phi_opt={"lr": lr},
            approximation=gimli.Truncated(LENGTH),
        )
        torch.testing.assert_close(found.val_loss, expected.val_loss, rtol=1e-14, atol=0)
        torch.testing.assert_close(found.theta_J, expected.theta_J, rtol=1e-14, atol=0)
        gradient = expected.A_opt["lr"]
        if inner is rates:
            gradient = (gradient * torch.arange(1, end + 1, dtype=torch.float64) ** -0.5).sum()
        torch.testing.assert_close(found.A["log_lr"], gradient * phi["log_lr"].exp(), rtol=1e-12, atol=0)
        assert ("w" in found.A) == (start == 0)
        assert f"L at step {end}" in found.approximation
        assert ("held constant" in found.approximation) == (start > 0)


def test_a_window_of_all_steps_is_unrolled():
    found = gimli.Windows(problem(), leaves(), learned_rate, length=4, steps=4)(TARGETS)
    exact = gimli.Unrolled(problem(), leaves(), learned_rate, steps=4)(TARGETS)
    assert found.approximation == ""
    for name, gradient in exact.A.items():
        assert torch.equal(found.A[name], gradient)


def test_the_state_of_the_rule_is_carried_on():
    """Adam's third step with the moments of two others; without them the loss would be another."""
    estimator = gimli.Windows(problem(), leaves(), learned_rate, length=2, steps=4)
    estimator(TARGETS)
    state = estimator.state_dict()
    assert state["step"] == 2
    assert state["state"]["step"] == 2
    carried = estimator(TARGETS).val_loss
    estimator.load_state_dict({**state, "state": {**state["state"], "step": torch.zeros((), dtype=torch.float64)}})
    assert not torch.equal(estimator(TARGETS).val_loss, carried)


def with_frozen(phi, targets):
    frozen = torch.nn.Parameter(torch.tensor([0.5, 0.5], dtype=torch.float64), requires_grad=False)
    theta_0 = {"c": frozen, "w": phi["w"]}
    return {**learned_rate(phi, targets), "theta_0": theta_0}


def drawn_to(theta, phi, target):
    return loss(theta, phi, target) + ((theta["w"] - theta["c"]) ** 2).sum()


@pytest.mark.parametrize("tasks", [None, 2])
def test_what_is_held_constant_stays_so(tasks):
    def inner(phi, targets):
        made = with_frozen(phi, targets)
        return made if tasks is None else {**made, "train_batches": lambda j: TASKS[j], "val_batch": TASKS[-1]}

    TASKS = [torch.stack([target, -target]) for target in TARGETS]
    frozen_problem = gimli.Problem(drawn_to, drawn_to, gimli.optimizers.Adam())
    options = {} if tasks is None else {"tasks": tasks}
    estimator = gimli.Windows(frozen_problem, leaves(), inner, length=1, steps=3, **options)
    results = [estimator(TARGETS) for _ in range(3)]
    made = inner(leaves(), TARGETS)
    expected = gimli.meta_gradient(frozen_problem, **made, steps=3, approximation=gimli.Truncated(1), **options)
    torch.testing.assert_close(results[-1].val_loss, expected.val_loss, rtol=1e-14, atol=0)
    gradient = expected.A_opt["lr"] * leaves()["log_lr"].exp()
    torch.testing.assert_close(results[-1].A["log_lr"], gradient.detach(), rtol=1e-12, atol=0)


def test_steps_that_are_run_twice_draw_the_same():
    """With a smaller carry the first steps of a window run again for the next: from the same random numbers."""
    estimator = gimli.Windows(problem(train_loss=noisy), leaves(), learned_rate, length=2, carry=1, steps=3)
    torch.manual_seed(3)
    first = estimator(TARGETS)
    carried = estimator.state_dict()["theta"]["w"]
    torch.manual_seed(3)
    again = gimli.unroll(problem(train_loss=noisy), **learned_rate(leaves(), TARGETS), steps=1, with_trajectory=True)[1]
    assert torch.equal(carried, again.theta_J["w"])
    assert not torch.equal(first.theta_J["w"], again.theta_J["w"])


def test_windows_in_an_outer_loop_go_on_from_a_checkpoint(tmp_path):
    def loop(**options):
        torch.manual_seed(7)
        phi = leaves()
        estimator = gimli.Windows(problem(train_loss=noisy), phi, learned_rate, length=1, carry=1, steps=3)
        return outer_loop(phi=phi, estimator=estimator, tensorboard=False, **options)

    expected = end_of(loop())
    for steps in (1, 4, 5):
        loop(steps=steps, evaluate_every=2, out=tmp_path / str(steps)).run()
        records = end_of(loop(out=tmp_path / str(steps)))
        if steps == 4:
            assert same(records, expected)
        assert all(torch.equal(records["phi"][name], leaf) for name, leaf in expected["phi"].items())


def test_an_outer_loop_draws_anew_with_each_inner_loop():
    asked = []
    phi = leaves()
    estimator = gimli.Windows(problem(), phi, learned_rate, length=2, steps=6)

    def tasks(step):
        asked.append(step)
        return TARGETS

    gimli.OuterLoop(estimator, tasks, torch.optim.Adam(phi.values(), lr=1e-3), steps=7).run()
    assert asked == [0, 0, 0, 1, 1, 1, 2]


def takes_number(theta, phi, target, j):
    return loss(theta, phi, target) * (1 + j)


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        ({"length": 0}, "length: expected a whole number"),
        ({"carry": 3}, "carry: expected at most"),
        ({"steps": 5}, "steps: expected a number of steps that windows"),
        ({"steps": 1}, "steps: expected a number of steps that windows"),
        ({"problem": problem(train_loss=takes_number)}, "takes_number, for which j would count"),
        ({"problem": gimli.proximal(problem(), 0.1)}, "problem: expected no proximal problem beside windows"),
    ],
)
def test_arguments(changed, match):
    arguments = {"problem": problem(), "phi": leaves(), "inner": learned_rate, "length": 2, "steps": 6, **changed}
    with pytest.raises(ArgumentError, match=match):
        gimli.Windows(**arguments)
