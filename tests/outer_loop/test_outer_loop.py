"""The loop does what a plain `for` does; what it looks at on the way changes nothing."""

from __future__ import annotations

import json

import pytest
import torch

import gimli_core as gimli
from gimli_core.errors import ArgumentError, NotFiniteError
from tests.outer_loop.problems import (
    TARGETS,
    end_of,
    evaluation,
    learned_rate,
    leaves,
    noisy,
    outer_loop,
    problem,
    same,
    sampler,
)


def test_the_loop_is_a_plain_for_around_unroll():
    phi, plain = leaves(), leaves()
    meta_optimizer = torch.optim.Adam(phi.values(), lr=0.05)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(meta_optimizer, 0.9)
    estimator = gimli.Unrolled(problem(), phi, learned_rate)
    loop = gimli.OuterLoop(estimator, sampler(), meta_optimizer, steps=6, scheduler=scheduler, clip=0.5)
    records = loop.run()

    optimizer = torch.optim.Adam(plain.values(), lr=0.05)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    for step in range(6):
        optimizer.zero_grad()
        loss = gimli.unroll(problem(), **learned_rate(plain, sampler()(step)))
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(plain.values(), 0.5)
        assert records[step]["step"] == step + 1
        assert records[step]["val_loss"] == loss.item()
        assert records[step]["gradient_norm"] == norm.item()
        assert records[step]["lr"] == [group["lr"] for group in optimizer.param_groups]
        optimizer.step()
        schedule.step()
    assert any(record["gradient_norm"] > 0.5 for record in records)
    for name, leaf in phi.items():
        assert torch.equal(leaf, plain[name])


def test_a_sequence_is_gone_through_again_and_again():
    drawn = []

    class Remembers:
        def __init__(self):
            self.x = torch.ones((), requires_grad=True)
            self.val_loss = 0.0

        def parameters(self):
            return {"x": self.x}

        def __call__(self, thing):
            drawn.append(thing)
            self.x.grad = torch.zeros(())
            return self

    estimator = Remembers()
    gimli.OuterLoop(estimator, "abc", torch.optim.SGD([estimator.x], lr=1.0), steps=7).run()
    assert "".join(drawn) == "abcabca"


@pytest.mark.parametrize("seed", [None, 3])
def test_an_evaluation_leaves_the_training_as_it_is(seed):
    torch.manual_seed(1)
    looked_at = outer_loop(seed=seed, early_stopping=None).run()
    torch.manual_seed(1)
    alone = outer_loop(seed=seed, evaluate=None, evaluate_every=None, early_stopping=None).run()
    assert [r["val_loss"] for r in looked_at] == [r["val_loss"] for r in alone]
    assert ["evaluation" in r for r in looked_at] == [step % 2 == 0 for step in range(1, 9)]


def test_with_a_seed_a_step_is_the_same_whatever_was_drawn_before():
    first = outer_loop(seed=3).run()
    torch.rand(100)
    again = outer_loop(seed=3).run()
    assert [r["val_loss"] for r in first] == [r["val_loss"] for r in again]
    assert [r.get("evaluation") for r in first] == [r.get("evaluation") for r in again]
    assert [r["val_loss"] for r in first] != [r["val_loss"] for r in outer_loop(seed=4).run()]
    noises = [r["evaluation"]["noise"] for r in first if "evaluation" in r]
    assert len(set(noises)) == len(noises)


def test_the_last_step_is_evaluated():
    records = outer_loop(steps=5, early_stopping=None).run()
    assert ["evaluation" in r for r in records] == [False, True, False, True, True]


def test_a_single_number_is_an_evaluation():
    assert outer_loop(steps=1, evaluate=lambda step: torch.tensor(2.5), early_stopping=None).run()[0]["evaluation"] == {
        "value": 2.5
    }


def test_what_gimli_evaluate_returns_is_an_evaluation():
    phi = leaves()

    def evaluate(step):
        return gimli.evaluate(problem(), {"w": phi["w"]}, TARGETS, TARGETS[-1], phi_opt={"lr": phi["log_lr"].exp()})

    (record,) = outer_loop(steps=1, phi=phi, evaluate=evaluate, evaluate_every=1, early_stopping=None).run()
    assert record["evaluation"] == evaluate(1).mean


@pytest.mark.parametrize(("mode", "sign"), [("min", 1), ("max", -1)])
def test_early_stopping_ends_at_the_best(mode, sign):
    values = [5.0, 3.0, 4.0, 3.0, float("nan"), 1.0]
    phi, seen = leaves(), []

    def evaluate(step):
        seen.append({name: leaf.detach().clone() for name, leaf in phi.items()})
        return {"a": sign * values[step - 1], "b": 0.0}

    loop = outer_loop(
        phi=phi, evaluate=evaluate, evaluate_every=1, early_stopping=gimli.EarlyStopping(3, "a", mode=mode)
    )
    records = loop.run()
    assert len(records) == len(seen) == 5  # 3.0 at step 2 is the best: 4, 3 and nan are not better
    assert records[-1]["evaluation"] == {"a": None, "b": 0.0}
    assert loop.ended
    for name, leaf in phi.items():
        assert torch.equal(leaf, seen[1][name])
        assert not torch.equal(leaf, seen[-1][name])


