"""A protocol: what a few-shot figure depends on besides its method, said with every figure."""

from __future__ import annotations

from dataclasses import dataclass, fields

__all__ = ["Protocol"]


@dataclass(frozen=True)
class Protocol:
    """The settings by which published few-shot figures differ.

    Args:
        data: the data set, and the size of its pictures.
        split: which classes are trained on and which are tested, by name.
        train_way, train_shot: classes a task, and rows of each that are shown, in training.
        way, shot: the same in the test.
        queries: rows of each class that are asked in the test.
        rotations: whether classes turned by 90, 180 and 270 degrees count as classes: "none", "training",
            "training and test".
        batch_norm: which statistics normalise in the test: "batch" (of all that is asked together: transductive),
            "running" (of the training), "none".
        network: its name, with the number of filters.
        adaptation: steps in training and in the test, for what adapts by steps.
        training: how much: meta-batches and tasks in each.

    >>> ours = Protocol("omniglot", "vinyals", 5, 1, 5, 1, 15, "training and test", "batch", "conv4, 64 filters")
    >>> paper = Protocol("omniglot", "random", 60, 5, 5, 1, 5, "training and test", "running", "conv4, 64 filters")
    >>> ours.differences(paper)[:2]
    ['split: vinyals (the paper: random)', 'train_way: 5 (the paper: 60)']
    """

    data: str
    split: str
    train_way: int
    train_shot: int
    way: int
    shot: int
    queries: int
    rotations: str
    batch_norm: str
    network: str
    adaptation: str = "none"
    training: str = ""

    def __str__(self) -> str:
        return "\n".join(f"  {_said(field.name):12} {getattr(self, field.name)}" for field in fields(self))

    def differences(self, paper: Protocol) -> list[str]:
        """Every setting in which this differs from a paper's, with both. Empty or 0 leaves it open."""
        return [
            f"{field.name}: {getattr(self, field.name)} (the paper: {getattr(paper, field.name)})"
            for field in fields(self)
            if getattr(paper, field.name) not in ("", 0, getattr(self, field.name))
        ]


def _said(name: str) -> str:
    return name.replace("_", " ")
