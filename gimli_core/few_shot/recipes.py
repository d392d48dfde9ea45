"""One recipe a method: how it is built for some pictures, and how it is trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from gimli_core.few_shot.gradient_based.anil import Anil
from gimli_core.few_shot.gradient_based.fomaml import Fomaml
from gimli_core.few_shot.gradient_based.imaml import Imaml
from gimli_core.few_shot.gradient_based.lstm import LstmMetaLearner
from gimli_core.few_shot.gradient_based.maml import Maml
from gimli_core.few_shot.gradient_based.maml_pp import MamlPlusPlus
from gimli_core.few_shot.gradient_based.meta_sgd import MetaSgd
from gimli_core.few_shot.gradient_based.reptile import Reptile
from gimli_core.few_shot.method import Method
from gimli_core.few_shot.metric_based.matching import Matching
from gimli_core.few_shot.metric_based.prototypical import Prototypical
from gimli_core.few_shot.metric_based.relation import Relation
from gimli_core.few_shot.metric_based.siamese import Siamese
from gimli_core.few_shot.model_based.mann import Mann
from gimli_core.few_shot.model_based.metanet import MetaNet
from gimli_core.few_shot.networks import NETWORKS
from gimli_core.few_shot.networks.parts import Bfloat16
from gimli_core.optimizers import SGD

__all__ = ["RECIPES", "Recipe", "Setting"]


@dataclass(frozen=True)
class Setting:
    """What a method is built for.

    Args:
        channels, size: of the pictures.
        way: classes of a task.
        network: one of `NETWORKS`.
        filters: of its narrowest convolutions.
        outer_steps: of the training, for what is annealed over it.
        bfloat16: whether the embedding multiplies in bfloat16.
    """

    channels: int
    size: int
    way: int
    network: str
    filters: int
    outer_steps: int
    bfloat16: bool = False

    @property
    def colour(self) -> bool:
        """Photographs rather than drawings: smaller inner rates."""
        return self.channels == 3

    def learner(self) -> nn.Module:
        """A network with `way` outputs, normalised by the batch at hand always."""
        return NETWORKS[self.network](self.channels, self.size, self.way, statistics="batch", **self._options())

    def embedding(self, signed: bool = False) -> tuple[nn.Module, int]:
        """A network without outputs, and how many features it gives; of both signs, where it has that option."""
        options = self._options() | ({"signed": True} if signed and self.network in ("conv4", "vgg") else {})
        network = NETWORKS[self.network](self.channels, self.size, statistics="running", **options)
        with torch.no_grad():
            features = network.eval()(torch.zeros(2, self.channels, self.size, self.size)).shape[1]
        return self.fast(network.train()), features

    def fast(self, network: nn.Module) -> nn.Module:
        """The network with its channels together, as the kernels of a processor like them, and perhaps in bfloat16."""
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return Bfloat16(network) if self.bfloat16 else network

    def _options(self) -> dict[str, Any]:
        """Of a network whose narrowest convolutions have so many filters; 64 are those of the papers in each case."""
        if self.network.startswith("resnet"):
            return {"widths": tuple(self.filters * factor for factor in (1, 2, 4, 8))}
        if self.network.startswith("densenet"):
            return {"growth": max(self.filters // 2, 1)}
        return {"filters": self.filters}


@dataclass(frozen=True)
class Recipe:
    """How a method is built and trained.

    Args:
        make: the method for a setting.
        network: by default.
        batch_norm: in the test, "batch" or "running".
        adaptation: of a setting, said in the protocol.
        tasks, queries: a meta-batch's, in training.
        train_way, train_shot: None for those of the test.
        steps: outer steps; `quick_steps` on the digits.
        filters, quick_filters: of the network, and on the digits.
        rate: of the outer Adam, down to 0 at the end by a cosine.
        clip: the largest norm of an outer gradient.
        bfloat16: in the embedding's convolutions, of images that are large enough.
        photographs: what differs on images with colours.
    """

    make: Callable[[Setting], Method]
    network: str = "conv4"
    batch_norm: str = "running"
    adaptation: Callable[[Setting], str] = lambda setting: "none"
    tasks: int = 1
    queries: int = 5
    train_way: int | None = None
    train_shot: int | None = None
    steps: int = 4000
    quick_steps: int = 150
    filters: int = 64
    quick_filters: int = 32
    rate: float = 1e-3
    clip: float | None = None
    bfloat16: bool = False
    photographs: Mapping[str, Any] = field(default_factory=dict)


def _adapting(kind: Callable[..., Method]) -> Callable[[Setting], Method]:
    # MAML's on Omniglot. On photographs its 5 steps take three times as long a task, and taught no more in that time.
    return lambda setting: kind(setting.learner(), lr=0.4, steps=1, test_steps=3)


def _maml_pp(setting: Setting) -> Method:
    steps = setting.outer_steps
    lr = 0.01 if setting.colour else 0.1
    return MamlPlusPlus(setting.learner(), lr=lr, steps=5, anneal=steps // 10, first_order=steps // 2)


def _relation(setting: Setting) -> Method:
    return Relation(setting.channels, setting.size, setting.filters, statistics="running", fast=setting.fast)


# Half the filters take half the time, and as many tasks more are seen in it.
GRADIENT = Recipe(
    _adapting(Maml),
    "strided-conv4",
    "batch",
    lambda s: "1 step in training, 3 in the test",
    tasks=8,
    queries=5,
    steps=12000,
    filters=32,
    rate=3e-3,
    clip=10.0,
)
# Many ways make each image count against many others: far more is learned of an image than in 5-way episodes.
# Of a few dozen classes of photographs, which are harder, 60 at once teach little: less in the same time than 20.
METRIC = Recipe(
    lambda s: Prototypical(s.embedding()[0]),
    train_way=60,
    queries=3,
    steps=1000,
    rate=2e-3,
    bfloat16=True,
    photographs={"train_way": 20, "steps": 1800},
)

RECIPES: Mapping[str, Recipe] = {
    "maml": GRADIENT,
    "fomaml": replace(GRADIENT, make=_adapting(Fomaml), steps=15000),
    # With MAML's inner rate and an outer Adam 200 steps teach what 2500 do of the paper's inner Adam and outer SGD.
    "reptile": Recipe(
        lambda s: Reptile(s.learner(), SGD(lr=0.1 if s.colour else 0.4), steps=5, test_steps=20),
        "strided-conv4",
        "batch",
        lambda s: "5 steps of SGD in training, 20 in the test; the outer optimizer is Adam",
        tasks=5,
        queries=1,
        train_shot=9,
        steps=12000,
        filters=32,
        rate=6e-3,
        quick_steps=60,
        quick_filters=8,
    ),
    "maml++": replace(
        GRADIENT, make=_maml_pp, network="vgg", adaptation=lambda s: "5 steps", tasks=4, steps=2800, quick_steps=40
    ),
    "meta-sgd": replace(GRADIENT, make=_adapting(MetaSgd)),
    "anil": replace(GRADIENT, make=_adapting(Anil)),
    "imaml": replace(
        GRADIENT,
        make=lambda s: Imaml(s.learner(), lr=0.02, steps=16, rtol=0.3, damping=30.0),
        adaptation=lambda s: "16 steps, damping 30 or more",
        tasks=4,
        steps=1000,
        quick_steps=10,
        quick_filters=8,
    ),
    "lstm": replace(
        GRADIENT,
        make=lambda s: LstmMetaLearner(s.learner(), lr=0.02 if s.colour else 0.1, steps=5),
        tasks=1,
        adaptation=lambda s: "5 steps",
        steps=2000,
        quick_steps=40,
        quick_filters=8,
    ),
    "siamese": replace(METRIC, make=lambda s: Siamese(*s.embedding(signed=True))),
    "matching": replace(
        METRIC,
        make=lambda s: Matching(s.embedding(signed=True)[0], sharpness=10.0),
        adaptation=lambda s: "none; no ReLU at the end, cosines times a learned factor",
    ),
    "relation": replace(METRIC, make=_relation, train_way=20, clip=0.5, network="4 + 2 convolutions", steps=2000),
    "prototypical": METRIC,
    "mann": Recipe(
        lambda s: Mann(*s.embedding(), way=s.way),
        tasks=16,
        queries=5,
        steps=8000,
        filters=32,
        clip=10.0,
        quick_steps=50,
        bfloat16=True,
    ),
    "metanet": Recipe(
        lambda s: MetaNet(*s.embedding(), way=s.way),
        tasks=8,
        filters=32,
        steps=1500,
        rate=2e-3,
        clip=10.0,
        bfloat16=True,
    ),
}
