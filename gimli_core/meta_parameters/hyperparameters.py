"""Lines 2 and 16: phi_opt split into the value each tensor uses at each step, and its adjoints joined again.

A hyperparameter can be one number, one per parameter group, one per tensor, one per element, and each of
these per step. Whatever its form, it is a list of leaves; a leaf knows which tensors it serves, and the
shape says how:

    shape          meaning for a tensor of shape p         with J steps
    []             one value                               [J]       one value a step
    [groups]       one value a group                       [J, groups]
    p              one value an element                    [J, *p]

A dict keyed by tensor names (or group names) gives each its own leaf; a dict for a rule's own parameter has its
tensors as leaves, of any shape. A shape that could be read in two ways is refused; `per_step` or `per_element`
settles it. With T tasks a value marked `per_task` has one of these forms with a leading T.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from gimli_core.derivatives.finite import finite
from gimli_core.errors import ArgumentError, closest, explain, listing
from gimli_core.meta_parameters.marks import Marked, unmarked
from gimli_core.notation import Hyper, Tensors
from gimli_core.optimizers.derived import own_root
from gimli_core.optimizers.interface import Optimizer

__all__ = ["Hyperparameters", "bound", "expand_betas", "look_up", "resolve_groups", "tensor_paths"]


class _Learned:
    """Stands in a bound optimizer for a value that phi_opt gives: no number, and so never left out as a plain 0."""

    def __repr__(self) -> str:
        return "learned"


LEARNED = _Learned()


class Leaf(NamedTuple):
    """One tensor of phi_opt, and how it is spread over tensors, elements and steps."""

    hyperparameter: str
    label: str  # as in an error message: phi_opt['lr']['fc.weight']
    value: Tensor
    serves: tuple[str, ...]  # names of the tensors of theta
    by_step: bool
    group_index: tuple[int, ...] | None  # for a vector over groups: the entry that each of `serves` uses
    by_task: bool = False

    def renewed(self, rule: Optimizer, value: Any, theta: Tensors) -> Leaf:
        """The leaf with another value of the same shape, checked."""
        value = _as_tensor(value, self.label)
        _check_values(rule, self.hyperparameter, value, self.label, next(iter(theta.values())), self.by_element)
        return self._replace(value=value)

    @property
    def by_element(self) -> bool:
        """Whether every element of a tensor has a value of its own."""
        return not _per_tensor(self)

    def at(self, j: int, position: int) -> Tensor:
        return self.part(self.value, j, position)

    def part(self, whole: Tensor, j: int, position: int) -> Tensor:
        """What of a tensor of this leaf's shape belongs to step j and a tensor of theta; a view."""
        tasks = (slice(None),) if self.by_task else ()
        whole = whole[(*tasks, j)] if self.by_step else whole
        return whole if self.group_index is None else whole[(*tasks, self.group_index[position])]


def expand_betas(phi_opt: Mapping[str, Any]) -> dict[str, Any]:
    """phi_opt with the pair "betas" written as "beta1" and "beta2"."""
    expanded: dict[str, Any] = {}
    for name, value in phi_opt.items():
        if name != "betas":
            expanded[name] = value
            continue
        if not isinstance(value, (tuple, list)) or len(value) != 2 or {"beta1", "beta2"} & set(phi_opt):
            raise ArgumentError(
                explain("phi_opt['betas']", "a pair (beta1, beta2), without 'beta1' or 'beta2' beside it",
                        f"{type(value).__name__} beside {listing(phi_opt)}", "Give the pair, or the two by name.")
            )  # fmt: skip
        expanded["beta1"], expanded["beta2"] = value
    return expanded


def bound(optimizer: Optimizer, phi_opt: Mapping[str, Any]) -> Optimizer:
    """The optimizer, knowing which of its hyperparameters are meta-parameters."""

    def learned(name: str, value: Any) -> Any:
        value = unmarked(value)
        return dict.fromkeys(value, LEARNED) if isinstance(value, Mapping) and own_root(optimizer, name) else LEARNED

    return optimizer.bind({name: learned(name, value) for name, value in expand_betas(phi_opt).items()})


def tensor_paths(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Tensor]]:
    """(path, tensor) for every tensor in nested dicts and pairs, such as a phi_opt; `look_up` follows a path."""
    tree = unmarked(tree)
    if isinstance(tree, Tensor):
        yield path, tree
    elif isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from tensor_paths(value, (*path, key))
    elif isinstance(tree, (tuple, list)):
        for key, value in enumerate(tree):
            yield from tensor_paths(value, (*path, key))


