"""What a run returns, by the paper's names."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from gimli_core.notation import COUNTS, State, Tensors
from gimli_core.trees import KeyPath, mapped_at, tensors

__all__ = ["MetaGradient", "Trajectory"]


@dataclass(frozen=True, eq=False, repr=False)
class Trajectory:
    """Where the inner loop went. All tensors are detached.

    `torch.save` writes one, and `torch.load` reads it, also with `weights_only=True` once gimli_core is imported.

    >>> import torch, gimli_core as gimli
    >>> def loss(theta, phi, target):
    ...     return ((theta["w"] - target) ** 2).sum() / 2
    >>> problem = gimli.Problem(loss, loss, gimli.optimizers.SGD(lr=0.5))
    >>> theta_0, one = {"w": torch.zeros(2)}, torch.ones(2)
    >>> gimli.adapt(problem, theta_0, [one, one]).train_losses
    tensor([1.0000, 0.2500])
    """

    val_loss: Tensor  # [] or [k], L = Σ_j w_j L_val(theta_j), by default L_val(theta_J); over tasks their mean or sum
    theta_J: Tensors  # frozen entries included
    state_J: State
    buffers_J: Tensors  # module buffers after the last step; [T, …] where tasks have changed them, each its own
    train_losses: Tensor  # [J], ell_j(theta_j); [J, T] of T tasks
    val_losses: Tensor  # [J + 1], L_val(theta_j) where it has a weight, else nan; [J + 1, T]; and of k losses k last
    task_val_losses: Tensor | None = field(default=None, kw_only=True)  # [T] or [T, k], L of each task
    task_steps: Tensor | None = field(default=None, kw_only=True)  # [T], where `until` ended each task's loop
    # What train_loss returned besides, each tensor [J, …] or [J, T, …]; and val_loss, [K, …] at the K theta_j with a
    # weight, in their order.
    train_aux: Any = field(default=None, kw_only=True)
    val_aux: Any = field(default=None, kw_only=True)
    approximation: str = field(default="", kw_only=True)  # what the gradient leaves out; "" if it is exact

    def to(self, *target: Any) -> Self:
        """The same on another device, in another dtype or both, as `Tensor.to`; counts and integers keep theirs.

        >>> import torch
        >>> one = torch.ones((), dtype=torch.float64)
        >>> t = Trajectory(one, {"w": one}, {"step": one}, {}, one.reshape(1), one.reshape(1)).to(torch.float32)
        >>> t.theta_J["w"].dtype, t.state_J["step"].dtype
        (torch.float32, torch.float64)
        """
        devices = [x for x in target if not isinstance(x, torch.dtype)]
        return replace(self, **{name: _moved(value, target, devices) for name, value in self.state_dict().items()})

    def state_dict(self) -> dict[str, Any]:
        """Every field by its name: nested dicts of tensors, which `torch.save` writes and `torch.load` reads."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def plot(self, path: str | Path | None = None) -> Any:
        """A matplotlib figure of the losses along the inner loop, saved at `path` if there is one. Needs matplotlib."""
        figure = importlib.import_module("matplotlib.figure").Figure(figsize=(6, 4), layout="constrained")
        axes = figure.subplots()
        axes.set(xlabel="inner step j", ylabel="loss", title=repr(self).partition("(")[0])
        for name, losses, marker in (("train", self.train_losses, ""), ("validation", self.val_losses, "o")):
            lines = losses.detach().double().cpu().unsqueeze(-1).flatten(1)
            if bool(lines.isfinite().any()):
                axes.plot(range(len(lines)), lines.tolist(), marker, label=name, color=None, alpha=0.8)
        handles, labels = axes.get_legend_handles_labels()
        unique = dict(zip(labels, handles, strict=True))
        axes.legend(unique.values(), unique.keys())
        axes.grid(alpha=0.3)
        if path is not None:
            figure.savefig(path, dpi=150)
        return figure

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(self._told())})"

    def _told(self) -> list[str]:
        """What a line says of it."""
        J, last = len(self.train_losses), self.train_losses[-1:]
        told = [f"val_loss={_number(self.val_loss)}", f"steps={J}"]
        if last.ndim > 1:
            told.append(f"tasks={last.shape[1]}")
        if J > 0:
            told.append(f"last train_loss={_number(last[0].mean())}")
        told.append(f"|theta_J|={_norm(self.theta_J):.4g}")
        return told


@dataclass(frozen=True, eq=False, repr=False)
class MetaGradient(Trajectory):
    """What Algorithm 1 returns, by the paper's names and keyed as the inputs were.

    Of a vector of k outer losses every A_opt, A_loss, B_0 and S_0 has a leading k, a row for each.

    >>> import torch, gimli_core as gimli
    >>> def loss(theta, phi, target):
    ...     return ((theta["w"] - target) ** 2).sum() / 2
    >>> problem = gimli.Problem(loss, loss, gimli.optimizers.SGD(lr=0.5))
    >>> theta_0, one = {"w": torch.zeros(2)}, torch.ones(2)
    >>> result = gimli.meta_gradient(problem, theta_0, [one, one], one)
    >>> result.B_0["w"], result.theta_J["w"]                 # (1 - lr)^2J (theta_0 - 1)
    (tensor([-0.0625, -0.0625]), tensor([0.7500, 0.7500]))
    """

    A_opt: dict[str, Any]  # dL/dphi_opt
    A_loss: Tensors  # dL/dphi_loss
    B_0: Tensors  # dL/dtheta_0
    S_0: State  # dL/ds_0
    recurrence: str = "augmented"
    A: Tensors = field(default_factory=dict, kw_only=True)  # dL/dphi by the names of what an outer loop learns

    def _told(self) -> list[str]:
        told = super()._told()
        for name in ("A_opt", "A_loss", "B_0", "S_0"):
            tree = getattr(self, name)
            if tree and name in ("A_opt", "A_loss"):
                told.append(f"{name}: {{{', '.join(f'{k}: {_shown(v)}' for k, v in tree.items())}}}")
            elif any(True for _ in tensors(tree)):
                told.append(f"|{name}|={_norm(tree):.4g}")
        if self.recurrence != "augmented":
            told.append(f"recurrence={self.recurrence!r} (not the exact gradient)")
        if self.approximation:
            told.append(f"approximation={self.approximation!r} (not the exact gradient)")
        return told


def _number(value: Tensor) -> str:
    return f"{value.item():.6g}" if value.ndim == 0 else f"[{len(value)} outer losses]"


def _shown(tree: Any) -> str:
    """A number as it is, anything else by its norm."""
    if isinstance(tree, Tensor) and tree.numel() == 1:
        return f"{tree.item():.4g}"
    return f"|{_norm(tree):.4g}|"


def _norm(tree: Any) -> float:
    """Over all tensors in a tree."""
    square: float = sum(t.detach().double().square().sum().item() for t in tensors(tree))
    return float(square**0.5)


def _moved(tree: Any, target: tuple[Any, ...], devices: list[Any]) -> Any:
    """The tree elsewhere; what counts, and what is no floating-point tensor, in its own dtype."""

    def moved(path: KeyPath, leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        counts = any(key in COUNTS for key in path)
        wanted = devices if counts or not leaf.is_floating_point() else target
        return leaf.to(*wanted) if wanted else leaf

    return mapped_at(moved, tree)


torch.serialization.add_safe_globals([Trajectory, MetaGradient])
