"""What changed between two runs of a benchmark, beyond noise.

    python -m tests.benchmarks.compare A.json B.json [--all] [--level 0.01]
    python -m tests.benchmarks.compare --publish A.json        the run becomes what the texts quote

A figure has changed if its median moved by more than its unit may move without a cause (`UNITS` in `history`), and the
repeats of both runs say so: by the Mann-Whitney test at `--level`, corrected for the number of figures (Benjamini and
Hochberg 1995). With too few repeats for that, the two ranges must be apart; a figure that was measured once is marked
with "?". Exits with 1 if anything changed, 0 if nothing did.
"""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import dataclass
from pathlib import Path

from scipy import stats

from tests.benchmarks.history import UNITS, Figure, Run, publish, read

REPEATS = 5  # from as many in each run on, the smallest p of the test is below 0.01


@dataclass(frozen=True)
class Change:
    """One figure in two runs."""

    name: str
    before: Figure
    after: Figure
    verdict: str  # "same", "less", "more"; "less?" and "more?" of figures that were measured once

    @property
    def ratio(self) -> float:
        return ratio(self.before.median, self.after.median)


def ratio(a: float, b: float) -> float:
    """b / a; of two zeros 1."""
    if a == b or (math.isnan(a) and math.isnan(b)):
        return 1.0
    return b / a if a else math.inf


def moved(before: Figure, after: Figure) -> bool:
    """Whether the median moved by more than the unit may."""
    r, most = abs(ratio(before.median, after.median)), 1 + UNITS[before.unit]
    return not 1 / most <= r <= most


def differ(before: Figure, after: Figure) -> float:
    """p of the difference of two samples; 0 or 1 where there are too few for a test."""
    a, b = before.values, after.values
    if min(len(a), len(b)) >= REPEATS:
        return float(stats.mannwhitneyu(a, b, method="exact").pvalue)
    return 0.0 if max(a) < min(b) or max(b) < min(a) or any(map(math.isnan, (*a, *b))) else 1.0


def compared(a: Run, b: Run, level: float = 0.01) -> list[Change]:
    """Every figure that both runs have."""
    names = [name for name in a.figures if name in b.figures and a.figures[name].unit == b.figures[name].unit]
    pairs = [(a.figures[name], b.figures[name]) for name in names]
    corrected = stats.false_discovery_control([differ(*pair) for pair in pairs]) if pairs else []
    changes = []
    for name, (before, after), p in zip(names, pairs, corrected, strict=True):
        verdict = "same"
        if p <= level and moved(before, after):
            verdict = "less" if after.median < before.median else "more"
            verdict += "?" if min(len(before.values), len(after.values)) == 1 else ""
        changes.append(Change(name, before, after, verdict))
    return changes


def report(a: Run, b: Run, changes: list[Change], everything: bool) -> list[str]:
    """Lines for a reader."""
    lines = [f"{a.benchmark}: {a.time} {a.commit} → {b.time} {b.commit}"]
    for what, x, y in (("machine", a.machine, b.machine), ("arguments", a.arguments, b.arguments)):
        apart = [f"{k} {x.get(k)} → {y.get(k)}" for k in {**x, **y} if x.get(k) != y.get(k)]
        lines += [f"another {what}: {', '.join(apart)}"] if apart else []
    lines += [
        f"only in {run.time}: {name}"
        for run, other in ((a, b), (b, a))
        for name in run.figures
        if name not in other.figures
    ]
    shown = [c for c in changes if everything or c.verdict != "same"]
    width = max((len(c.name) for c in shown), default=0)
    for c in shown:
        unit = f"{c.before.unit:15}" if c.before.unit != "ratio" else " " * 15
        lines.append(
            f"{c.name:{width}}  {c.before.median:11.4g} → {c.after.median:11.4g} {unit}{c.ratio:8.3f}  {c.verdict}"
        )
    changed = sum(c.verdict != "same" for c in changes)
    return [*lines, f"{changed} of {len(changes)} figures changed beyond noise"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, metavar="JSON")
    parser.add_argument("--all", action="store_true", help="also what is the same")
    parser.add_argument("--level", type=float, default=0.01)
    parser.add_argument("--publish", action="store_true", help="make one run the one that the texts quote")
    given = parser.parse_args()
    if len(given.runs) != (1 if given.publish else 2):
        parser.error("expected two runs to compare, or --publish and one")
    if given.publish:
        publish(read(given.runs[0]))
        return 0
    a, b = map(read, given.runs)
    if a.benchmark != b.benchmark:
        parser.error(f"expected two runs of one benchmark; got {a.benchmark} and {b.benchmark}")
    changes = compared(a, b, given.level)
    print("\n".join(report(a, b, changes, given.all)))
    return int(any(c.verdict != "same" for c in changes))


if __name__ == "__main__":
    sys.exit(main())
