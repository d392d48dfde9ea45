"""Files whose header says something else, with the right checksum."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

from gimli_core.memory.files import MAGIC

__all__ = ["forge", "places", "put"]


def forge(path: Path, change) -> None:
    """Change a file's header and make its checksum right again."""
    whole = path.read_bytes()
    start = len(MAGIC) + 12
    length = int.from_bytes(whole[len(MAGIC) : len(MAGIC) + 8], "little")
    header = json.loads(whole[start : start + length])
    change(header)
    new = json.dumps(header).encode()
    check = zlib.crc32(new).to_bytes(4, "little")
    path.write_bytes(MAGIC + len(new).to_bytes(8, "little") + check + new + whole[start + length :])


def places(thing, above=()):
    """The path of every value in nested lists and dicts."""
    inner = thing.items() if isinstance(thing, dict) else enumerate(thing) if isinstance(thing, list) else ()
    for key, value in inner:
        yield (*above, key)
        yield from places(value, (*above, key))


def put(thing, path, value):
    for key in path[:-1]:
        thing = thing[key]
    if value is ...:
        del thing[path[-1]]
    else:
        thing[path[-1]] = value
