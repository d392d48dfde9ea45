"""A call in a process of its own, which has run nothing before: how much memory it takes, and whether it is refused."""

from __future__ import annotations

import json
import subprocess
import sys

__all__ = ["cold"]

MEASURED = """
import json

def occupied(what):
    with open("/proc/self/status") as file:
        return next(1024 * int(line.split()[1]) for line in file if line.startswith(what))

with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # the most so far is forgotten
base, refused = occupied("VmRSS"), ""
try:
    call()
except gimli.errors.ArgumentError as error:
    refused = str(error)
print(json.dumps([occupied("VmHWM") - base, refused]))
"""


def cold(program: str, *arguments: object) -> tuple[int, str]:
    """The most bytes that the process occupied above those before the call, and a refusal.

    `program` defines `call()`, and imports gimli_core as gimli; `arguments` are its sys.argv[1:].
    """
    line = [sys.executable, "-c", program + MEASURED, *map(str, arguments)]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    most, refused = json.loads(done.stdout)
    return most, refused
