"""MANN and MetaNet: what comes when, what is written where, and what is data."""

from __future__ import annotations

import torch
from torch import nn

from gimli_core.few_shot.model_based.mann import Mann
from gimli_core.few_shot.model_based.metanet import MetaNet
from tests.few_shot.problems import SIZE, episode

FEATURES = 6


def embedding() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(SIZE * SIZE, FEATURES), nn.SiLU())


def mann() -> Mann:
    return Mann(embedding(), FEATURES, way=3, hidden=8, slots=10, width=5, reads=2)


def metanet() -> MetaNet:
    return MetaNet(embedding(), FEATURES, way=3, hidden=4)


def test_every_parameter_learns_and_scores_have_their_shape() -> None:
    drawn = episode(way=3, shot=2, queries=4)
    for method in (mann(), metanet()):
        loss = method.loss(drawn)
        loss.backward()
        assert loss.shape == ()
        for name, p in method.named_parameters():
            # The representation's own loss is data, and MANN's gate acts once something has been read.
            assert name.startswith("represent") or (p.grad is not None and p.grad.isfinite().all()), name
        assert method.predict(drawn.support_x, drawn.support_y, drawn.query_x).shape == (2, 12, 3)


def test_a_label_comes_one_step_late() -> None:
    method, rows = mann(), torch.rand(1, 4, FEATURES)
    labels = torch.eye(3)[torch.tensor([[0, 1, 2, 0]])]
    changed = labels.clone()
    changed[0, 2] = torch.eye(3)[1]
    before, after = method._through(rows, labels)[1], method._through(rows, changed)[1]
    assert torch.equal(before[:, :3], after[:, :3])
    assert not torch.allclose(before[:, 3], after[:, 3])


def test_a_prediction_is_the_last_step_of_the_sequence() -> None:
    method, drawn = mann(), episode(way=3, shot=1, queries=2)
    scores = method.predict(drawn.support_x, drawn.support_y, drawn.query_x)
    for q in range(6):
        x = torch.cat([drawn.support_x, drawn.query_x[:, q : q + 1]], 1)
        labels = torch.eye(3)[torch.cat([drawn.support_y, drawn.query_y[:, q : q + 1]], 1)]
        torch.testing.assert_close(scores[:, q], method._through(method._embedded(x), labels)[1][:, -1])


def test_the_memory_is_written_where_it_is_used_least() -> None:
    method = mann()
    held = method._empty(torch.zeros(1, 4, FEATURES))
    used = torch.arange(10.0)[None].flip(1)  # slots 9 and 8 are used least
    with torch.no_grad():
        method.gate.weight.zero_()
        method.gate.bias.fill_(-50)  # sigmoid(α) = 0: all to the least used
        held = held._replace(w_used=used, memory=torch.ones(1, 10, 5))
        new, _ = method._step(held, torch.rand(1, FEATURES), torch.zeros(1, 3))
    k = torch.tanh(method.key(new.h)).view(2, 5)
    torch.testing.assert_close(new.memory[0, 9], k[0])  # emptied, then written
    torch.testing.assert_close(new.memory[0, 8], k[1])
    torch.testing.assert_close(new.memory[0, :8], torch.ones(8, 5))
    torch.testing.assert_close(new.w_read.sum(-1), torch.ones(1, 2))
    expected = method.decay * used + new.w_read.sum(1) + torch.nn.functional.one_hot(torch.tensor([[8, 9]]), 10).sum(1)
    torch.testing.assert_close(new.w_used, expected)


def test_accuracy_by_instance_counts_each_class_for_itself() -> None:
    method, drawn = mann(), episode(way=3, shot=1, queries=3)
    shares = method.by_instance(drawn)
    assert len(shares) == 4
    logits, y = method.sequence(drawn)
    right = (logits.argmax(-1) == y).double()
    assert sum(shares) / 4 == 100 * right.mean()
    first = [right[t, (y[t] == k).nonzero()[0, 0]] for t in range(2) for k in range(3)]
    assert shares[0] == 100 * torch.stack(first).mean()


def test_metanets_gradients_are_data() -> None:
    """No gradient reaches the slow weights by way of the meta information: cut off from it, they get the same."""
    method, drawn = metanet(), episode(way=3, shot=2, queries=4)
    z = method.body(drawn.support_x.flatten(0, 1)).view(2, 6, FEATURES)
    fast = method._task_level(z.detach(), drawn.support_y)
    by_slow = torch.autograd.grad(fast.sum(), [method.W.weight, method.represent.weight], allow_unused=True)
    assert by_slow == (None, None)
    by_F = torch.autograd.grad(method._task_level(z.detach(), drawn.support_y).sum(), list(method.F.parameters()))
    assert all(g.abs().max() > 0 for g in by_F[:2])


def test_metanet_reads_the_memory_by_attention() -> None:
    """The fast weights of a query, written out as matrices."""
    method, drawn = metanet(), episode(way=3, shot=1, queries=1)
    scores = method.predict(drawn.support_x, drawn.support_y, drawn.query_x)
    z, asked = (method.body(x.flatten(0, 1)).view(2, 3, FEATURES) for x in (drawn.support_x, drawn.query_x))
    fast = method._task_level(z.detach(), drawn.support_y)
    keys, r = method._represented(z, fast), method._represented(asked, fast)
    U, V = method._example_level(torch.relu(method.W(z)).detach(), drawn.support_y)
    cosines = torch.nn.functional.cosine_similarity(keys[1], r[1, 2][None])
    a = torch.softmax(cosines, 0)
    U_q, V_q = torch.einsum("s,shf->hf", a, U[1]), torch.einsum("s,swh->wh", a, V[1])
    h = torch.relu(method.U(r[1, 2])) + torch.relu(U_q @ r[1, 2])
    torch.testing.assert_close(scores[1, 2], method.V(h) + V_q @ h)
