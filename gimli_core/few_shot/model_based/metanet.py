"""MetaNet: Munkhdalai & Yu 2017, "Meta networks"."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import grad, vmap
from torch.nn.functional import cross_entropy, normalize, relu

from gimli_core.few_shot.episodes import Episode
from gimli_core.few_shot.method import Method
from gimli_core.few_shot.metric_based.embedding import embedded
from gimli_core.learned.preprocessing import log_and_sign

__all__ = ["MetaNet"]


class MetaNet(Method):
    """Slow weights, and fast ones made of the gradients that the slow ones meet on a task.

        r = relu(W z) + relu(W⁺ z)        task level:     W⁺ = F_w(∇_W ℓ_emb of support row 1, …, S)
        h = relu(U r) + relu(U⁺ r)        example level:  U_i⁺, V_i⁺ = G_v(∇_{U,V} ℓ_task of row i), memory M
        logits = V h + V⁺ h               read:           U⁺, V⁺ = Σ_i softmax_i(cosine(r, r_i))·M_i

    z are pictures through four convolutions, which have slow weights only (the paper augments them too). F_w is an
    LSTM, G_v a small network; both are the same for every coordinate, and see gradients as data.

    Args:
        body: of one picture, [n, …] to [n, features].
        features: how many numbers it gives.
        way: classes of a task.
        hidden: of F_w and G_v.
    """

    def __init__(self, body: nn.Module, features: int, way: int, hidden: int = 20) -> None:
        super().__init__()
        self.body = body
        self.W, self.represent = nn.Linear(features, features, bias=False), nn.Linear(features, way)
        self.U, self.V = nn.Linear(features, features, bias=False), nn.Linear(features, way, bias=False)
        self.F = nn.LSTM(2, hidden)
        self.F_out = nn.Linear(hidden, 1)
        self.G = nn.Sequential(nn.Linear(2, hidden), nn.ReLU(), nn.Linear(hidden, 1))

    def loss(self, episode: Episode) -> Tensor:
        scores = self.predict(episode.support_x, episode.support_y, episode.query_x)
        return cross_entropy(scores.flatten(0, 1), episode.query_y.flatten())

    def predict(self, support_x: Tensor, support_y: Tensor, query_x: Tensor) -> Tensor:
        shown, asked = embedded(self.body, support_x, query_x)
        W_fast = self._task_level(shown.detach(), support_y)
        keys, r = self._represented(shown, W_fast), self._represented(asked, W_fast)
        U_all, V_all = self._example_level(self._represented(shown, None).detach(), support_y)
        attention = torch.softmax(normalize(r, dim=-1) @ normalize(keys, dim=-1).mT, -1)
        # Σ_i a_i (U_i⁺ r) is (Σ_i a_i U_i⁺) r without a matrix a query.
        h = relu(self.U(r)) + relu(torch.einsum("tqs,tshf,tqf->tqh", attention, U_all, r))
        logits: Tensor = self.V(h) + torch.einsum("tqs,tswh,tqh->tqw", attention, V_all, h)
        return logits

    def _represented(self, z: Tensor, W_fast: Tensor | None) -> Tensor:
        slow = relu(self.W(z))
        return slow if W_fast is None else slow + relu(z @ W_fast.mT)

    def _task_level(self, z: Tensor, y: Tensor) -> Tensor:
        """W⁺ [T, out, in]: F_w over the gradients of each support row's representation loss."""
        represent = {k: v.detach() for k, v in self.represent.named_parameters()}

        def ell(W: Tensor, z: Tensor, y: Tensor) -> Tensor:
            return cross_entropy(represent["weight"] @ relu(W @ z) + represent["bias"], y)

        met = vmap(vmap(grad(ell), in_dims=(None, 0, 0)), in_dims=(None, 0, 0))(self.W.weight.detach(), z, y)
        states, _ = self.F(torch.stack(log_and_sign(met), -1).transpose(0, 1).flatten(1, 3))  # [S, T·out·in, hidden]
        fast: Tensor = self.F_out(states[-1]).view(len(z), *self.W.weight.shape)
        return fast

    def _example_level(self, r: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """U_i⁺ [T, S, out, in] and V_i⁺ [T, S, way, in]: G_v of each support row's task loss."""

        def ell(weights: tuple[Tensor, Tensor], r: Tensor, y: Tensor) -> Tensor:
            U, V = weights
            return cross_entropy(V @ relu(U @ r), y)

        slow = (self.U.weight.detach(), self.V.weight.detach())
        met = vmap(vmap(grad(ell), in_dims=(None, 0, 0)), in_dims=(None, 0, 0))(slow, r, y)
        U_fast, V_fast = (self.G(torch.stack(log_and_sign(each), -1)).squeeze(-1) for each in met)
        return U_fast, V_fast
