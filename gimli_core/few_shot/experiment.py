"""One experiment: data, protocol, training by the outer loop, evaluation, and what is said of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from gimli_core.errors import listing, unexpected
from gimli_core.few_shot.data.images import PARTS, LabelledImages, parts_of
from gimli_core.few_shot.episodes import Episodes, EpisodeSampler, check_count, with_rotations
from gimli_core.few_shot.figures import figure_of, protocol_of
from gimli_core.few_shot.gradient_based.lstm import LstmMetaLearner
from gimli_core.few_shot.gradient_based.maml import Maml
from gimli_core.few_shot.method import Estimator, Method, evaluate
from gimli_core.few_shot.model_based.mann import Mann
from gimli_core.few_shot.networks import NETWORKS
from gimli_core.few_shot.networks.parts import PIXEL_AT
from gimli_core.few_shot.outcome import Outcome
from gimli_core.few_shot.protocol import Protocol
from gimli_core.few_shot.recipes import RECIPES, Recipe, Setting
from gimli_core.inner_loop.checks import check_device
from gimli_core.memory.allocator import reusing
from gimli_core.outer_loop.outer_loop import OuterLoop

__all__ = ["Experiment", "Options"]

TEST_TASKS = 10  # run together
VALIDATIONS, VALIDATION_EPISODES = 8, 60
BASELINE_RATES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)


@dataclass(frozen=True)
class Options:
    """What may be asked besides the method; None takes the recipe's."""

    way: int = 5
    shot: int = 1
    queries: int = 5
    split: str | None = None
    rotations: bool | None = None
    train_way: int | None = None
    train_shot: int | None = None
    tasks: int | None = None
    steps: int | None = None
    rate: float | None = None
    network: str | None = None
    filters: int | None = None
    bfloat16: bool | None = None
    episodes: int = 600
    seed: int = 0
    device: str = "cpu"


