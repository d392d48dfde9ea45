"""Metric-based methods against their formulas, and as the case J = 0."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.functional import cosine_similarity, cross_entropy

import gimli_core as gimli
from gimli_core.few_shot.method import Method
from gimli_core.few_shot.metric_based.matching import Matching
from gimli_core.few_shot.metric_based.prototypical import Prototypical
from gimli_core.few_shot.metric_based.relation import Relation
from gimli_core.few_shot.metric_based.siamese import Siamese
from tests.few_shot.problems import SIZE, episode

FEATURES = 7


def embedding() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(SIZE * SIZE, FEATURES))


METHODS: dict[str, Callable[[], Method]] = {
    "prototypical": lambda: Prototypical(embedding()),
    "matching": lambda: Matching(embedding()),
    "matching with contexts": lambda: Matching(embedding(), FEATURES, reads=3),
    "relation": lambda: Relation(1, SIZE, filters=4, hidden=3),
    "siamese": lambda: Siamese(embedding(), FEATURES),
}


@pytest.mark.parametrize("name", METHODS)
def test_every_parameter_learns_and_scores_have_their_shape(name: str) -> None:
    method, drawn = METHODS[name](), episode(way=3, shot=2, queries=4)
    loss = method.loss(drawn)
    loss.backward()
    assert loss.shape == ()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in method.parameters())
    assert method.predict(drawn.support_x, drawn.support_y, drawn.query_x).shape == (2, 12, 3)


@pytest.mark.parametrize("name", METHODS)
def test_a_class_keeps_its_score_under_another_number(name: str) -> None:
    """The bidirectional context reads the support in order, which stays as it is."""
    method, drawn = METHODS[name](), episode(way=3, shot=2, queries=4)
    number = torch.tensor([2, 0, 1])
    scores = method.predict(drawn.support_x, drawn.support_y, drawn.query_x)
    renamed = method.predict(drawn.support_x, number[drawn.support_y], drawn.query_x)
    torch.testing.assert_close(renamed[..., number], scores)


@pytest.mark.parametrize("name", METHODS)
def test_tasks_do_not_see_each_other(name: str) -> None:
    if name == "relation":  # its batch norm does, in training
        method: Method = Relation(1, SIZE, filters=4, hidden=3, statistics="running").eval()
    else:
        method = METHODS[name]()
    drawn = episode(way=3, shot=2, queries=4)
    together = method.predict(drawn.support_x, drawn.support_y, drawn.query_x)
    alone = method.predict(drawn.support_x[1:], drawn.support_y[1:], drawn.query_x[1:])
    torch.testing.assert_close(together[1:], alone)


def test_the_prototypical_loss_is_algorithm_1_without_a_step() -> None:
    method, drawn = Prototypical(embedding()), episode()
    method.loss(drawn).backward()

    def val_loss(theta: dict[str, torch.Tensor], phi: dict[str, torch.Tensor], batch: object) -> torch.Tensor:
        weights = {f"embedding.{k}": v for k, v in theta.items()}
        scores = functional_call(method, weights, (drawn.support_x, drawn.support_y, drawn.query_x))
        return cross_entropy(scores.flatten(0, 1), drawn.query_y.flatten())

    method.forward = method.predict  # type: ignore[method-assign]
    problem = gimli.Problem(val_loss, val_loss, gimli.optimizers.SGD())
    theta_0 = {k: v.detach() for k, v in method.embedding.named_parameters()}
    result = gimli.meta_gradient(problem, theta_0, [], None, steps=0)
    for k, p in method.embedding.named_parameters():
        torch.testing.assert_close(p.grad, result.B_0[k])


def test_prototypes_are_means() -> None:
    drawn = episode(way=3, shot=2, queries=1)
    scores = Prototypical(nn.Flatten()).predict(drawn.support_x, drawn.support_y, drawn.query_x)
    for t in range(2):
        means = [drawn.support_x[t, 2 * k : 2 * k + 2].mean(0) for k in range(3)]
        for q in range(3):
            expected = torch.stack([-(drawn.query_x[t, q] - mean).square().sum() for mean in means])
            torch.testing.assert_close(scores[t, q], expected)


def test_attention_is_over_cosines() -> None:
    drawn = episode(way=3, shot=2, queries=1)
    shares = Matching(nn.Flatten()).predict(drawn.support_x, drawn.support_y, drawn.query_x)
    torch.testing.assert_close(shares.sum(-1), torch.ones(2, 3))
    flat, query = drawn.support_x[0].flatten(1), drawn.query_x[0, 1].flatten()
    attention = torch.softmax(cosine_similarity(flat, query[None]), 0)
    torch.testing.assert_close(shares[0, 1], attention.view(3, 2).sum(1))


def test_relation_scores_pairs_from_0_to_1() -> None:
    method, drawn = Relation(1, SIZE, filters=4, hidden=3), episode()
    scores = method.predict(drawn.support_x, drawn.support_y, drawn.query_x)
    assert scores.min() > 0
    assert scores.max() < 1
    right = torch.nn.functional.one_hot(drawn.query_y)
    torch.testing.assert_close(method.loss(drawn), ((scores - right) ** 2).mean())


def test_siamese_verifies_pairs() -> None:
    method, drawn = Siamese(embedding(), FEATURES), episode(way=3, shot=2, queries=2)
    shown = torch.sigmoid(method.embedding(drawn.support_x[0]))
    asked = torch.sigmoid(method.embedding(drawn.query_x[0]))
    logit = method.weigh((asked[:, None] - shown[None]).abs())[..., 0]
    scores = method.predict(drawn.support_x, drawn.support_y, drawn.query_x)
    torch.testing.assert_close(scores[0], logit.view(6, 3, 2).amax(-1))