def look_up(tree: Any, path: tuple[Any, ...]) -> Any:
    """What stands at `path` in nested dicts and pairs."""
    for key in path:
        tree = unmarked(tree)[key]
    return unmarked(tree)


def resolve_groups(optimizer: Optimizer, theta: Tensors) -> dict[str, tuple[str, ...]]:
    """{group: tensor names}; every tensor must be in exactly one group, if there are any."""
    if not optimizer.groups:
        return {}
    if not isinstance(optimizer.groups, Mapping):
        came = type(optimizer.groups).__name__
        raise ArgumentError(
            explain("optimizer groups", "a dict {group: [tensor names]}", came, "For example {'body': ['conv*']}.")
        )
    for group, patterns in optimizer.groups.items():
        if (
            isinstance(patterns, str)
            or not isinstance(patterns, Iterable)
            or not all(isinstance(p, str) for p in patterns)
        ):
            raise ArgumentError(
                explain(f"optimizer groups[{group!r}]", "a list of tensor names or shell patterns", repr(patterns),
                        "One pattern alone is a list of one: ['conv*'].")
            )  # fmt: skip
    groups = {
        group: tuple(k for k in theta if any(fnmatchcase(k, p) for p in patterns))
        for group, patterns in optimizer.groups.items()
    }
    for k in theta:
        homes = [group for group, members in groups.items() if k in members]
        if len(homes) != 1:
            raise ArgumentError(
                explain(f"optimizer groups: {k!r}", "to be in exactly one group", f"it in {listing(homes)}",
                        "Add it to a group's names or patterns, or make the patterns disjoint.")
            )  # fmt: skip
    return groups


class _Transform(Protocol):
    def hyper(self, hyper: Hyper) -> Hyper: ...