def test_an_improvement_must_be_as_large_as_asked():
    values = [5.0, 4.9, 4.8, 1.0]
    stopping = gimli.EarlyStopping(2, least=0.5)
    loop = outer_loop(evaluate=lambda step: values[step - 1], evaluate_every=1, early_stopping=stopping)
    assert len(loop.run()) == 3


def test_reduce_on_plateau_sees_the_loss():
    phi = leaves()
    meta_optimizer = torch.optim.SGD(phi.values(), lr=0.0)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(meta_optimizer, factor=0.5, patience=0)
    estimator = gimli.Unrolled(problem(), phi, learned_rate)
    gimli.OuterLoop(estimator, [TARGETS], meta_optimizer, steps=3, scheduler=scheduler).run()
    assert scheduler.num_bad_epochs + scheduler.cooldown_counter >= 0
    assert scheduler.best == estimator(TARGETS).val_loss.item()


def test_a_loop_can_be_gone_through_step_by_step():
    expected = end_of(outer_loop(seed=0))
    loop = outer_loop(seed=0)
    steps = iter(loop)
    assert next(steps)["step"] == 1
    steps.close()
    assert same(end_of(loop), expected)


def test_a_state_goes_to_another_loop():
    torch.manual_seed(5)
    expected = end_of(outer_loop())
    torch.manual_seed(5)
    first, second = outer_loop(), outer_loop()
    steps = iter(first)
    for _ in range(5):
        next(steps)
    state = first.state_dict()
    torch.manual_seed(99)
    second.load_state_dict(state)
    found = end_of(second)
    assert same({**found, "records": expected["records"][:5] + found["records"]}, expected)


def test_a_gradient_that_is_not_finite_leaves_phi_as_it_was():
    def inner(phi, targets):
        return {**learned_rate(phi, targets), "theta_0": {"w": phi["w"] * 1.0}}

    class Breaks:
        def __init__(self, estimator):
            self.estimator = estimator

        def parameters(self):
            return self.estimator.parameters()

        def __call__(self, drawn):
            result = self.estimator(drawn)
            self.parameters()["w"].grad[0] = float("nan")
            return result

    phi = leaves()
    loop = outer_loop(phi=phi, estimator=Breaks(gimli.Unrolled(problem(), phi, inner)))
    with pytest.raises(NotFiniteError, match=r"outer step 0.*'w'"):
        loop.run()
    assert all(torch.equal(leaf, leaves()[name]) for name, leaf in phi.items())
    assert loop.step == 0


class Silent:
    """An estimator that leaves no gradient."""

    val_loss = 0.0

    def __init__(self, phi):
        self.phi = phi

    def parameters(self):
        return self.phi

    def __call__(self, drawn):
        return self


def refused(match, **changed):
    phi = leaves()
    estimator = gimli.Unrolled(problem(), phi, learned_rate)
    arguments = {
        "estimator": estimator,
        "tasks": [TARGETS],
        "meta_optimizer": torch.optim.Adam(phi.values()),
        "steps": 1,
    }
    arguments |= {name: value(phi, arguments) if callable(value) else value for name, value in changed.items()}
    with pytest.raises(ArgumentError, match=match):
        gimli.OuterLoop(**arguments).run()
    assert all(torch.equal(leaf, leaves()[name]) for name, leaf in phi.items())


STOPPING = gimli.EarlyStopping(1)


