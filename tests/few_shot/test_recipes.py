"""Every method behind one face: built by its recipe, trained by the outer loop, killed and taken up, evaluated."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gimli_core.errors import ArgumentError
from gimli_core.few_shot.episodes import Episode
from gimli_core.few_shot.experiment import Experiment, Options
from gimli_core.few_shot.figures import FIGURES, PAPERS, figure_of, protocol_of
from gimli_core.few_shot.method import Estimator, Method, evaluate, summary
from gimli_core.few_shot.outcome import read_outcome
from gimli_core.few_shot.protocol import Protocol
from gimli_core.few_shot.recipes import RECIPES
from gimli_core.few_shot.table import markdown, save
from gimli_core.outer_loop.outer_loop import OuterLoop
from tests.few_shot.problems import episodes, made

SMALL = Options(way=3, queries=2, filters=4, steps=3, tasks=2, episodes=20, rotations=False)


@pytest.fixture(autouse=True)
def in_float32() -> None:
    torch.set_default_dtype(torch.float32)  # of the command; conftest puts float64 back


@pytest.mark.parametrize("name", RECIPES)
def test_every_method_trains_by_its_recipe(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gimli_core.few_shot.experiment.BASELINE_RATES", (0.03, 0.3))  # of seven
    experiment = Experiment(name, made(), SMALL)
    before = {k: v.detach().clone() for k, v in experiment.method.named_parameters()}
    outcome = experiment.run()
    moved = [k for k, v in experiment.method.named_parameters() if v.requires_grad and torch.equal(v, before[k])]
    # MetaNet's representation is trained by nothing but its own loss, which is data; MANN's gate opens later.
    assert all("represent" in k for k in moved)
    assert outcome.accuracy.episodes == 20
    assert outcome.protocol.split == "own"
    assert outcome.protocol.batch_norm == RECIPES[name].batch_norm
    assert outcome.paper == "says nothing of this setting"
    assert f"{name}: " in str(outcome)
    assert len(outcome.baselines) == 2 * (name == "lstm")  # SGD from its start and from a random one


@pytest.mark.parametrize("name", ["prototypical", "maml++"])  # running statistics; annealed by number
def test_a_killed_training_goes_on_to_the_same_bits(name: str, tmp_path: Path) -> None:
    straight = Experiment(name, made(), SMALL)
    straight.run()
    killed = Experiment(name, made(), SMALL)
    loop = killed.loop(tmp_path / name)
    loop.checkpoint_every = 0
    for record in loop:
        if record["step"] == 2:
            break
    again = Experiment(name, made(), SMALL)
    outcome = again.run(tmp_path / name)
    for (k, a), b in zip(straight.method.state_dict().items(), again.method.state_dict().values(), strict=True):
        assert torch.equal(a, b), k
    assert read_outcome(tmp_path / name / "result.json") == outcome
    other = Experiment(name, made(), dataclasses.replace(SMALL, queries=3))
    with pytest.raises(ArgumentError, match="out"):
        other.run(tmp_path / name)


def test_separable_classes_are_learned() -> None:
    """Classes that noise hardly hides: prototypical networks tell held-out ones apart."""
    options = dataclasses.replace(SMALL, steps=30, episodes=60, tasks=4, filters=16)
    accuracy = Experiment("prototypical", made(classes=24), options).run().accuracy
    assert accuracy.mean - 2 * accuracy.half_width > 100 / 3


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"way": 1}, "--way: expected a whole number from 2; got 1"),
        ({"train_shot": 0}, "--train-shot: expected a whole number from 1; got 0"),
        ({"train_way": 9}, "--train-way: expected at most the 8 classes for train; got 9. Ask for fewer ways"),
        ({"way": 5}, "--way: expected at most the 4 classes for test; got 5. .*more classes, or say --rotations"),
        ({"queries": 12}, "--data: expected 13 images of each class, shot . queries; got 12 in .class 8., and 3 more"),
        ({"split": "vinyals"}, "split: expected every alphabet"),
        ({"network": "conv5"}, "--network: expected 'conv4'"),
        ({"episodes": 1}, "--episodes: expected a whole number from 2"),
        ({"bfloat16": True}, "--bfloat16: expected images of more than 8 × 8; got 6 × 6"),
        ({"device": "gpu0"}, "device: expected None, or a device that is there"),
    ],
)
def test_what_cannot_be_run_is_refused_before_training(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ArgumentError, match=words):
        Experiment("prototypical", made(), dataclasses.replace(SMALL, **change))
    with pytest.raises(ArgumentError, match="METHOD: expected 'maml'"):
        Experiment("mamml", made(), SMALL)


class Constant(Method):
    """Answers the first class always."""

    def loss(self, episode: Episode) -> Tensor:
        return torch.zeros(())

    def predict(self, support_x: Tensor, support_y: Tensor, query_x: Tensor) -> Tensor:
        assert not self.training
        assert not torch.is_grad_enabled()
        scores = torch.zeros(*query_x.shape[:2], 3)
        scores[..., 0] = 1
        return scores


def test_an_evaluation_is_a_mean_with_its_interval() -> None:
    result = evaluate(Constant(), episodes(tasks=4), episodes=10)
    assert result.episodes == 12  # whole meta-batches
    assert result.mean == pytest.approx(100 / 3)
    assert result.half_width == 0
    mixed = summary(torch.tensor([0.0, 1.0, 1.0, 0.0], dtype=torch.float64))
    assert (mixed.mean, mixed.half_width) == pytest.approx((50, 1.96 * 100 * (1 / 3) ** 0.5 / 2))
    assert str(mixed) == "50.00 ± 56.58 % (4 episodes)"


class Running(Method):
    """Has a buffer, and a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(36, 3))

    def loss(self, episode: Episode) -> Tensor:
        loss: Tensor = self.net(episode.support_x.flatten(0, 1)).square().mean()
        return loss