class Hyperparameters:
    """Every hyperparameter of a bound optimizer, resolved against theta and the number of steps.

    Args:
        optimizer: supplies the values that phi_opt does not.
        phi_opt: `{hyperparameter: value}`; these are meta-parameters.
        theta: `{name: tensor}`, of one task.
        steps: J.
        tasks: T, where there are tasks: increments of A_opt then have a leading T.

    Raises:
        ArgumentError: an unknown name, a shape that fits nothing or fits twice, an integer tensor,
            another device, a value that is not finite or out of range.
    """

    def __init__(
        self, optimizer: Optimizer, phi_opt: Mapping[str, Any], theta: Tensors, steps: int, tasks: int | None = None
    ) -> None:
        self._rule = optimizer
        self.steps = steps
        self.tasks = tasks
        self.theta = theta
        self.groups = resolve_groups(optimizer, theta)
        # The caller's own dicts may change before the result is put in their form.
        self.given = {name: dict(v) if isinstance(v, Mapping) else v for name, v in phi_opt.items()}
        meta = expand_betas(phi_opt)
        for name in meta:
            _check_name(name, optimizer)
        rule = type(optimizer).__name__
        fixed = [
            self._resolve(optimizer, n, v, f"{rule}({n}=…)")
            for n, v in optimizer.hyperparameters().items()
            if v is not None  # phi_opt's to give
        ]
        learned = [self._resolve(optimizer, n, v, f"phi_opt[{n!r}]") for n, v in meta.items()]
        self.leaves = [leaf for leaves in learned for leaf in leaves]
        self.wanted = tuple(dict.fromkeys(leaf.hyperparameter for leaf in self.leaves))
        split = {name for name, value in meta.items() if isinstance(unmarked(value), Mapping) and unmarked(value)}
        # Later entries win: a phi_opt that covers some tensors leaves the others to the optimizer's own value.
        self._home: dict[str, dict[str, tuple[Leaf, int, int | None]]] = {k: {} for k in theta}
        for leaves, learning in ((fixed, False), (learned, True)):
            for number, leaf in enumerate(leaf for group in leaves for leaf in group):
                for position, k in enumerate(leaf.serves):
                    self._home[k][leaf.hyperparameter] = (leaf, position, number if learning else None)
        self._cached: Hyper | None = None
        self._through: Callable[[Hyper], Hyper] | None = None
        for name in optimizer.continuous():
            missing = [k for k in theta if name not in self._home[k] and own_root(optimizer, name) not in split]
            if missing:
                few = len(missing) < len(theta)
                do = "Add the missing names." if few else f"Give it in phi_opt[{name!r}], or {rule}({name}=…)."
                expected = "a value for every tensor of theta"
                raise ArgumentError(explain(name, expected, f"none for {listing(missing)}", do))

    def at(self, j: int) -> Hyper:
        """{tensor: {hyperparameter: value}} of step j."""
        if self._cached is not None:
            return self._cached
        # The last step's values stand for a state or an inspection after the end.
        j = min(j, max(self.steps - 1, 0))
        hyper = {
            k: {name: _as_used(leaf, leaf.at(j, at), self.theta[k]) for name, (leaf, at, _) in homes.items()}
            for k, homes in self._home.items()
        }
        if "j" in self._rule.seen():
            number = torch.tensor(float(j), dtype=torch.float64)
            hyper = {k: {**per, "j": number} for k, per in hyper.items()}
        hyper = hyper if self._through is None else self._through(hyper)
        if self.constant:
            self._cached = hyper
        return hyper

    def through(self, transform: _Transform) -> Hyperparameters:
        """The same, of which each step's values come in a transform's form. Increments of A_opt stay by name."""
        other = copy.copy(self)
        other._cached, other._through = None, transform.hyper
        return other

    @functools.cached_property
    def constant(self) -> bool:
        """Whether all steps have the same values."""
        of_steps = any(leaf.by_step for homes in self._home.values() for leaf, _, _ in homes.values())
        return not (of_steps or "j" in self._rule.seen())

    def renewed(self, phi_opt: Mapping[str, Any]) -> Hyperparameters:
        """The same for a phi_opt of the same form with other values. Raises ArgumentError as the constructor does."""
        other = copy.copy(self)
        values = (leaf for value in expand_betas(phi_opt).values() for leaf in leaves_of(value))
        other.leaves = [
            leaf.renewed(self._rule, value, self.theta) for leaf, value in zip(self.leaves, values, strict=True)
        ]
        other._home = {
            k: {n: (leaf if at is None else other.leaves[at], place, at) for n, (leaf, place, at) in homes.items()}
            for k, homes in self._home.items()
        }
        other._cached = None
        other.given = {name: dict(v) if isinstance(v, Mapping) else v for name, v in phi_opt.items()}
        return other

    def zeros(self) -> list[Tensor]:
        """A_opt = 0, one accumulator a leaf, in float32 at least (line 8)."""
        return [
            torch.zeros_like(leaf.value, dtype=torch.promote_types(leaf.value.dtype, torch.float32))
            for leaf in self.leaves
        ]

    def accumulate(self, A_opt: list[Tensor], j: int, increments: Mapping[str, Mapping[str, Tensor]]) -> None:
        """A_opt += the increments of step j, in place (line 12)."""
        for k, by_name in increments.items():
            for name, increment in by_name.items():
                leaf, position, number = self._home[k][name]
                if number is None:
                    continue
                if self.tasks is not None and not leaf.by_task:
                    increment = increment.sum(0)
                target = leaf.part(A_opt[number], j, position)
                target += increment if increment.shape == target.shape else increment.sum()

    def join(self, A_opt: Sequence[Tensor]) -> dict[str, Any]:
        """A_opt in the structure that phi_opt came in (line 16)."""
        remaining = iter(A_opt)

        def fill(value: Any) -> Any:
            value = unmarked(value)
            if isinstance(value, Mapping):
                return {key: fill(v) for key, v in value.items()}
            if isinstance(value, (tuple, list)):
                return type(value)([fill(v) for v in value])
            return next(remaining)

        return {name: fill(value) for name, value in self.given.items()}

    def scalars(self) -> tuple[frozenset[str], frozenset[str]]:
        """The hyperparameters that are one number for all tensors, and those that are a number for at least one."""
        homes = {name: [per[name] for per in self._home.values()] for name in next(iter(self._home.values()))}
        number = {name: [_per_tensor(leaf) for leaf, _, _ in held] for name, held in homes.items()}
        one = {
            name
            for name, held in homes.items()
            if all(number[name]) and all(leaf is held[0][0] and leaf.group_index is None for leaf, _, _ in held)
        }
        return frozenset(one), frozenset(name for name in homes if any(number[name]))

    def by_task(self) -> dict[str, dict[str, bool]]:
        """{tensor: {hyperparameter: whether each task has its own}}."""
        return {k: {name: home[0].by_task for name, home in homes.items()} for k, homes in self._home.items()}

    def _resolve(self, rule: Optimizer, name: str, value: Any, label: str) -> list[Leaf]:
        every = tuple(self.theta)
        marked, value = Marked().inside(value)
        if not isinstance(value, Mapping):
            return [self._leaf(rule, name, value, label, every, marked, whole=True)]
        if name in rule.own_parameters():
            return [
                self._leaf(rule, f"{name}.{key}", one, f"{label}[{key!r}]", every, mine, whole=True)
                for key, (mine, one) in ((key, marked.inside(one)) for key, one in value.items())
            ]
        by_group = bool(self.groups) and set(value) <= set(self.groups)
        leaves = []
        for key, one in value.items():
            mine, one = marked.inside(one)
            known = self.groups if by_group else self.theta
            if key not in known:
                what = "names of theta" + (" or of parameter groups" if self.groups else "")
                raise ArgumentError(
                    explain(label, f"a dict keyed by {what} ({listing(known)})", f"the key {key!r}",
                            f"Rename it.{closest(key, known)}")
                )  # fmt: skip
            serves = self.groups[key] if by_group else (key,)
            leaves.append(self._leaf(rule, name, one, f"{label}[{key!r}]", serves, mine, whole=False))
        return leaves

    def _leaf(
        self, rule: Optimizer, name: str, value: Any, label: str, serves: tuple[str, ...], marked: Marked, whole: bool
    ) -> Leaf:
        value = _as_tensor(value, label)
        shape = self._of_one_task(value, label) if marked.by_task else value.shape
        if own_root(rule, name) is not None:
            reading = self._read_own(shape, label, marked), False
        else:
            reading = self._read(shape, label, () if name in rule.whole_tensor() else serves, marked, whole)
        anywhere = next(iter(self.theta.values()))
        if value.device != anywhere.device and value.ndim > 0:
            raise ArgumentError(
                explain(
                    label,
                    f"a tensor on theta's device {anywhere.device}",
                    f"one on {value.device}",
                    "Move it with .to(...).",
                )
            )
        by_step, groups = reading
        _check_values(rule, name, value, label, anywhere, len(shape) > by_step + groups)
        index = None
        if groups:
            order = {k: i for i, members in enumerate(self.groups.values()) for k in members}
            index = tuple(order[k] for k in serves)
        return Leaf(name, label, value, serves, by_step, index, marked.by_task)

    def _of_one_task(self, value: Tensor, label: str) -> torch.Size:
        if self.tasks is None or value.shape[:1] != (self.tasks,):
            expected = "tasks=T beside it" if self.tasks is None else f"a leading dimension of {self.tasks}"
            do = "per_task marks values that count tasks in their first dimension."
            raise ArgumentError(explain(label, expected, f"shape {list(value.shape)}, marked per_task", do))
        return value.shape[1:]

    def _read_own(self, shape: torch.Size, label: str, marked: Marked) -> bool:
        """Whether a rule's own parameter, of any shape, counts steps in front: only where it is marked so."""
        if marked.by_step and (self.steps == 0 or shape[:1] != (self.steps,)):
            expected, do = f"a leading dimension of J = {self.steps} > 0", "per_step marks values that count steps."
            raise ArgumentError(explain(label, expected, f"shape {list(shape)}, marked per_step", do))
        if marked.by_element:
            expected, do = "no mark per_element", "The rule's own parameters are the same for every tensor."
            raise ArgumentError(explain(label, expected, "one", do))
        return marked.by_step

    def _read(
        self, shape: torch.Size, label: str, serves: tuple[str, ...], marked: Marked, whole: bool
    ) -> tuple[bool, bool]:
        """(by step, by group): the one reading that a shape allows."""
        elementwise = {tuple(self.theta[k].shape) for k in serves}
        J, n = self.steps, len(self.groups)
        readings: dict[tuple[int, ...], list[tuple[str, bool, bool]]] = {}

        def allow(allowed: tuple[int, ...], meaning: str, by_step: bool, by_group: bool) -> None:
            if (J > 0 or not by_step) and (by_step or not marked.by_step):
                readings.setdefault(allowed, []).append((meaning, by_step, by_group))

        if not marked.by_element:
            allow((), "one value", False, False)
            allow((J,), "one per step", True, False)
            if whole and self.groups:
                allow((n,), "one per group", False, True)
                allow((J, n), "one per step and group", True, True)
        if len(elementwise) == 1 and (elementwise != {()} or marked.by_element):
            p = next(iter(elementwise))
            allow(p, "one per element", False, False)
            allow((J, *p), "one per step and element", True, False)
        found = readings.get(tuple(shape), [])
        if not readings and len(elementwise) != 1 and marked.by_element:
            expected = "values per element of one shape of tensor" if elementwise else "one number a tensor"
            came, do = f"shape {list(shape)}, marked per_element", "For several tensors use a dict keyed by names."
            do = do if elementwise else "It acts on a tensor as a whole: leave out the mark."
            raise ArgumentError(explain(label, expected, came, do))
        if not readings:
            raise ArgumentError(explain(label, "no value per step, as J = 0", str(list(shape)), "Give one value."))
        if not found:
            fits = ", ".join(f"{list(s)} ({r[0][0]})" for s, r in readings.items())
            raise ArgumentError(
                explain(
                    label,
                    f"a shape among {fits}",
                    str(list(shape)),
                    f"Here J = {J}; for several tensors use a dict keyed by names.",
                )
            )
        if len(found) > 1:
            raise ArgumentError(
                explain(label, "a shape with one reading", f"{list(shape)}: {' or '.join(r[0] for r in found)}",
                        "Wrap it in gimli.per_step(...) if its first dimension counts steps, or in "
                        "gimli.per_element(...) if it has one value for each element; else give a dict keyed by names.")
            )  # fmt: skip
        return found[0][1], found[0][2]


