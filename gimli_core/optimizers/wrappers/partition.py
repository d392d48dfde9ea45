"""Different rules for different tensors, as one optimizer."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from gimli_core.errors import listing, unexpected
from gimli_core.notation import Hyper, State, Tensors
from gimli_core.optimizers.interface import Optimizer, Pulled, state_of
from gimli_core.optimizers.numbers import pulled_as_vectors, stepped_as_vectors

__all__ = ["Partition"]


@dataclass(frozen=True, eq=False)
class Partition(Optimizer):
    """Several optimizers side by side, each for the tensors that its patterns name.

    A hyperparameter is called `part.name`: `phi_opt={"matrices.lr": …, "rest.beta1": …}`.

    Args:
        parts: `{part: (optimizer, [tensor names or shell patterns])}`; each tensor must belong to exactly one part.

    Raises:
        ArgumentError: a tensor in no part or in several; something that is not an optimizer.

    Cost: the sum of its parts.

    >>> import torch, gimli_core as gimli
    >>> rule = gimli.optimizers.Partition({
    ...     "matrices": (gimli.optimizers.SGD(lr=0.5), ["*weight"]), "rest": (gimli.optimizers.Adam(lr=0.1), ["*bias"]),
    ... })
    >>> rule.continuous()[:2], rule.hyperparameters()["rest.lr"]
    (('matrices.lr', 'matrices.momentum'), 0.1)
    """

    parts: Mapping[str, tuple[Optimizer, Sequence[str]]]

    def __post_init__(self) -> None:
        for part, (optimizer, patterns) in self.parts.items():
            if not isinstance(optimizer, Optimizer) or isinstance(patterns, str):
                actual = f"({type(optimizer).__name__}, {patterns!r})"
                raise unexpected(
                    f"Partition[{part!r}]", "(an optimizer, a list of names or patterns)", actual, "Give both."
                )

    def _names(self, method: str) -> tuple[str, ...]:
        return tuple(f"{part}.{name}" for part, (rule, _) in self.parts.items() for name in getattr(rule, method)())

    def continuous(self) -> tuple[str, ...]:
        return self._names("continuous")

    def seen(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for rule, _ in self.parts.values() for name in rule.seen()))

    def own_parameters(self) -> tuple[str, ...]:
        return self._names("own_parameters")

    def whole_tensor(self) -> tuple[str, ...]:
        return self._names("whole_tensor")

    def check_range(self, name: str, value: float, argument: str) -> None:
        part, inner = name.split(".", 1)
        self.parts[part][0].check_range(inner, value, argument)

    def hyperparameters(self) -> dict[str, Any]:
        return {
            f"{part}.{name}": v for part, (rule, _) in self.parts.items() for name, v in rule.hyperparameters().items()
        }

    def bind(self, values: Mapping[str, Any]) -> Optimizer:
        parts = {part: (rule.bind(_of(part, values)), patterns) for part, (rule, patterns) in self.parts.items()}
        return super().bind({"parts": parts})

    def uses(self, name: str) -> bool:
        part, inner = name.split(".", 1)
        return self.parts[part][0].uses(inner)

    def _split(self, theta: Mapping[str, Any]) -> list[tuple[str, Optimizer, list[str]]]:
        """[(part, optimizer, tensor names)]."""
        parts = [
            (p, rule, [k for k in theta if any(fnmatchcase(k, w) for w in ws)]) for p, (rule, ws) in self.parts.items()
        ]
        for k in theta:
            homes = [part for part, _, names in parts if k in names]
            if len(homes) != 1:
                raise unexpected(
                    f"Partition: {k!r}",
                    "to be in exactly one part",
                    f"it in {listing(homes)}",
                    "Add it to a part's names or patterns, or make the patterns disjoint.",
                )
        return [(part, rule, names) for part, rule, names in parts if names]

    def moved_by_gradient(self, names: Collection[str]) -> Collection[str]:
        split = self._split(dict.fromkeys(names))
        return {k for _, rule, mine in split for k in rule.moved_by_gradient(mine)}

    @stepped_as_vectors
    def step_used(self, theta: Tensors, state: State, G: Tensors, hyper: Hyper) -> tuple[Tensors, State]:
        return self.step(theta, state, G, hyper)

    @pulled_as_vectors
    def pullback_used(
        self, theta: Tensors, state: State, G: Tensors, hyper: Hyper, B: Tensors, S: State, wanted: Collection[str]
    ) -> Pulled:
        return self.pullback(theta, state, G, hyper, B, S, wanted)

    def initial_state(self, theta: Tensors, hyper: Hyper) -> State:
        state: State = {}
        for part, rule, names in self._split(theta):
            _merge(state, rule.initial_state({k: theta[k] for k in names}, _hyper(part, hyper, names)))
        return state

    def initial_state_pullback(self, S_0: State, hyper: Hyper, wanted: Collection[str]) -> dict[str, Tensors]:
        summed = {}
        for part, rule, names in self._split({k: next(iter(h.values())) for k, h in hyper.items()}):
            inner = rule.initial_state_pullback(
                _share(S_0, names), _hyper(part, hyper, names), _of(part, dict.fromkeys(wanted))
            )
            summed.update({k: {f"{part}.{name}": a for name, a in A.items()} for k, A in inner.items()})
        return summed

    def step(self, theta: Tensors, state: State, G: Tensors, hyper: Hyper) -> tuple[Tensors, State]:
        new_theta: Tensors = {}
        new_state: State = {}
        for part, rule, names in self._split(theta):
            mine = ({k: theta[k] for k in names}, _share(state, names), {k: G[k] for k in names if k in G})
            moved, new = rule.step_used(*mine, _hyper(part, hyper, names, rule.seen()))
            new_theta.update(moved)
            _merge(new_state, new)
        return {k: new_theta[k] for k in theta}, new_state

    def pullback(
        self, theta: Tensors, state: State, G: Tensors, hyper: Hyper, B: Tensors, S: State, wanted: Collection[str]
    ) -> Pulled:
        merged = Pulled({}, {}, {}, {})
        for part, rule, names in self._split(theta):
            one_theta, one_G, one_B = ({k: tensors[k] for k in names if k in tensors} for tensors in (theta, G, B))
            pulled = rule.pullback_used(
                one_theta,
                _share(state, names),
                one_G,
                _hyper(part, hyper, names, rule.seen()),
                one_B,
                _share(S, names),
                (*_of(part, dict.fromkeys(wanted)), *(n for n in wanted if n in rule.seen())),
            )
            merged.V.update(pulled.V)
            merged.B.update(pulled.B)
            _merge(merged.S, pulled.S)
            seen = rule.seen()  # by the same name in every part
            merged.A.update(
                {k: {n if n in seen else f"{part}.{n}": a for n, a in A.items()} for k, A in pulled.A.items()}
            )
        return merged


def _of(part: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The entries `part.name`, as `name`."""
    return {name.removeprefix(f"{part}."): v for name, v in values.items() if name.startswith(f"{part}.")}


def _hyper(part: str, hyper: Hyper, names: list[str], seen: Collection[str] = ()) -> Hyper:
    """The hyperparameters of a part by its own names, and what its rule sees of the step."""
    return {k: {**_of(part, hyper[k]), **{n: hyper[k][n] for n in seen}} for k in names}


def _share(state: State, names: list[str]) -> State:
    """What `names` hold of a state, without the slots that only other parts have."""
    return {
        slot: of_slot for slot, of_slot in state_of(state, names).items() if not isinstance(of_slot, Mapping) or of_slot
    }


def _merge(into: State, more: State) -> None:
    for slot, of_slot in more.items():
        if isinstance(of_slot, Mapping):
            into.setdefault(slot, {}).update(of_slot)
        else:
            into[slot] = of_slot
