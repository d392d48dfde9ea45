"""The classical baseline: what an example's weight would do if training ran to the minimum nearest to theta_J."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import grad, jacrev

from gimli_core.attribution.curvature import gauss_newton, hessian
from gimli_core.attribution.scores import Scores
from gimli_core.attribution.weights import by_name, indexed_entry
from gimli_core.derivatives.beside_loss import value_and_aux
from gimli_core.derivatives.micro_batches import MicroBatches
from gimli_core.errors import unexpected
from gimli_core.meta_parameters.indexed import Indexed, rows_of
from gimli_core.meta_parameters.marks import unmarked
from gimli_core.notation import Tensors
from gimli_core.problem import Problem
from gimli_core.transforms.nested import nested

__all__ = ["MOST_PARAMETERS", "influence_scores"]

MOST_PARAMETERS = 5000  # their Hessian is a matrix of 200 MB


def influence_scores(
    problem: Problem,
    theta_J: Mapping[str, Tensor],
    batches: Sequence[Any],
    val_batch: Any,
    *,
    phi_loss: Mapping[str, Any],
    entry: str | None = None,
    damping: float | Sequence[float] = 1e-2,
    outputs: Callable[[Tensors, Any], Tensor] | None = None,
    output_loss: Callable[[Tensor, Tensors, Any], Tensor] | None = None,
) -> Any:
    """Influence functions with an exact matrix of curvature, for networks of a few thousand numbers.

        R(theta, w)  = mean of train_loss over `batches`
        scores[q, i] = -grad L_q' (C + damping I)^{-1} d(grad R)/dw_i      at theta_J

        C = Gauss-Newton: mean of J' (grad² of output_loss) J, J = d outputs / d theta        where `outputs` are told
        C = |H| = U diag(|e|) U',  H = Hessian of R = U diag(e) U'                            otherwise

    Where training was stopped early H is not positive, and the absolute values of its eigenvalues stand for them.

    Args:
        problem, val_batch, phi_loss, entry: as in `scores`; neither loss takes j.
        theta_J: where training ended.
        batches: that hold each training example once.
        damping: one number above 0, or several: then a dict of scores by damping comes back, for one C.
        outputs, output_loss: train_loss in two, `(theta, batch) -> f`, such as logits, and `(f, phi_loss, batch) ->
            loss`; both or none.

    Returns:
        Scores, or `{damping: Scores}`; the units are those of `scores`, so that the two can be compared.

    Raises:
        ArgumentError: more than MOST_PARAMETERS numbers in theta; damping that is not above 0; outputs whose
            output_loss is not train_loss.

    Cost: n products with C (about 6F over all examples each) and n² numbers, of n numbers in theta; time n³.

    >>> import torch, gimli_core as gimli
    >>> def loss(theta, phi, batch):
    ...     return (phi["w"] * (theta["a"] - batch["x"]) ** 2).mean() / 2
    >>> problem = gimli.Problem(loss, lambda theta, phi, y: (theta["a"] - y) ** 2 / 2, gimli.optimizers.SGD(lr=1.0))
    >>> batch, w = {"x": torch.tensor([1.0, -1.0]), "rows": torch.arange(2)}, gimli.indexed(torch.ones(2))
    >>> at, y = {"a": torch.zeros(())}, torch.tensor([1.0])
    >>> gimli.attribution.influence_scores(problem, at, [batch], y, phi_loss={"w": w}, damping=1.0).values
    tensor([[-0.2500,  0.2500]])

    Source: Koh and Liang 2017, Understanding Black-box Predictions via Influence Functions.
    """
    problem, phi_loss, places = by_name(problem, phi_loss)
    name, mark = indexed_entry(phi_loss, entry)
    dampings = [damping] if isinstance(damping, (int, float)) else list(damping)
    if (outputs is None) != (output_loss is None):
        raise unexpected(
            "outputs", "both or none of outputs= and output_loss=", "one", "Tell both halves of train_loss."
        )
    for d in dampings:
        if isinstance(d, bool) or not isinstance(d, (int, float)) or not 0 < d < float("inf"):
            raise unexpected("damping", "a number above 0", repr(d), "1e-2 is a common choice.")
    theta = {k: v.detach() for k, v in theta_J.items()}
    n = sum(v.numel() for v in theta.values())
    if n > MOST_PARAMETERS:
        do = "Take a smaller network, or leave this baseline out."
        raise unexpected("theta_J", f"at most {MOST_PARAMETERS} numbers, whose Hessian is a matrix", f"{n}", do)
    phi = {k: torch.as_tensor(unmarked(v)).detach() for k, v in phi_loss.items()}
    of_val = {k: v for k, v in phi.items() if not isinstance(phi_loss[k], Indexed)}
    flat = torch.cat([v.reshape(-1) for v in theta.values()])

    def tensors(vector: Tensor) -> Tensors:
        parts = vector.split([v.numel() for v in theta.values()])
        return {k: part.reshape(v.shape) for (k, v), part in zip(theta.items(), parts, strict=True)}

    def queries(vector: Tensor) -> Tensor:
        losses: Tensor = value_and_aux(problem.val_loss(tensors(vector), of_val, val_batch), "val_loss")[0]
        return losses.reshape(-1)

    def train(vector: Tensor, looked_up: Tensors, batch: Any) -> Tensor:
        loss: Tensor = value_and_aux(problem.train_loss(tensors(vector), looked_up, batch), "train_loss")[0]
        return loss

    marked = {k: v for k, v in phi_loss.items() if isinstance(v, Indexed)}
    seen = []  # (rows of the weights, phi_loss with the rows looked up, batch)
    for j, batch in enumerate(batches):
        if isinstance(batch, MicroBatches):
            raise unexpected(f"batches[{j}]", "a batch", "MicroBatches", "Give its parts as batches of their own.")
        rows = {k: r.joined() for k, r in rows_of(marked, batch, j).items()}
        seen.append((rows[name], {**phi, **{k: phi[k][r] for k, r in rows.items()}}, batch))

    def curvature(looked_up: Tensors, batch: Any) -> Tensor:
        if outputs is None or output_loss is None:
            return hessian(lambda vector: train(vector, looked_up, batch), flat)
        of_batch = lambda vector: outputs(tensors(vector), batch)  # noqa: E731
        told = nested(looked_up, places)
        composed, direct = output_loss(of_batch(flat), told, batch), train(flat, looked_up, batch)
        if composed.shape != direct.shape or not torch.allclose(composed, direct, rtol=1e-4):
            actual, do = f"{composed.tolist()} where train_loss gives {direct.tolist()}", "Split train_loss itself."
            raise unexpected("output_loss(outputs)", "the value of train_loss", actual, do)
        return gauss_newton(of_batch, lambda f: output_loss(f, told, batch), flat)

    C = torch.zeros(n, n, dtype=flat.dtype, device=flat.device)
    for _, looked_up, batch in seen:
        C += curvature(looked_up, batch) / len(seen)
    if not bool(torch.isfinite(C).all()):
        raise unexpected("theta_J", "a point with finite second derivatives", "inf or nan", "Did training diverge?")
    e, U = torch.linalg.eigh((C + C.T) / 2)
    del C
    dL = jacrev(queries)(flat)  # [k, n]
    val_loss = queries(flat).detach()

    def scored(damping: float) -> Scores:
        u = ((dL @ U) / (e.abs() + damping)) @ U.T
        values = torch.zeros(len(u), *mark.value.shape, dtype=flat.dtype, device=flat.device)
        for rows, looked_up, batch in seen:

            def along(w: Tensor, looked_up: Tensors = looked_up, batch: Any = batch) -> Tensor:
                products: Tensor = u @ grad(train)(flat, {**looked_up, name: w}, batch)
                return products

            mixed = jacrev(along)(looked_up[name])  # [k, *rows, …]
            moved = mixed.reshape(len(u), -1, *mark.value.shape[1:])
            values.index_add_(1, rows.reshape(-1), -moved / len(seen))
        return Scores(values, val_loss)

    scores = {d: scored(d) for d in dampings}
    return scores[dampings[0]] if isinstance(damping, (int, float)) else scores
