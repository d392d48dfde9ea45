"""Published figures: accuracy in percent, with the interval where the paper gives one, and the protocol behind it.

Each from its paper's own table unless a note says otherwise; Omniglot for Siamese networks and MANN as the papers after
them quote it. Where a paper leaves a setting open, or it was not to be had, the protocol leaves it empty.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

from gimli_core.few_shot.protocol import Protocol

__all__ = ["FIGURES", "PAPERS", "Figure", "figure_of", "protocol_of"]


class Figure(NamedTuple):
    """What a paper says of one setting."""

    mean: float
    half_width: float | None = None

    def __str__(self) -> str:
        return f"{self.mean:g}" + (f" ± {self.half_width:g}" if self.half_width is not None else "") + " %"


Setting = tuple[str, int, int]  # data, way, shot


def _omniglot(*figures: Figure | None) -> dict[Setting, Figure]:
    settings = (("omniglot", 5, 1), ("omniglot", 5, 5), ("omniglot", 20, 1), ("omniglot", 20, 5))
    return {setting: figure for setting, figure in zip(settings, figures, strict=False) if figure is not None}


def _mini(one: Figure, five: Figure | None = None) -> dict[Setting, Figure]:
    return {("miniImageNet", 5, 1): one} | ({("miniImageNet", 5, 5): five} if five else {})


F = Figure
FIGURES: Mapping[str, Mapping[Setting, Figure]] = {
    "siamese": _omniglot(F(97.3), F(98.4), F(88.1), F(97.0)),
    "matching": _omniglot(F(98.1), F(98.9), F(93.8), F(98.5)) | _mini(F(43.56, 0.84), F(55.31, 0.73)),
    "relation": _omniglot(F(99.6, 0.2), F(99.8, 0.1), F(97.6, 0.2), F(99.1, 0.1))
    | _mini(F(50.44, 0.82), F(65.32, 0.70)),
    "prototypical": _omniglot(F(98.8), F(99.7), F(96.0), F(98.9)) | _mini(F(49.42, 0.78), F(68.20, 0.66)),
    "maml": _omniglot(F(98.7, 0.4), F(99.9, 0.1), F(95.8, 0.3), F(98.9, 0.2)) | _mini(F(48.70, 1.84), F(63.11, 0.92)),
    "fomaml": _omniglot(F(98.3, 0.5), F(99.2, 0.2), F(89.4, 0.5), F(97.9, 0.1)) | _mini(F(48.07, 1.75), F(63.15, 0.91)),
    "reptile": _omniglot(F(97.68), F(99.48), F(89.43), F(97.12)) | _mini(F(49.97), F(65.99)),  # with transduction
    "maml++": _omniglot(F(99.47), F(99.85), F(97.65), F(99.33)) | _mini(F(52.15, 0.26), F(68.32, 0.44)),
    "imaml": _omniglot(F(99.50, 0.26), F(99.74, 0.11), F(96.18, 0.36), F(99.14, 0.1)) | _mini(F(49.30, 1.88)),
    "meta-sgd": {},
    "anil": _mini(F(46.7, 0.4), F(61.5, 0.5)),
    "lstm": _mini(F(43.44, 0.77), F(60.60, 0.71)),
    "mann": _omniglot(F(82.8), F(94.9)),  # at the second and the sixth row of a class
    "metanet": _omniglot(F(98.95), None, F(97.0)) | _mini(F(49.21, 0.96)),
}

RANDOM_1200 = "1200 characters at random to train on, 423 to test"


def _paper(
    split: str = RANDOM_1200,
    way: int = 5,
    shot: int = 1,
    *,
    rotations: str = "training and test",
    norm: str = "",
    network: str = "conv4, 64 filters",
    adaptation: str = "none",
    training: str = "",
) -> Protocol:
    return Protocol("omniglot", split, way, shot, 5, 1, 0, rotations, norm, network, adaptation, training)


# The papers' protocols on Omniglot, 5-way 1-shot.
PAPERS: Mapping[str, Protocol] = {
    "matching": _paper(),
    "prototypical": _paper("vinyals", 60, norm="running"),
    "relation": _paper(network="4 + 2 convolutions, 64 filters"),
    "maml": _paper(
        norm="batch",
        network="strided-conv4, 64 filters",
        adaptation="1 step in training, 3 in the test",
        training="60000 meta-batches of 32 tasks",
    ),
    "fomaml": _paper(
        norm="batch",
        network="strided-conv4, 64 filters",
        adaptation="1 step in training, 3 in the test",
        training="60000 meta-batches of 32 tasks",
    ),
    "reptile": _paper(
        shot=10,
        norm="batch",
        adaptation="5 steps in training, 50 in the test",
        training="100000 meta-batches of 5 tasks",
    ),
    "maml++": _paper(
        "1150 characters to train on, 50 to validate, 423 to test",
        norm="batch",
        network="vgg, 64 filters",
        adaptation="5 steps",
    ),
    "imaml": _paper(norm="batch", network="conv4, 64 filters"),
    "mann": _paper(network="pixels of 20 × 20, LSTM of 200", training="100000 meta-batches of 16 tasks"),
    "metanet": _paper(network="5 convolutions, 64 filters"),
}


def figure_of(method: str, data: str, way: int, shot: int) -> Figure | None:
    """What the method's paper says of this setting; None if it says nothing of it."""
    return FIGURES[method].get((data, way, shot))


def protocol_of(method: str, data: str, way: int, shot: int) -> Protocol | None:
    """The paper's protocol for this setting; None where it is not known here.

    For another way or shot than 5 and 1, those of the training are left open.
    """
    paper = PAPERS.get(method) if figure_of(method, data, way, shot) is not None and data == "omniglot" else None
    if paper is None or (way, shot) == (paper.way, paper.shot):
        return paper
    return replace(paper, way=way, shot=shot, train_way=0, train_shot=0)
