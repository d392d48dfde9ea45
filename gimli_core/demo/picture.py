"""The demo's picture: what was learned, outer step by outer step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from gimli_core.demo.learning import ADAM_BETAS, START_L2, START_LR, Hyperparameters
from gimli_core.errors import unexpected
from gimli_core.memory.atomic_file import check_writable, writing

__all__ = ["check_path", "loss_title", "save", "spread_title"]

COLOURS = ("#0b7a75", "#7a3fb5", "#c4510f", "#1f63b8", "#7d6200", "#47566b", "#c0262d", "#17723f")
FIXED = "0.45"


def check_path(path: Path) -> None:
    """Raise `ArgumentError` unless a picture can be saved at `path`: before the work, not after it."""
    formats = FigureCanvasAgg.get_supported_filetypes()
    if path.suffix.lstrip(".").lower() not in formats:
        do = "Choose .png, .pdf or .svg."
        raise unexpected(f"--out {path}", "the name of a picture", f"the ending {path.suffix!r}", do)
    check_writable("--out", path)


def save(
    path: Path, losses: Sequence[float], learned: Sequence[Hyperparameters], grid_loss: float, grid_lr: float
) -> None:
    """Four panels over outer steps, each titled by what it shows. The file appears whole or not at all.

    Args:
        losses: L_val met at each outer step.
        learned: the hyperparameters after each.
        grid_loss, grid_lr: of the best fixed learning rate.
    """
    figure = Figure(figsize=(10, 7.4), layout="constrained")
    loss, rates, betas, penalties = figure.subplots(2, 2).flat
    names = list(learned[0].lr)
    lr = {k: [START_LR, *(values.lr[k].item() for values in learned)] for k in names}
    l2 = {k: [START_L2, *(values.log_l2[k].exp().item() for values in learned)] for k in names}
    beta1 = [1 - ADAM_BETAS[0], *(1 - values.beta1.item() for values in learned)]
    beta2 = [1 - ADAM_BETAS[1], *(1 - values.beta2.item() for values in learned)]
    for axes, title, y in (
        (loss, loss_title(losses, grid_loss), "validation loss"),
        (rates, spread_title("Learning rates", lr), "learning rate"),
        (betas, f"1 − beta1 went to {beta1[-1]:.2g}, 1 − beta2 to {beta2[-1]:.2g}", "1 − beta"),
        (penalties, spread_title("L2 penalties", l2), "L2 penalty"),
    ):
        axes.set_title(title, fontsize="medium")
        axes.set(xlabel="outer step", ylabel=y, yscale="log")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
    loss.plot(range(1, len(losses) + 1), losses, label="learned so far", color=COLOURS[0])
    loss.axhline(grid_loss, color=FIXED, linestyle="--", label="best fixed learning rate")
    rates.axhline(grid_lr, color=FIXED, linestyle="--")
    for k, colour in zip(names, cycle(COLOURS)):
        rates.plot(lr[k], color=colour, label=k)
        penalties.plot(l2[k], color=colour)
    betas.plot(beta1, label="1 − beta1", color=COLOURS[0])
    betas.plot(beta2, label="1 − beta2", color=COLOURS[1])
    for axes in (loss, betas):
        axes.legend(fontsize="small", frameon=False)
    figure.legend(
        *rates.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize="small", frameon=False
    )
    with writing("--out", path) as file:
        figure.savefig(file, format=path.suffix.lstrip(".").lower(), dpi=150)


def loss_title(losses: Sequence[float], grid_loss: float) -> str:
    """What the validation loss says: from where on the learned ones stay below the best fixed rate.

    >>> loss_title([3.0, 0.9, 2.0, 0.9, 0.8], 1.0)
    'Learned: better than the best fixed rate from outer step 4 on'
    >>> loss_title([3.0, 2.0], 1.0)
    'Not yet better than the best fixed rate: 2 beside 1'
    """
    above = [n for n, loss in enumerate(losses, 1) if not loss < grid_loss]
    first = (above[-1] if above else 0) + 1
    if first > len(losses):
        return f"Not yet better than the best fixed rate: {losses[-1]:.3g} beside {grid_loss:.3g}"
    return f"Learned: better than the best fixed rate from outer step {first} on"


def spread_title(what: str, curves: Mapping[str, Sequence[float]]) -> str:
    """How far what was learned for each tensor went from where all began.

    >>> spread_title("Rates", {"weight": [0.1, 0.2], "bias": [0.1, 0.05]})
    'Rates: weight ×2, bias ×0.5'
    """
    factors = {k: values[-1] / values[0] for k, values in curves.items()}
    most, least = max(factors, key=lambda k: factors[k]), min(factors, key=lambda k: factors[k])
    parts = dict.fromkeys((most, least))
    return f"{what}: " + ", ".join(f"{k} ×{factors[k]:.2g}" for k in parts)
