"""One JSON a run: what a benchmark measured, on which machine, so that two runs can be compared and a figure quoted.

    {"benchmark": "eager", "time": …, "commit": …, "machine": {…}, "arguments": {…},
     "figures": {"autograd/time": {"unit": "s", "values": [0.91, 0.93, …]}, …}}

`python -m tests.benchmarks.compare A.json B.json` tells what changed between two of them. A text quotes a figure by
naming it right behind the number, in a comment that Markdown does not show: `0.43<!-- eager/StoreStates/peak -->`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "build" / "benchmarks"  # ignored by git
PUBLISHED = Path(__file__).with_name("published.json")  # the runs that texts quote

# Of each unit the relative change of a median that two runs on one quiet machine may show without any cause.
UNITS = {"s": 0.1, "bytes": 0.03, "ratio": 0.1, "relative error": 1.0, "loss": 1e-3, "gradients": 1e-3}

Values = Sequence[float]
NUMBER = re.compile(
    r"(?P<number>(?:(?<![\w.])-)?\d+(?:\.\d+)?(?:e[-+]?\d+)?)(?P<scale>[ \w×%]{0,4})<!-- (?P<name>\S[^>]*?\S) -->"
)
SCALES = {"": 1.0, "×": 1.0, "%": 100.0, "MiB": 2.0**-20, "GiB": 2.0**-30, "s": 1.0, "ms": 1e3}


@dataclass(frozen=True)
class Figure:
    """What was measured, once or several times."""

    unit: str
    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.values)


@dataclass(frozen=True)
class Run:
    """One run of a benchmark."""

    benchmark: str
    time: str
    commit: str
    machine: dict[str, Any]
    arguments: dict[str, str]
    figures: dict[str, Figure] = field(default_factory=dict)

    def note(self, name: str, values: float | Values, unit: str) -> None:
        """Add a figure: the values of its repeats, or one."""
        if unit not in UNITS or name in self.figures:
            raise ValueError(f"figure {name!r} in {unit!r}: expected a new name and a unit of {list(UNITS)}")
        if "|" in name or "--" in name or "\n" in name:
            raise ValueError(f"figure {name!r}: expected a name that a table and a comment can hold")
        taken = values if isinstance(values, Sequence) else [values]
        self.figures[name] = Figure(unit, tuple(float(v) for v in taken))

    def write(self, path: Path) -> None:
        """As JSON; a half-written file never takes the place of another."""
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f"{path.name}.{os.getpid()}")
        beside.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")
        beside.replace(path)


def run_of(tree: Mapping[str, Any]) -> Run:
    """A run from what JSON holds of it."""
    figures = {name: Figure(f["unit"], tuple(f["values"])) for name, f in tree["figures"].items()}
    return Run(**{**tree, "figures": figures})


def read(path: Path) -> Run:
    """The run that a file holds. Raises SystemExit with one line if it is none."""
    try:
        return run_of(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SystemExit(
            f"{path}: expected the JSON of a benchmark's run; got {type(error).__name__}: {error}"
        ) from None


def add_history(parser: argparse.ArgumentParser) -> None:
    """The option that says where the run's JSON goes."""
    where = f"the run's figures; by default {FOLDER.relative_to(ROOT)}/BENCHMARK-TIME.json"
    parser.add_argument("--json", type=Path, metavar="PATH", help=where)


@contextmanager
def noted(benchmark: str, arguments: argparse.Namespace) -> Iterator[Run]:
    """A run to note figures in; written when it has ended well."""
    kept = {k: v for k, v in vars(arguments).items() if k != "json" and not isinstance(v, Path)}  # no one's folders
    run = begun(benchmark, {k: str(v) for k, v in kept.items()})
    yield run
    path = arguments.json or FOLDER / f"{benchmark}-{run.time.replace(':', '')}.json"
    run.write(path)
    print(f"figures: {path}", file=sys.stderr)


def begun(benchmark: str, arguments: dict[str, str]) -> Run:
    """A run that starts now, on this machine."""
    return Run(benchmark, datetime.now(UTC).isoformat(timespec="seconds"), commit(), machine(), arguments)


def commit() -> str:
    """The commit of the source, with a plus where files differ from it; "" where there is no repository."""
    told = subprocess.run(
        ["git", "describe", "--always", "--dirty=+"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return told.stdout.strip() if told.returncode == 0 else ""


def machine() -> dict[str, Any]:
    """What a time depends on."""
    packages = {}
    for name in ("torch", "numpy", "higher", "torchopt", "jax"):
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        **packages,
    }


def processor() -> str:
    """Its name, where the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")


def published() -> dict[str, Run]:
    """The runs that texts may quote, by their benchmarks."""
    return {name: run_of(tree) for name, tree in json.loads(PUBLISHED.read_text(encoding="utf-8")).items()}


def publish(run: Run) -> None:
    """Put a run in the place of the benchmark's last one that texts may quote."""
    runs = published() if PUBLISHED.exists() else {}
    runs[run.benchmark] = run
    text = json.dumps({name: asdict(runs[name]) for name in sorted(runs)}, indent=1)
    PUBLISHED.write_text(text + "\n", encoding="utf-8")


def quoted(text: str) -> list[tuple[str, str, str]]:
    """(number, what stands behind it, "BENCHMARK/FIGURE") of every figure that a text quotes."""
    return [(m["number"], m["scale"].strip(), m["name"]) for m in NUMBER.finditer(text)]


def misquoted(text: str, runs: Mapping[str, Run]) -> list[str]:
    """One line for each quoted number that is not its figure's median, to the digits that are shown."""
    wrong = []
    for number, scale, name in quoted(text):
        benchmark, _, figure = name.partition("/")
        if benchmark not in runs or figure not in runs[benchmark].figures:
            wrong.append(f"{number}: no such figure: {name}")
        elif scale not in SCALES:
            wrong.append(f"{number} {scale}: expected one of {list(SCALES)} behind {name}")
        else:
            expected = SCALES[scale] * runs[benchmark].figures[figure].median
            shown = f"{expected:.{digits(number)}{'e' if 'e' in number else 'f'}}"
            if float(shown) != float(number):
                wrong.append(f"{number} {scale}: {name} is {shown}")
    return wrong


def digits(number: str) -> int:
    """Of "1.25e-3" and "1.25" the two behind the point."""
    _, _, behind = number.split("e")[0].partition(".")
    return len(behind)