def test_running_statistics_go_into_checkpoints() -> None:
    estimator, other = Estimator(Running()), Estimator(Running())
    optimizer = torch.optim.SGD(estimator.method.parameters(), lr=0.1)
    OuterLoop(estimator, episodes(), optimizer, steps=2).run()
    other.load_state_dict(estimator.state_dict())
    for name, buffer in estimator.method.named_buffers():
        assert torch.equal(dict(other.method.named_buffers())[name], buffer)
    assert estimator.method.net[0].num_batches_tracked == 2
    assert "seed 3" in repr(Estimator(Running(), "seed 3"))


def test_papers_and_recipes_have_the_same_methods() -> None:
    assert set(FIGURES) == set(RECIPES)
    assert set(PAPERS) <= set(RECIPES)
    assert str(figure_of("maml", "omniglot", 5, 1)) == "98.7 ± 0.4 %"
    assert str(figure_of("prototypical", "omniglot", 20, 5)) == "98.9 %"
    assert figure_of("lstm", "omniglot", 5, 1) is None
    assert protocol_of("maml", "omniglot", 5, 1) == PAPERS["maml"]
    other = protocol_of("maml", "omniglot", 20, 5)
    assert other == dataclasses.replace(PAPERS["maml"], way=20, shot=5, train_way=0, train_shot=0)
    assert protocol_of("maml", "miniImageNet", 5, 1) is None
    assert protocol_of("lstm", "omniglot", 5, 1) is None


def test_a_protocol_says_where_it_differs() -> None:
    ours = Protocol("omniglot", "vinyals", 5, 1, 5, 1, 15, "training and test", "batch", "conv4", "none", "1 of 2")
    paper = dataclasses.replace(ours, split="random", queries=0, train_way=60, training="")
    assert ours.differences(paper) == ["split: vinyals (the paper: random)", "train_way: 5 (the paper: 60)"]
    assert ours.differences(ours) == []
    for trap in ("split", "train way", "train shot", "way", "shot", "queries", "rotations", "batch norm"):
        assert f"  {trap} " in str(ours)


def test_a_table_in_three_forms(tmp_path: Path) -> None:
    outcomes = [Experiment(name, made(), SMALL).run() for name in ("prototypical", "siamese")]
    like_omniglot = dataclasses.replace(
        outcomes[0], protocol=dataclasses.replace(outcomes[0].protocol, data="omniglot", way=5)
    )
    text = markdown([like_omniglot, outcomes[1]])
    lines = text.splitlines()
    assert lines[2].startswith("| prototypical | omniglot | 5 | 1 | ")
    assert lines[3].startswith("| siamese | made | 3 | 1 | ")
    assert str(outcomes[1].protocol) in text
    md, csv, png = save([like_omniglot, outcomes[1]], tmp_path)
    assert md.read_text() == text
    assert len(csv.read_text().splitlines()) == 3
    assert png.read_bytes()[1:4] == b"PNG"
    (tmp_path / "bad.json").write_text(json.dumps({"method": "maml"}))
    with pytest.raises(ArgumentError, match="expected a result of `gimli few-shot`"):
        read_outcome(tmp_path / "bad.json")


def test_photographs_have_settings_of_their_own() -> None:
    options = dataclasses.replace(SMALL, steps=None)
    drawn, photographed = (Experiment("prototypical", made(24, channels=channels), options) for channels in (1, 3))
    assert (drawn.steps, photographed.steps) == (RECIPES["prototypical"].steps, 1800)
    assert photographed.protocol.train_way == 16  # all there are of the recipe's 20


def test_data_without_a_split_is_split_at_random() -> None:
    plain_folder = dataclasses.replace(made(classes=25), parts=None)
    options = Options(way=2, shot=1, steps=1)
    assert Experiment("prototypical", plain_folder, options).protocol.split == "random"
