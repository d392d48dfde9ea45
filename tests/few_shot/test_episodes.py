"""Episodes: distinct classes, no row twice, the same by number, and errors before any is drawn."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch.utils.data import DataLoader, TensorDataset

from gimli_core.errors import ArgumentError
from gimli_core.few_shot.episodes import Episodes, EpisodeSampler, Sinusoids, with_rotations
from tests.few_shot.problems import episodes, made


@settings(max_examples=40)
@given(
    way=st.integers(2, 6),
    shot=st.integers(1, 3),
    queries=st.integers(1, 3),
    balanced=st.booleans(),
    number=st.integers(0, 10**6),
    seed=st.integers(0, 10**6),
)
def test_a_task_has_distinct_classes_and_no_row_twice(
    way: int, shot: int, queries: int, balanced: bool, number: int, seed: int
) -> None:
    labels = torch.arange(6).repeat_interleave(6)[torch.randperm(36)]
    sampler = EpisodeSampler(labels, way=way, shot=shot, queries=queries, tasks=2, balanced=balanced, seed=seed)
    for task in sampler.rows(number):
        assert len(task.unique()) == len(task) == way * (shot + queries)
        shown, asked = labels[task[: way * shot]].view(way, shot), labels[task[way * shot :]]
        assert (shown == shown[:, :1]).all()
        assert len(shown[:, 0].unique()) == way
        assert set(asked.tolist()) <= set(shown[:, 0].tolist())
        if balanced:
            assert (asked.view(way, queries) == shown[:, :1]).all()


def test_an_episode_is_a_function_of_its_number() -> None:
    source = episodes()
    first = source(3)
    source(8)
    again, other = source(3), source(4)
    assert all(torch.equal(a, b) for a, b in zip(first[:4], again[:4], strict=True))
    assert not torch.equal(first.support_x, other.support_x)
    assert (first.number, other.number) == (3, 4)
    assert not torch.equal(episodes(seed=1)(3).support_x, first.support_x)
    assert torch.equal(episodes(tasks=3)(3).support_x[:2], first.support_x)  # more tasks: the first stay


def test_labels_follow_the_order_in_which_classes_are_shown() -> None:
    data, source = made(), episodes(way=4, shot=2, queries=3)
    episode = source(0)
    assert (episode.support_y == torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])).all()
    rows = source.sampler.rows(0)
    assert torch.equal(episode.support_x, data.images[rows[:, :8]].double() / 255)
    of_class = data.labels[rows[:, :8:2]]
    assert torch.equal(of_class.gather(1, episode.query_y), data.labels[rows[:, 8:]])
    assert (episode.tasks, episode.way) == (2, 4)


def test_torchs_own_loader_gives_the_same_episodes() -> None:
    data = made()
    sampler = EpisodeSampler(data.labels, way=3, shot=1, queries=2, tasks=2, batches=3)
    loader: Any = DataLoader(TensorDataset(data.images, data.labels), batch_sampler=sampler, collate_fn=sampler.collate)
    source = Episodes(data.images, sampler)
    for number, loaded in enumerate(loader):
        assert all(torch.equal(a, b) for a, b in zip(loaded[:4], source(number)[:4], strict=True))
    assert number == 2


def test_unbalanced_queries_differ_in_number() -> None:
    labels = torch.arange(5).repeat_interleave(20)
    sampler = EpisodeSampler(labels, way=5, shot=1, queries=4, balanced=False)
    counts = labels[sampler.rows(0)[0, 5:]].bincount(minlength=5)
    assert counts.sum() == 20
    assert len(counts.unique()) > 1


def test_rotations_are_classes() -> None:
    data = made(classes=3, rows=2)
    images, labels = with_rotations(data.images, data.labels)
    assert labels.unique().tolist() == list(range(12))
    assert torch.equal(images[labels == 1 + 3 * 2], torch.rot90(data.images[data.labels == 1], 2, (-2, -1)))
    with pytest.raises(ArgumentError, match="at most the 3 classes"):
        EpisodeSampler(data.labels, way=5, shot=1, queries=1)
    EpisodeSampler(labels, way=5, shot=1, queries=1)


def test_sinusoids_are_sines() -> None:
    episode = Sinusoids(shot=6, queries=5, tasks=50)(2)
    assert episode.support_x.shape == (50, 6, 1)
    assert episode.query_y.shape == (50, 5, 1)
    x, y = torch.cat([episode.support_x, episode.query_x], 1), torch.cat([episode.support_y, episode.query_y], 1)
    assert -5 <= x.min() < -4
    assert 4 < x.max() <= 5
    design = torch.cat([x.sin(), x.cos()], 2)  # A·sin(x + p) = A·cos p·sin x + A·sin p·cos x
    fit = torch.linalg.lstsq(design, y).solution
    torch.testing.assert_close(design @ fit, y, rtol=1e-10, atol=1e-10)
    amplitude = fit.square().sum(1).sqrt()
    assert 0.1 <= amplitude.min() < 1
    assert 4 < amplitude.max() <= 5
    assert (fit[:, 1] >= 0).all()  # p in [0, π]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"way": 13}, "way: expected at most the 12 classes of the labels; got 13"),
        ({"shot": 11, "queries": 2}, "labels: expected at least 13 rows of each class, shot [+] queries; got 12 of"),
        ({"way": 1}, "way: expected a whole number from 2; got 1"),
        ({"shot": 0}, "shot: expected a whole number from 1; got 0"),
        ({"queries": 1.5}, "queries: expected a whole number from 1; got 1.5"),
        ({"tasks": True}, "tasks: expected a whole number from 1; got True"),
        ({"seed": -1}, "seed: expected a whole number from 0; got -1"),
        ({"balanced": False, "queries": 12}, "labels: expected 39 rows in any 3 classes; got 36"),
        ({"labels": torch.rand(4)}, "labels: expected whole numbers, one a row"),
        ({"labels": torch.zeros(2, 2, dtype=torch.long)}, r"labels: expected whole numbers, one a row; got shape"),
    ],
)
def test_what_cannot_be_drawn_is_refused_before_any_is(change: dict[str, Any], words: str) -> None:
    arguments: dict[str, Any] = {"labels": made().labels, "way": 3, "shot": 1, "queries": 2, **change}
    with pytest.raises(ArgumentError, match=words):
        EpisodeSampler(arguments.pop("labels"), **arguments)


def test_a_small_class_is_named() -> None:
    labels = torch.tensor([0] * 5 + [1] * 5 + [7] * 2 + [9])
    with pytest.raises(ArgumentError, match="got 2 of class 7, and too few of 1 more"):
        EpisodeSampler(labels, way=2, shot=1, queries=2)


@pytest.mark.parametrize("rows", [4, torch.nan, torch.inf])
def test_rows_that_do_not_fit_are_refused(rows: float) -> None:
    sampler = EpisodeSampler(torch.arange(3).repeat_interleave(4), way=2, shot=1, queries=1)
    x = torch.zeros(12, 2)
    if rows == 4:
        x, words = x[:4], "x: expected 12 rows, one a label; got 4"
    else:
        x[5, 1], words = rows, "x: expected finite numbers; got others in row 5"
    with pytest.raises(ArgumentError, match=words):
        Episodes(x, sampler)
