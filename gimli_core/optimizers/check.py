"""Is a hand-written pullback that of its step? One call, and the first wrong entry by name."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from gimli_core.errors import unexpected
from gimli_core.notation import Hyper, State, Tensors, slots
from gimli_core.optimizers.derived import derived_pullback
from gimli_core.optimizers.interface import Optimizer, Pulled
from gimli_core.optimizers.pullback_report import Entry, PullbackReport
from gimli_core.optimizers.seen import asked

__all__ = ["check_pullback"]


def check_pullback(
    optimizer: Optimizer,
    theta: Tensors | None = None,
    *,
    state: State | None = None,
    G: Tensors | None = None,
    hyper: Hyper | None = None,
    steps: int = 3,
    seed: int = 0,
    tolerance: float = 1e-9,
) -> PullbackReport:
    """Compare an optimizer's pullback with the vector-Jacobian product of its own step, block by block.

    For each output (theta' and every state slot) a random adjoint is pulled back, and every input's adjoint is
    compared with autograd through one step. Where autograd is not finite (sqrt at 0, say) central finite
    differences of the step stand in. A hyperparameter that is the number 0, and so left out of the step, is not
    compared: give it as `torch.tensor(0.0)`.

    Args:
        optimizer: what to check.
        theta: `{name: float64 tensor}`; a small matrix and a vector by default.
        state: s_j; by default the state after `steps` steps with random gradients.
        G: the gradient; random by default.
        hyper: `{name: {hyperparameter: value}}`; the values given at construction by default.
        steps, seed: for the defaults.
        tolerance: allowed error, relative to the largest entry of a block (or to a millionth of the largest of all,
            where a block cancels to nearly 0).

    Returns:
        PullbackReport: `.ok`, `.first_wrong`, `.assert_ok()`; printing it says the same.

    Raises:
        ArgumentError: a pullback that returns an adjoint of the wrong shape, or none.

    Cost: one pullback and one differentiated step for each output.

    >>> import gimli_core as gimli
    >>> gimli.optimizers.check_pullback(gimli.optimizers.Adam(lr=0.1)).ok
    True
    """
    generator = torch.Generator().manual_seed(seed)

    def randn(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator, dtype=torch.float64).to(like)

    if theta is None:
        theta = {k: randn(torch.empty(shape, dtype=torch.float64)) for k, shape in {"w": (3, 2), "b": (4,)}.items()}
    if hyper is None:
        of_step = {"loss": randn(torch.zeros((), dtype=torch.float64)), "j": torch.tensor(float(steps)).double()}
        seen = {name: of_step[name] for name in optimizer.seen()}
        hyper = {k: {**per, **seen} for k, per in constants(optimizer, theta).items()}
    if state is None:
        moving, state = theta, optimizer.initial_state(theta, hyper)
        for _ in range(steps):
            moving, state = optimizer.step(moving, state, {k: randn(v) for k, v in theta.items()}, hyper)
    G = {k: randn(v) for k, v in theta.items()} if G is None else G
    point = (theta, state, G, hyper)
    by_slot = list(slots(state))
    names = asked(optimizer, [name for name in optimizer.continuous() if optimizer.uses(name)])
    entries: list[Entry] = []
    for output in ("theta", *by_slot):
        B = {k: randn(v) * float(output == "theta") for k, v in theta.items()}
        S = {slot: {k: randn(v) * float(output == slot) for k, v in state[slot].items()} for slot in by_slot}
        actual = optimizer.pullback(*point, B, S, names)
        expected = derived_pullback(optimizer.step, *point, B, S, names)
        wants = list(_blocks(expected, expected))
        floor = 1e-6 * max(
            (torch.nan_to_num(want).abs().max().item() for _, _, want in wants if want.numel()), default=0.0
        )
        for (by, k, got), (_, _, want) in zip(_blocks(actual, expected), wants, strict=True):
            if want.numel():
                entries.append(_compare(optimizer, point, (output, by, k), got, want, B, S, floor))
    return PullbackReport(type(optimizer).__name__, tuple(entries), tolerance)


def constants(optimizer: Optimizer, theta: Tensors) -> Hyper:
    """The hyperparameters given at construction, as numbers for every tensor of theta."""
    values = optimizer.hyperparameters()
    for name in [name for name, value in values.items() if value is None]:
        argument = f"{type(optimizer).__name__}({name}=…)"
        raise unexpected(argument, "a value, as there is no phi_opt", "None", "Construct it with one.")
    return {
        k: {n: v.detach() if isinstance(v, Tensor) else torch.tensor(v, dtype=torch.float64) for n, v in values.items()}
        for k in theta
    }


def _blocks(pulled: Pulled, like: Pulled) -> Iterator[tuple[str, str, Tensor]]:
    """(input, tensor, adjoint) of everything in `like`; a hyperparameter that `pulled` leaves out has adjoint 0."""
    for by, tensors, shapes in (
        ("G", pulled.V, like.V),
        ("theta", pulled.B, like.B),
        *((slot, pulled.S[slot], like.S[slot]) for slot in like.S),
    ):
        for k, shape in shapes.items():
            yield by, k, _shaped(by, k, tensors.get(k), shape)
    for k, adjoints in like.A.items():
        for name, shape in adjoints.items():
            yield name, k, _shaped(name, k, pulled.A.get(k, {}).get(name, torch.zeros_like(shape)), shape)


def _shaped(by: str, k: str, actual: Tensor | None, like: Tensor) -> Tensor:
    if actual is None or actual.shape != like.shape:
        what = "nothing" if actual is None else f"shape {list(actual.shape)}"
        raise unexpected(
            f"pullback: the adjoint of {by} of {k!r}",
            f"shape {list(like.shape)}",
            what,
            "Return one for every input.",
        )
    return actual


def _compare(
    optimizer: Optimizer,
    point: Any,
    names: tuple[str, str, str],
    actual: Tensor,
    expected: Tensor,
    B: Tensors,
    S: State,
    floor: float,
) -> Entry:
    output, by, k = names
    oracle = "autograd"
    broken = ~torch.isfinite(expected)
    if bool(broken.any()):
        oracle = "finite differences"
        expected = expected.clone()
        for index in broken.nonzero().tolist():
            expected[tuple(index)] = _slope(optimizer, point, by, k, tuple(index), B, S)
    difference = torch.nan_to_num((actual - expected).abs(), nan=float("inf"))
    scale = max(expected.abs().max().item(), floor) or 1.0
    where = int(difference.argmax())
    index = tuple(int(i) for i in torch.unravel_index(torch.tensor(where), actual.shape)) if actual.ndim else ()
    # Finite differences are good to about six digits.
    error = difference.reshape(-1)[where].item() / scale * (1e-4 if oracle != "autograd" else 1.0)
    return Entry(output, by, k, error, index, actual[index].item(), expected[index].item(), oracle)


def _slope(optimizer: Optimizer, point: Any, by: str, k: str, index: tuple[int, ...], B: Tensors, S: State) -> float:
    """d <(B, S), step> / d input[index], by central differences, extrapolated once, or one-sided at an edge."""
    theta, state, G, hyper = point

    def value(h: float) -> float:
        def moved(tensors: Tensors) -> Tensors:
            changed = tensors[k].clone()
            changed[index] += h
            return {**tensors, k: changed}

        t, s, g, p = theta, state, G, hyper
        if by == "theta":
            t = moved(theta)
        elif by == "G":
            g = moved(G)
        elif by in state:
            s = {**state, by: moved(state[by])}
        else:
            changed = hyper[k][by].clone()
            changed[index] += h
            p = {**hyper, k: {**hyper[k], by: changed}}
        new_theta, new_state = optimizer.step(t, s, g, p)
        total = sum((new_theta[n] * b).sum() for n, b in B.items())
        total += sum((new_state[slot][n] * b).sum() for slot, of_slot in S.items() for n, b in of_slot.items())
        return float(total)

    def central(h: float) -> float:
        return (value(h) - value(-h)) / (2 * h)

    h = 1e-9  # small beside every eps that rounds a singular point off; the values there are exact to that scale
    slope = (4 * central(h / 2) - central(h)) / 3
    # Beyond the edge of its range (a second moment below 0) the step is not a number: look inwards.
    return slope if math.isfinite(slope) else (value(h) - value(0.0)) / h
