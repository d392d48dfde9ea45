"""Which classes are trained on, by the names of the classes: the splits that papers name."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from gimli_core.errors import listing, unexpected

__all__ = ["CIFAR_FS", "VINYALS", "by_alphabet", "by_name"]


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split())


# Omniglot as Vinyals et al. (2016) split it: 1028 characters to train on, 172 and 423 held out, by whole alphabets but
# for the last four characters of Gurmukhi. What is not named here is trained on.
VINYALS: Mapping[str, Collection[str]] = {
    "val": _names("""
        Armenian Bengali Early_Aramaic Hebrew Mkhedruli_(Georgian)
    """),
    "test": _names("""
        Kannada Keble Malayalam Manipuri Mongolian Old_Church_Slavonic_(Cyrillic) Oriya Sylheti Syriac_(Serto)
        Tengwar Tibetan ULOG Gurmukhi/character42 Gurmukhi/character43 Gurmukhi/character44 Gurmukhi/character45
    """),
}

# CIFAR-100 as Bertinetto et al. (2019) split it: 64, 16 and 20 classes.
CIFAR_FS: Mapping[str, Collection[str]] = {
    "train": _names("""
        apple aquarium_fish bear bee bottle bowl boy bridge bus can castle caterpillar chair clock cloud
        cockroach couch cup dinosaur dolphin elephant forest girl hamster house kangaroo keyboard lawn_mower
        lion lizard lobster mountain mouse mushroom oak_tree orange orchid palm_tree pear pine_tree plate
        porcupine possum rabbit raccoon ray road seal shrew skunk skyscraper snake spider squirrel streetcar
        sunflower tank tiger train trout tulip turtle willow_tree wolf
    """),
    "val": _names("""
        beaver beetle butterfly camel cattle crab crocodile flatfish lamp maple_tree motorcycle otter sea shark
        television tractor
    """),
    "test": _names("""
        baby bed bicycle chimpanzee fox leopard man pickup_truck plain poppy rocket rose snail sweet_pepper
        table telephone wardrobe whale woman worm
    """),
}


def by_alphabet(names: Sequence[str], split: Mapping[str, Collection[str]]) -> Tensor:
    """[classes], 0 train, 1 val, 2 test, of classes named alphabet/character.

    Raises:
        ArgumentError: an alphabet of the split that is missing.
    """
    there = {name.rpartition("/")[0] for name in names} | set(names)
    wanted = [name for held_out in split.values() for name in held_out]
    missing = [name for name in wanted if name not in there]
    if missing:
        do = "Give both images_background.zip and images_evaluation.zip, in one folder; or --split random."
        raise unexpected("split", "every alphabet that it holds out", f"no {listing(missing)}", do)

    def part(name: str) -> int:
        keys = {name, name.rpartition("/")[0]}
        return next((n for n, held_out in ((1, split["val"]), (2, split["test"])) if keys & set(held_out)), 0)

    return torch.tensor([part(name) for name in names])


def by_name(names: Sequence[str], split: Mapping[str, Collection[str]]) -> Tensor:
    """[classes], 0 train, 1 val, 2 test, by the classes' names.

    Raises:
        ArgumentError: a class of another name, a class of the split that is missing.
    """
    parts = {name: n for n, classes in enumerate(split.values()) for name in classes}
    strange, missing = [n for n in names if n not in parts], [n for n in parts if n not in names]
    if strange or missing:
        actual = f"{listing(strange)} besides" if strange else f"no {listing(missing)}"
        do = "Name the classes as the split does, or --split random."
        raise unexpected("split", f"its {len(parts)} classes", actual, do)
    return torch.tensor([parts[name] for name in names])