class Experiment:
    """A method on a data set: everything is checked and built here, before any training.

    Args:
        name: of the method, one of `RECIPES`.
        data: the images.
        options: what differs from the recipe.
        recipe: in place of the method's own.

    Raises:
        ArgumentError: an unknown name, a split without classes, classes that are too small, numbers below 1.
    """

    def __init__(
        self, name: str, data: LabelledImages, options: Options | None = None, recipe: Recipe | None = None
    ) -> None:
        options = options or Options()
        if name not in RECIPES:
            raise unexpected("METHOD", listing(RECIPES), repr(name), "Choose one of them.")
        for field in ("way", "shot", "queries", "train_way", "train_shot", "tasks", "steps", "filters", "episodes"):
            if (value := getattr(options, field)) is not None:
                least = 2 if field in ("way", "train_way", "episodes") else 1
                check_count(f"--{field.replace('_', '-')}", value, least)
        check_device(options.device)
        if options.network is not None and options.network not in NETWORKS:
            raise unexpected("--network", listing(NETWORKS), repr(options.network), "Choose one of them.")
        recipe = recipe or RECIPES[name]
        drawings = data.images.shape[1] == 1
        recipe = recipe if drawings else replace(recipe, **recipe.photographs)
        quick = data.name == "digits"
        self.name, self.recipe, self.options = name, recipe, options
        self.steps = options.steps or (recipe.quick_steps if quick else recipe.steps)
        without = data.split == "own" and data.parts is None  # as a plain folder of classes
        split, parts = parts_of(data, options.split or ("random" if without else data.split))
        rotations = drawings if options.rotations is None else options.rotations
        in_test = rotations and not quick  # the digits' test is on the upright ones
        sources = {
            "train": self._source(data, parts, "train", rotations),
            "test": self._source(data, parts, "test", in_test),
        }
        if (parts == 1).any():
            sources["val"] = self._source(data, parts, "val", in_test)
        self.training, self.test, self.validation = sources["train"], sources["test"], sources.get("val")
        network = options.network or recipe.network
        filters = options.filters or (recipe.quick_filters if quick else recipe.filters)
        channels, size = data.images.shape[1], data.images.shape[-1]
        large = size > PIXEL_AT
        if options.bfloat16 and not large:
            expected = f"images of more than {PIXEL_AT} × {PIXEL_AT}"
            raise unexpected("--bfloat16", expected, f"{size} × {size}", "Leave it out.")
        bfloat16 = recipe.bfloat16 and large if options.bfloat16 is None else options.bfloat16
        self.setting = setting = Setting(channels, size, options.way, network, filters, self.steps, bfloat16)
        torch.manual_seed(options.seed)
        self.method: Method = recipe.make(setting).to(options.device)
        sampler = self.training.sampler
        self.protocol = Protocol(
            "omniglot" if data.name.startswith("omniglot") else data.name,
            split,
            sampler.way,
            sampler.shot,
            options.way,
            options.shot,
            options.queries,
            ("training and test" if in_test else "training") if rotations else "none",
            recipe.batch_norm,
            f"{network}, {filters} filters" + ", convolutions in bfloat16" * bfloat16,
            recipe.adaptation(setting),
            f"{self.steps} meta-batches of {sampler.tasks} tasks",
        )

    def _source(self, data: LabelledImages, parts: torch.Tensor, which: str, turned: bool) -> Episodes:
        images, labels = data.part(parts, which)
        options, recipe, training = self.options, self.recipe, which == "train"
        way = (options.train_way or recipe.train_way or options.way) if training else options.way
        shot = (options.train_shot or recipe.train_shot or options.shot) if training else options.shot
        tasks = (options.tasks or recipe.tasks) if training else TEST_TASKS
        queries = recipe.queries if training else options.queries
        counts = torch.bincount(labels).tolist()
        names = [name for name, part in zip(data.names, parts.tolist(), strict=True) if part == PARTS.index(which)]
        small = [name for name, count in zip(names, counts, strict=True) if count < shot + queries]
        if small:
            actual = f"{counts[names.index(small[0])]} in {small[0]!r}" + (
                f", and {len(small) - 1} more" * bool(small[1:])
            )
            do = "Leave small classes out, or ask for fewer shots or queries."
            raise unexpected("--data", f"{shot + queries} images of each class, shot + queries", actual, do)
        if turned:
            images, labels = with_rotations(images, labels)
        classes = int(labels.max()) + 1
        if training and options.train_way is None:
            way = min(way, classes)  # a recipe's, not asked for
        if way > classes:
            expected = f"at most the {classes} classes for {which}" + ", turned ones included" * turned
            do = "Ask for fewer ways, bring more classes" + ("." if turned else ", or say --rotations.")
            raise unexpected("--train-way" if training else "--way", expected, str(way), do)
        seed = 3 * options.seed + PARTS.index(which)
        sampler = EpisodeSampler(labels, way=way, shot=shot, queries=queries, tasks=tasks, seed=seed)
        return Episodes(images, sampler, options.device)

    def run(self, out: Path | None = None, progress: bool = False) -> Outcome:
        """Train, or go on where a killed training was; evaluate; the outcome, also as `out/result.json`."""
        loop = self.loop(out, progress)
        with reusing():  # every step takes the same memory: a quarter of the time, if the kernel cleared it each time
            loop.run()
            return self.outcome(out)

    def loop(self, out: Path | None = None, progress: bool = False) -> OuterLoop:
        """The training, not begun."""
        recipe, options = self.recipe, self.options
        rate = options.rate or recipe.rate
        learned = [leaf for leaf in self.method.parameters() if leaf.requires_grad]
        optimizer = torch.optim.Adam(learned, lr=rate)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.steps)
        return OuterLoop(
            Estimator(self.method, f"seed {options.seed}: {self.protocol}"),
            self.training,
            optimizer,
            steps=self.steps,
            scheduler=scheduler,
            clip=recipe.clip,
            seed=options.seed,
            out=out,
            progress=progress,
            evaluate=None if self.validation is None else self._validated,
            evaluate_every=None if self.validation is None else max(1, self.steps // VALIDATIONS),
        )

    def _validated(self, step: int) -> Mapping[str, float]:
        assert self.validation is not None
        return {"validation accuracy": evaluate(self.method, self.validation, VALIDATION_EPISODES).mean}

    def outcome(self, out: Path | None = None) -> Outcome:
        """The evaluation on held-out classes."""
        accuracy = evaluate(self.method, self.test, self.options.episodes)
        figure = figure_of(self.name, self.protocol.data, self.options.way, self.options.shot)
        paper = protocol_of(self.name, self.protocol.data, self.options.way, self.options.shot)
        instances: tuple[float, ...] = ()
        if isinstance(self.method, Mann):
            batches = [self.method.by_instance(self.test(n)) for n in range(self.options.episodes // TEST_TASKS)]
            instances = tuple(sum(each) / len(each) for each in zip(*batches, strict=True))
        outcome = Outcome(
            self.name,
            accuracy,
            "says nothing of this setting" if figure is None else str(figure),
            self.protocol,
            () if paper is None else tuple(self.protocol.differences(paper)),
            instances,
            self._baselines(),
        )
        if out is not None:
            outcome.save(out / "result.json")
        return outcome

    def _baselines(self) -> tuple[str, ...]:
        """For a learned rule: SGD in its place, with the rate that is best on the validation classes."""
        if not isinstance(self.method, LstmMetaLearner):
            return ()
        tuning = self.validation or self.training
        torch.manual_seed(self.options.seed)
        starts: dict[str, nn.Module] = {
            "its start": self.method.learner,
            "a random start": self.setting.learner().to(self.options.device),
        }
        lines = []
        for start, learner in starts.items():
            rivals = {rate: Maml(learner, lr=rate, steps=self.method.steps) for rate in BASELINE_RATES}
            tuned = {rate: evaluate(rival, tuning, VALIDATION_EPISODES).mean for rate, rival in rivals.items()}
            best = max(tuned, key=lambda rate: tuned[rate])
            accuracy = evaluate(rivals[best], self.test, self.options.episodes)
            lines.append(f"SGD of rate {best:g} (the best of {len(tuned)}) from {start}, as many steps: {accuracy}")
        return tuple(lines)