def _check_name(name: str, optimizer: Optimizer) -> None:
    rule = type(optimizer)
    known = tuple(dict.fromkeys(own_root(optimizer, one) or one for one in optimizer.continuous()))
    if name in known:
        return
    if hasattr(optimizer, name) and name in getattr(rule, "__dataclass_fields__", {}):
        raise ArgumentError(
            explain(f"phi_opt[{name!r}]", f"a continuous hyperparameter ({listing(known)})",
                    "a switch, which has no derivative", f"Give {name}= to {rule.__name__}(...) instead.")
        )  # fmt: skip
    raise ArgumentError(
        explain("phi_opt", f"hyperparameters of {rule.__name__} ({listing(known)})", repr(name),
                f"Rename or remove it.{closest(name, known)}")
    )  # fmt: skip


def _as_tensor(value: Any, label: str) -> Tensor:
    if isinstance(value, bool) or not isinstance(value, (int, float, Tensor)):
        raise ArgumentError(
            explain(
                label,
                "a number, a floating-point tensor, or a dict of them keyed by names",
                type(value).__name__,
                "Convert it.",
            )
        )
    if isinstance(value, (int, float)):
        return torch.tensor(float(value), dtype=torch.float64)
    if not value.is_floating_point():
        raise ArgumentError(
            explain(
                label,
                "a floating-point tensor",
                f"{value.dtype} of shape {list(value.shape)}, which is not continuous",
                "Convert it with .float().",
            )
        )
    return value.detach()


