"""GIMLI's experiment 5.2: MAML++ with other networks and another inner optimizer.

Each of vgg, resnet-4, resnet-8, resnet-12 and densenet-8 is trained with an inner SGD (a learned rate for each tensor
and step, as in MAML++) and with an inner Adam (which starts from the outer Adam's moments; a learned rate and learned
betas for each tensor), on Omniglot and on a set of photographs. Batch norm uses the batch at hand everywhere; the
multi-step loss and the order of derivatives are annealed as in MAML++ (Grefenstette et al. 2019, Section 5.2).

    python examples/gimli_paper/ablation.py --quick                    # two cores, some minutes
    python examples/gimli_paper/ablation.py                            # the paper's settings: days
    python examples/gimli_paper/ablation.py --only resnet-4+SGD        # one row
    python examples/gimli_paper/ablation.py --colour mini-imagenet/    # a published folder in place of CIFAR-FS

A run that was killed goes on where it was. Written to --out: tables.md (Tables 1 and 2), table_2.csv, and, for each
training, the learned rates over outer steps as in Figures 2 and 3: rates_*.png.
"""

import argparse
import csv
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from gimli_core.errors import ArgumentError
from gimli_core.few_shot.data.reading import read
from gimli_core.few_shot.experiment import Experiment, Options
from gimli_core.few_shot.gradient_based.adapting import by_name
from gimli_core.few_shot.gradient_based.maml_adam import MamlAdam
from gimli_core.few_shot.gradient_based.maml_pp import MamlPlusPlus
from gimli_core.few_shot.recipes import RECIPES

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
MODELS = ("vgg", "resnet-4", "resnet-8", "resnet-12", "densenet-8")
INNER = ("SGD", "Adam")
STEPS = 5  # inner, in training and test

# The paper's Table 2, in percent: mean and deviation over three seeds; "photographs" are miniImageNet there.
PAPER = {
    ("photographs", 5, 1): {"densenet-8+SGD": (46.08, 1.40), "resnet-12+SGD": (51.06, 1.51), "resnet-4+Adam":
        (49.71, 3.71), "resnet-4+SGD": (54.36, 0.23), "resnet-8+SGD": (54.16, 1.35), "vgg+Adam": (47.93, 11.64),
        "vgg+SGD": (56.33, 0.27)},
    ("photographs", 5, 5): {"densenet-8+SGD": (65.29, 0.98), "resnet-12+Adam": (37.40, 3.64), "resnet-12+SGD":
        (69.14, 3.19), "resnet-4+Adam": (76.33, 0.71), "resnet-4+SGD": (74.48, 0.77), "resnet-8+Adam": (68.03, 15.19),
        "resnet-8+SGD": (76.73, 0.52), "vgg+Adam": (72.82, 2.36), "vgg+SGD": (75.13, 0.67)},
    ("omniglot", 5, 1): {"densenet-8+SGD": (99.54, 0.33), "resnet-4+SGD": (99.91, 0.05), "vgg+Adam": (99.62, 0.08),
        "vgg+SGD": (99.62, 0.08)},
    ("omniglot", 5, 5): {"densenet-8+SGD": (99.86, 0.05), "resnet-4+SGD": (99.87, 0.03), "vgg+Adam": (99.86, 0.04),
        "vgg+SGD": (99.86, 0.02)},
    ("omniglot", 20, 1): {"densenet-8+SGD": (93.20, 0.32), "resnet-12+SGD": (99.00, 0.33), "resnet-4+Adam":
        (98.31, 0.09), "resnet-4+SGD": (96.31, 0.15), "resnet-8+SGD": (98.50, 0.15), "vgg+Adam": (96.15, 0.16),
        "vgg+SGD": (97.21, 0.11)},
    ("omniglot", 20, 5): {"densenet-8+SGD": (97.24, 0.26), "resnet-12+SGD": (99.69, 0.17), "resnet-4+Adam":
        (99.44, 0.23), "resnet-4+SGD": (99.71, 0.03), "resnet-8+SGD": (99.76, 0.01), "vgg+Adam": (98.74, 0.04),
        "vgg+SGD": (99.13, 0.13)},
}  # fmt: skip
BASE = {
    ("photographs", 5, 1): 52.15,
    ("photographs", 5, 5): 68.32,
    ("omniglot", 5, 1): 99.53,
    ("omniglot", 5, 5): 99.93,
    ("omniglot", 20, 1): 97.65,
    ("omniglot", 20, 5): 99.33,
}  # fmt: skip  MAML++ itself