@pytest.mark.parametrize(
    ("match", "changed"),
    [
        ("estimator: expected an object with parameters", {"estimator": 3}),
        ("estimator.parameters.*requires grad", {"estimator": lambda phi, _: Silent({"x": torch.ones(1)})}),
        ("estimator.parameters.*a dict", {"estimator": lambda phi, _: Silent(list(phi.values()))}),
        ("a gradient in .grad", {"estimator": lambda phi, _: Silent(phi)}),
        ("tasks: expected a function.*list_iterator", {"tasks": iter([1])}),
        ("tasks: expected a function.*empty", {"tasks": []}),
        ("meta_optimizer: expected a torch.optim", {"meta_optimizer": gimli.optimizers.Adam()}),
        ("without 'log_lr'", {"meta_optimizer": lambda phi, _: torch.optim.SGD([phi["w"]], lr=0.1)}),
        (
            "one with 1 other tensors",
            {"meta_optimizer": lambda phi, _: torch.optim.SGD([*phi.values(), torch.ones(1)], lr=0.1)},
        ),
        ("no closure", {"meta_optimizer": lambda phi, _: torch.optim.LBFGS(phi.values())}),
        ("scheduler: expected a scheduler of torch", {"scheduler": 0.1}),
        (
            "scheduler: expected a scheduler of meta_optimizer; got one of another optimizer",
            {"scheduler": lambda phi, _: torch.optim.lr_scheduler.StepLR(torch.optim.SGD(phi.values(), lr=1.0), 2)},
        ),
        ("steps: expected a whole number", {"steps": 1.5}),
        ("clip: expected a number", {"clip": -1.0}),
        ("seed: expected a whole number", {"seed": 1.5}),
        ("checkpoint_every", {"checkpoint_every": "often"}),
        ("progress: expected True or False", {"progress": "yes"}),
        ("evaluate_every: expected None", {"evaluate_every": 3}),
        ("early_stopping: expected None", {"early_stopping": STOPPING}),
        ("evaluate: expected a function", {"evaluate": 0.5}),
        ("evaluate_every: expected a whole", {"evaluate": lambda *_: len, "evaluate_every": 0}),
        ("early_stopping: expected a gimli", {"evaluate": lambda *_: len, "early_stopping": 3}),
    ],
)
def test_what_cannot_be_an_outer_loop_is_refused(match, changed):
    refused(match, **changed)


@pytest.mark.parametrize(
    ("returned", "match"),
    [
        ("good", "a number or a dict"),
        ({"a": [1.0, 2.0]}, "a number or a dict"),
        ({"a": torch.ones(2)}, "a number or a"),
    ],
)
def test_an_evaluation_of_another_kind_is_refused(returned, match):
    with pytest.raises(ArgumentError, match=match):
        outer_loop(evaluate=lambda step: returned, early_stopping=None).run()


@pytest.mark.parametrize(
    ("metric", "match"), [(None, "one of 'noise', 'distance'; got none"), ("distanse", "Did you mean 'distance'")]
)
def test_a_metric_that_is_not_there_is_named(metric, match):
    with pytest.raises(ArgumentError, match=match):
        outer_loop(early_stopping=gimli.EarlyStopping(2, metric)).run()


@pytest.mark.parametrize("arguments", [{"patience": 0}, {"patience": 1, "mode": "up"}, {"patience": 1, "least": -1.0}])
def test_early_stopping_checks_its_arguments(arguments):
    with pytest.raises(ArgumentError, match="EarlyStopping"):
        gimli.EarlyStopping(**arguments)


def test_a_bar_shows_how_far_it_is(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    outer_loop(steps=3, progress=True, early_stopping=None).run()
    shown = capsys.readouterr().err
    assert "3/3" in shown
    assert "loss" in shown


class TestTaskSampler:
    def test_a_task_is_the_same_whatever_else_is_drawn(self):
        def draw(generator):
            return {"x": torch.rand(4, generator=generator), "y": (torch.rand(1, generator=generator),)}

        few, many = gimli.TaskSampler(draw, 2, seed=1), gimli.TaskSampler(draw, 5, seed=1)
        many(0)
        a, b = few(3), many(3)
        assert torch.equal(a["x"], b["x"][:2])
        assert torch.equal(a["y"][0], b["y"][0][:2])
        assert torch.equal(few(3)["x"], a["x"])
        assert torch.equal(few.task(3, 1)["x"], a["x"][1])
        everything = torch.cat([many(step)["x"].flatten() for step in range(4)])
        assert len(everything.unique()) == len(everything)
        assert not torch.equal(gimli.TaskSampler(draw, 2, seed=2)(3)["x"], a["x"])

    def test_the_global_generators_are_left_alone(self):
        before = torch.get_rng_state()
        sampler()(0)
        assert torch.equal(torch.get_rng_state(), before)

    @pytest.mark.parametrize(
        ("arguments", "match"),
        [((3,), "draw"), ((len, 0), "tasks"), ((len, True), "tasks")],
    )
    def test_arguments(self, arguments, match):
        with pytest.raises(ArgumentError, match=match):
            gimli.TaskSampler(*arguments)

    def test_tasks_of_several_shapes(self):
        sizes = iter([2, 3])
        with pytest.raises(ArgumentError, match="one shape for all tasks"):
            gimli.TaskSampler(lambda generator: torch.ones(next(sizes)), 2)(0)


def test_records_are_json():
    json.dumps(outer_loop(steps=2).run(), allow_nan=False)


def test_noise_matters_here():
    """Or the tests of random numbers would show nothing."""
    values = {gimli.Unrolled(problem(train_loss=noisy), leaves(), learned_rate)(TARGETS).val_loss.item() for _ in "ab"}
    assert len(values) == 2
    assert evaluation(leaves())(1)["noise"] != evaluation(leaves())(1)["noise"]