def _check_values(
    rule: Optimizer, name: str, value: Tensor, label: str, theta: Tensor, by_element: bool
) -> None:  # fmt: skip
    """Raise ArgumentError unless all values are finite, and betas and eps_root in their range as they will be used."""
    if not finite(value):
        raise ArgumentError(explain(label, "finite values", "inf or nan", "Find out where it was computed."))
    if name in ("beta1", "beta2", "eps_root") and value.numel():
        rounds = by_element and theta.dtype != value.dtype  # 0.999 is 1 in bfloat16
        used = value.to(theta.dtype) if rounds else value
        for extreme in (used.min().item(), used.max().item()):
            rule.check_range(name, extreme, f"{label}, rounded to {theta.dtype}" if rounds else label)


def leaves_of(value: Any) -> Iterator[Any]:
    """The numbers and tensors of one hyperparameter, in the order of their leaves."""
    value = unmarked(value)
    if isinstance(value, Mapping):
        for entry in value.values():
            yield from leaves_of(entry)
    else:
        yield value


def _per_tensor(leaf: Leaf) -> bool:
    """Whether a tensor has a single number of this leaf at a step."""
    return leaf.value.ndim == leaf.by_task + leaf.by_step + (leaf.group_index is not None)


def _as_used(leaf: Leaf, value: Tensor, theta: Tensor) -> Tensor:
    """Scalars in float64, so that 1 - beta^t is as exact as torch.optim's; per-element values in theta's dtype."""
    return value.to(torch.float64) if value.ndim == leaf.by_task else value.to(theta.dtype)