@dataclass(frozen=True)
class Setting:
    """What a training depends on besides its cell of the table: the paper's, that is MAML++'s, by default."""

    models: tuple[str, ...] = MODELS
    cells: tuple[tuple[str, int, int], ...] = tuple(PAPER)
    seeds: int = 3
    filters: int = 64
    outer_steps: int = 75_000  # 150 epochs of 500
    episodes: int = 600
    tasks: int = 16


QUICK = Setting(("vgg", "resnet-4"), (("omniglot", 5, 1), ("photographs", 5, 1)), 1, 8, 150, 100, 4)


def recipe(inner, colour):
    """MAML++'s recipe with an inner SGD or Adam, and batch norm without statistics or parameters by step."""

    def make(setting):
        annealing = {"anneal": setting.outer_steps // 10, "first_order": setting.outer_steps // 3}
        if inner == "Adam":
            return MamlAdam(setting.learner(), steps=STEPS, **annealing)
        rate = 0.01 if colour else 0.1
        return MamlPlusPlus(setting.learner(), lr=rate, steps=STEPS, per_step_norm=False, **annealing)

    return replace(RECIPES["maml++"], make=make, rate=1e-3)


def learned(method):
    """The learned hyperparameters of the inner rule by name, as {"lr of 0.weight": number}: the mean over steps."""
    adam = isinstance(method, MamlAdam)
    kinds = {"lr": (method.log_lr, torch.exp)}
    if adam:
        kinds |= {"beta1": (method.logit_1, torch.sigmoid), "beta2": (method.logit_2, torch.sigmoid)}
    return {
        f"{kind} of {name}": back(value.detach()).mean().item()
        for kind, (values, back) in kinds.items()
        for name, value in by_name(values).items()
    }


class Cell:
    """One training: a model and an inner optimizer on a data set with so many ways and shots, from one seed."""

    def __init__(self, data, where, model, inner, seed, setting, device):
        kind, way, shot = where
        options = Options(way=way, shot=shot, network=model, filters=setting.filters, steps=setting.outer_steps,
                          episodes=setting.episodes, tasks=setting.tasks, seed=seed, device=device)  # fmt: skip
        self.where, self.row, self.seed = where, f"{model}+{inner}", seed
        self.name = f"{kind}_{way}way_{shot}shot_{self.row}_{seed}"
        self.experiment = Experiment("maml++", data, options, recipe(inner, kind != "omniglot"))

    def run(self, out, progress):
        """Train, or go on; (accuracy in percent, what was learned at so many outer steps)."""
        method, loop = self.experiment.method, self.experiment.loop(out / self.name, progress)
        if isinstance(method, MamlAdam):
            method.outer = loop.meta_optimizer
        loop.evaluate, loop.evaluate_every = lambda step: learned(method), max(1, loop.steps // 50)
        records = loop.run()
        accuracy = self.experiment.outcome(out / self.name).accuracy.mean
        return accuracy, [(each["step"], each["evaluation"]) for each in records if "evaluation" in each]


def tables(results, setting):
    """Tables 1 and 2 as Markdown, and Table 2 as rows."""
    rows = [("data", "way", "shot", "model+inner", "accuracy, %", "deviation", "seeds", "the paper, %")]
    first = ["| | MAML++, the paper | base: vgg+SGD | the paper's | best | the paper's |", "|---|---|---|---|---|---|"]
    for where, of_rows in results.items():
        kind, way, shot = where
        paper = PAPER.get(where, {})
        means = {row: np.mean(values) for row, values in of_rows.items()}
        for row, values in sorted(of_rows.items()):
            theirs = "{:.2f} ± {:.2f}".format(*paper[row]) if row in paper else ""
            deviation = f"{np.std(values, ddof=1):.2f}" if len(values) > 1 else ""
            rows.append((kind, way, shot, row, f"{means[row]:.2f}", deviation, len(values), theirs))
        base = f"{means['vgg+SGD']:.2f}" if "vgg+SGD" in means else ""
        best, theirs = max(means, key=means.get), max(paper, key=paper.get)
        first.append(
            f"| {kind}, {way}-way {shot}-shot | {BASE[where]:.2f} | {base} | {paper['vgg+SGD'][0]:.2f} "
            f"| {means[best]:.2f} ({best}) | {paper[theirs][0]:.2f} ({theirs}) |"
        )
    second = ["| " + " | ".join(map(str, row)) + " |" for row in rows]
    second.insert(1, "|" + "---|" * len(rows[0]))
    return "\n".join(["Table 1", "", *first, "", "Table 2", "", *second, ""]), rows


def figure(history, title, path):
    """Figures 2 and 3: what each tensor's rate (and betas) became, over outer steps."""
    from matplotlib.figure import Figure

    steps, kinds = [step for step, _ in history], ("lr", "beta1", "beta2")
    kinds = [kind for kind in kinds if any(name.startswith(kind + " ") for name in history[0][1])]
    drawn = Figure(figsize=(4.5 * len(kinds), 3.5), layout="constrained")
    for axes, kind in zip(drawn.subplots(1, len(kinds), squeeze=False)[0], kinds, strict=True):
        for name in history[0][1]:
            if name.startswith(kind + " "):
                axes.plot(steps, [values[name] for _, values in history], linewidth=0.8)
        axes.set(xlabel="outer step", ylabel=kind, title=title if kind == "lr" else "")
    drawn.savefig(path, dpi=150)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="shrunk for two cores, as is printed")
    parser.add_argument("--omniglot", default=str(SHARED / "omniglot28.npz"), help="as of gimli few-shot (%(default)s)")
    parser.add_argument("--colour", default=str(SHARED / "cifarfs.npz"), help="likewise (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("gimli_ablation"), help="%(default)s")
    parser.add_argument("--only", nargs="+", metavar="MODEL+INNER", help="such as vgg+SGD resnet-4+Adam")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--outer-steps", type=int)
    parser.add_argument("--seeds", type=int)
    options = parser.parse_args()
    setting = QUICK if options.quick else Setting()
    asked = {"outer_steps": options.outer_steps, "seeds": options.seeds}
    setting = replace(setting, **{name: value for name, value in asked.items() if value is not None})
    for name, value in vars(setting).items():
        if value != (paper := getattr(Setting(), name)):
            print(f"not the paper's: {name} {value} (the paper: {paper})")
    rows = [(model, inner) for model in setting.models for inner in INNER]
    if options.only:
        rows = [tuple(row.rsplit("+", 1)) for row in options.only]
        if wrong := [row for row in options.only if tuple(row.rsplit("+", 1)) not in
                     [(model, inner) for model in MODELS for inner in INNER]]:  # fmt: skip
            raise SystemExit(f"--only: expected MODEL+INNER of {', '.join(MODELS)} and {', '.join(INNER)}; got {wrong}")
    torch.set_num_threads(1)
    try:
        paths = {"omniglot": options.omniglot, "photographs": options.colour}
        data = {kind: read(paths[kind], None) for kind in dict.fromkeys(where[0] for where in setting.cells)}
        for where in setting.cells:  # each is built before any is trained: what is wrong shows at once
            for model, inner in rows:
                Cell(data[where[0]], where, model, inner, 0, setting, options.device)
    except ArgumentError as error:
        raise SystemExit(f"{error}\nSee `gimli few-shot --help` for what --omniglot and --colour may be.") from None
    print(f"photographs: {data['photographs'].name} (the paper: miniImageNet)" if "photographs" in data else "")
    options.out.mkdir(parents=True, exist_ok=True)
    results = {}
    every = [(where, *row, seed) for where in setting.cells for row in rows for seed in range(setting.seeds)]
    for where, model, inner, seed in every:
        cell = Cell(data[where[0]], where, model, inner, seed, setting, options.device)
        accuracy, history = cell.run(options.out, progress=False)
        results.setdefault(cell.where, {}).setdefault(cell.row, []).append(accuracy)
        print(f"{cell.name}: {accuracy:.2f} %", flush=True)
        figure(history, cell.name, options.out / f"rates_{cell.name}.png")
        markdown, table = tables(results, setting)  # after each cell: of a run that is killed, all that is done stands
        (options.out / "tables.md").write_text(markdown, encoding="utf-8")
        with open(options.out / "table_2.csv", "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(table)
    print(markdown)
    print(f"written: {options.out}/tables.md, table_2.csv, rates_*.png")


if __name__ == "__main__":
    main()
