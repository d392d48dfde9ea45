"""Sizes in bytes, as people write them."""

from __future__ import annotations

import re

from gimli_core.errors import unexpected

__all__ = ["parse_size", "show_size"]

UNITS = {"b": 1} | {
    f"{p}{end}": base**n for n, p in enumerate("kmgt", 1) for end, base in (("b", 1000), ("ib", 1024), ("", 1024))
}


def parse_size(size: str | int) -> int:
    """Bytes of "512MiB", "1.5 GB" (powers of 1000), "2g" (powers of 1024) or a plain number of bytes.

    >>> parse_size("512MiB"), parse_size("1.5 GB"), parse_size(4096)
    (536870912, 1500000000, 4096)
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([a-z]*)\s*", str(size).lower())
    unit = UNITS.get(match[2] or "b") if match else None
    if match is None or unit is None or isinstance(size, bool) or not 1 <= float(match[1]) * unit < 2**63:
        raise unexpected(
            "Budget",
            'a size such as "512MiB", "2GB" or a number of bytes',
            repr(size),
            "Units: B, KB, KiB, MB, MiB, GB, GiB.",
        )
    return int(float(match[1]) * unit)


def show_size(size: float) -> str:
    """A size in the unit that suits it.

    >>> show_size(536870912), show_size(900)
    ('512 MiB', '900 B')
    """
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size >= scale:
            return f"{size / scale:.4g} {unit}"
    return f"{size:.0f} B"
