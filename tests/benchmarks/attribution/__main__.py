"""Scores of examples by the whole of training: time, memory, exactness, and whether they predict.

    python -m tests.benchmarks.attribution
    python -m tests.benchmarks.attribution --only queries parts --repeats 5 --no-compile

query      one query, J = 20 and 100, against bergson's sqrt schedule
queries    k = 8 at once against 8 calls, and against bergson's 8 sweeps
parts      a batch of 32 in 8 micro-batches against the whole batch, states in memory and on disk, at widths 64 and 128
weights    N = 10^7 weights against 10^3
exactness  float64 against autograd through the whole of training; k rows against k calls, to the bit
lds        scikit-learn's digits, a tenth left out: rank correlation with retraining, influence functions beside it

Times are processor seconds, of runs taken in turn (A B A B …) in one process, after one of each: other programs on the
machine disturb them less than the clock on the wall. Ratios are medians over the pairs. A peak is resident memory above
what the process held after a run of two steps, in a process of its own. Without bergson, its method stands in, written
plainly in torch; the table says so. "Its derivatives alone" are what a way cannot do without, in plain torch, with no
optimizer and no engine around them (plain.py). What the table must reach stands below it, beside what it reaches.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import gimli_core as gimli
from gimli_core.attribution import influence_scores, leave_out, scores
from gimli_core.attribution.classification import hard_queries, output_loss, outputs, setting
from gimli_core.demo.data import load
from gimli_core.memory import Checkpoint, RetainGraphs, Schedule, StoreStates
from tests.benchmarks.attribution import peer, plain
from tests.benchmarks.attribution.training import N, Training, training
from tests.benchmarks.history import Run, add_history, noted
from tests.benchmarks.measure import MIB, in_fresh_process, median_ratio, paired_times, peak_above_base

Way = Callable[[Training], Any]
STEPS, LONG, K, BATCH, PARTS = 20, 100, 8, 32, 8
EXAMPLES, DAMPINGS = 500, (0.1, 1e-2, 1e-3)
SHORT = 6  # steps where k sweeps, or large batches, are many steps in themselves


def by(memory: Callable[[int], Schedule] | None = None, **options: Any) -> Way:
    """Our scores of all queries at once; `memory` of J."""
    return lambda work: work.scores(
        _problem(work, None), memory=None if memory is None else memory(work.steps), **options
    )


def one_by_one(memory: Callable[[int], Schedule] | None = None, **options: Any) -> Way:
    """Our scores, a call for each query."""

    def run(work: Training) -> Tensor:
        settled = None if memory is None else memory(work.steps)
        return torch.stack([work.scores(_problem(work, q), memory=settled, **options) for q in range(work.queries)])

    return run


def on_disk(snapshots: int = 2, gradients: bool = False, **options: Any) -> Way:
    """Every state but `snapshots`, as bergson keeps those that it keeps; with `gradients` each G_j in memory."""

    def run(work: Training) -> Tensor:
        with tempfile.TemporaryDirectory() as folder:
            memory = Checkpoint(snapshots, Path(folder), gradients=gradients)
            return by(lambda J: memory, **options)(work)  # type: ignore[no-any-return]

    return run


def _problem(work: Training, query: int | None) -> gimli.Problem:
    """Made once, as a user does: what is known or compiled of a problem stays with it."""
    made: dict[int | None, gimli.Problem] = work.__dict__.setdefault("_problems", {})
    if query not in made:
        made[query] = work.problem(query)
    return made[query]


WAYS: dict[str, Way] = {
    "ours": by(),
    "ours, RetainGraphs": by(lambda J: RetainGraphs()),
    "ours, StoreStates": by(lambda J: StoreStates()),
    "ours, Checkpoint(sqrt J)": by(lambda J: Checkpoint(math.isqrt(J))),
    "ours, Checkpoint(sqrt J, gradients)": by(lambda J: Checkpoint(math.isqrt(J), gradients=True)),
    "ours, states on disk": on_disk(),
    "ours, compiled": by(compile=True),
    "ours, compiled, states on disk": on_disk(compile=True),
    "ours, compiled, Checkpoint(sqrt J)": by(lambda J: Checkpoint(math.isqrt(J)), compile=True),
    "ours, k calls": one_by_one(),
    "ours, k calls, RetainGraphs": one_by_one(lambda J: RetainGraphs()),
    "ours, k calls, StoreStates": one_by_one(lambda J: StoreStates()),
    "ours, k calls, compiled": one_by_one(compile=True),
    "ours, 8 parts": by(lambda J: RetainGraphs(), micro_batches=PARTS),
    "ours, 8 parts, StoreStates": by(lambda J: StoreStates(), micro_batches=PARTS),
    "ours, 8 parts, states on disk": on_disk(1, gradients=True, micro_batches=PARTS),
    "derivatives alone": plain.derivatives_alone,
    "derivatives alone, 8 parts": lambda work: plain.derivatives_alone(work, PARTS),
    "bergson": lambda work: peer.scores(work)(),
    "bergson, 8 parts": lambda work: peer.scores(work, PARTS)(),
}


class Measured(NamedTuple):
    """Of the ways of one table: seconds of each, and bytes."""

    seconds: dict[str, list[float]]
    peaks: dict[str, int]

    def ratio(self, way: str, to: str) -> float:
        """Of their times, the median over the pairs."""
        return median_ratio(self.seconds[way], self.seconds[to])


class Table:
    """Rows of ways: time a step, the ratio to one of them, peak; and what was to be reached, beside what was."""

    def __init__(self, history: Run, repeats: int, peaks: bool) -> None:
        self.history, self.repeats, self.peaks = history, repeats, peaks
        self._marks: list[str] = []

    def measured(self, title: str, ways: list[str], *, repeats: int | None = None, **what: Any) -> Measured:
        """Measure ways on one training; the ratio is of each one's time to the first's, and of its peak likewise."""
        work = training(**what)
        print(f"\n{title}")
        runs = {name: (lambda way=WAYS[name]: way(work)) for name in ways}
        seconds = paired_times(runs, repeats or self.repeats, time.process_time)
        peaks = {name: peak_of(name, what) for name in ways} if self.peaks else {}
        found, first = Measured(seconds, peaks), ways[0]
        for name in ways:
            ratio = found.ratio(name, first)
            line = f"  {name:36} {1e3 * statistics.median(seconds[name]) / work.steps:8.1f} ms a step   x {ratio:5.2f}"
            self.history.note(f"{title}/{name}/time", seconds[name], "s")
            self.history.note(f"{title}/{name}/time, of the first way's", ratio, "ratio")
            if peaks:
                line += f"   peak {peaks[name] / MIB:7.1f} MiB   x {peaks[name] / peaks[first]:5.2f}"
                self.history.note(f"{title}/{name}/peak", peaks[name], "bytes")
            print(line, flush=True)
        return found

    def mark(self, what: str, reached: float, asked: str) -> None:
        """A line of what must be reached: `asked` is "<= 1.2" or ">= 2"."""
        relation, bound = asked.split()
        met = reached <= float(bound) if relation == "<=" else reached >= float(bound)
        line = f"{what:76} {reached:8.3g}   asked {asked:9} {'reached' if met else 'MISSED'}"
        print(f"  {line}", flush=True)
        self._marks.append(line)
        self.history.note(f"{what}/reached", reached, "ratio")
        self.history.note(f"{what}/{'at most' if relation == '<=' else 'at least'}", float(bound), "ratio")

    def summary(self) -> None:
        """All marks again."""
        print("\nall marks")
        for line in self._marks:
            print(f"  {line}")


def peak_of(name: str, what: dict[str, Any]) -> int:
    """Of one way, in a process of its own."""
    told = [f"{key}={value}" for key, value in what.items()]
    return int(in_fresh_process("tests.benchmarks.attribution", "--peak", name, *told).split()[-1])


def peak(name: str, told: list[str]) -> int:
    what: dict[str, Any] = {
        key: float(v) if "." in v or "e" in v else int(v) for key, v in (t.split("=") for t in told)
    }

    def prepare() -> Callable[[], object]:
        WAYS[name](training(**{**what, "steps": 2, "queries": 1}))  # what torch sets up at first is nobody's
        work = training(**what)
        return lambda: WAYS[name](work)

    return peak_above_base(prepare)


def query(table: Table, compiled: bool) -> None:
    eager = [
        "ours",
        "ours, StoreStates",
        "ours, Checkpoint(sqrt J)",
        "ours, Checkpoint(sqrt J, gradients)",
        "ours, states on disk",
    ]
    more = ["ours, compiled", "ours, compiled, Checkpoint(sqrt J)", "ours, compiled, states on disk"]
    more = more if compiled else []
    one_step = peak_of("ours, RetainGraphs", {"steps": 1, "eps_root": 1e-8}) if table.peaks else 0
    for J in (STEPS, LONG):
        title = f"one query, J = {J}, batch 8"
        repeats = min(table.repeats, 3) if J == LONG else None
        found = table.measured(title, ["bergson", *eager, *more], repeats=repeats, steps=J, eps_root=1e-8)
        for kind, ways, asked in (("eager", eager, ">= 2"), ("compiled", more, ">= 4")):
            if table.peaks:
                room = found.peaks["bergson"] + one_step
                ways = [way for way in ways if found.peaks[way] <= room]
            if ways:
                best = max(ways, key=lambda way: found.ratio("bergson", way))
                table.mark(f"J = {J}: bergson / {kind}, {_within(table)}: {best}", found.ratio("bergson", best), asked)
            elif kind == "eager" or more:
                table.mark(f"J = {J}: bergson / {kind}, {_within(table)}: none fits", 0.0, asked)
    print(f"  bergson's states, 1.4 MiB each, are on disk: {2 * math.isqrt(LONG) - 1} of them at J = {LONG}")


def _within(table: Table) -> str:
    return "its memory + a step" if table.peaks else "of any memory"


def queries(table: Table, compiled: bool) -> None:
    title, what = f"{K} queries, J = {SHORT}, batch 8", {"steps": SHORT, "queries": K, "eps_root": 1e-8}
    for schedule in (", RetainGraphs", ", StoreStates", *([", compiled"] if compiled else [])):
        pair = [f"ours, k calls{schedule}", f"ours{schedule}"]
        found = table.measured(f"{title}{schedule}", pair, **what)
        table.mark(f"{K} queries / {K} calls{schedule}", found.ratio(pair[1], pair[0]), "<= 0.65")
        kept, again = (3 + 6 * K) / (9 * K), (6 + 6 * K) / (12 * K)
        print(f"    by counts {kept:.2f} where graphs are kept, {again:.2f} where G_j is computed again")
        if found.peaks and "compiled" not in schedule:
            of_one = peak_of(f"ours{schedule}", {**what, "queries": 1})
            table.mark(f"{K} queries / one: peak{schedule}", found.peaks[pair[1]] / of_one, "<= 1.5")
    found = table.measured(
        f"{title}, against bergson", ["bergson", "ours", *(["ours, compiled"] if compiled else [])], **what
    )
    table.mark(f"{K} queries: bergson / ours", found.ratio("bergson", "ours"), ">= 3.5")


def parts(table: Table, compiled: bool) -> None:
    bound = "derivatives alone, 8 parts"
    pairs = {
        "in memory": ("ours, StoreStates", "ours, 8 parts"),
        "on disk": ("ours, states on disk", "ours, 8 parts, states on disk"),
    }
    for width in (64, 128):
        ways = [way for pair in pairs.values() for way in pair]
        ways += ["ours, 8 parts, StoreStates", "derivatives alone", bound]
        if width == 64:
            ways += ["ours, RetainGraphs", "bergson", *([] if "plainly" in peer.name() else ["bergson, 8 parts"])]
        what = {"steps": SHORT, "batch": BATCH, "eps_root": 1e-8, "width": width}
        title = f"one query, J = {SHORT}, batch {BATCH}, width {width}"
        found = table.measured(title, ways, repeats=min(table.repeats, 3), **what)
        for where, (whole, in_parts) in pairs.items():
            what_of = f"batch {BATCH}, width {width}, states {where}: {PARTS} parts / whole"
            table.mark(f"{what_of}: time", found.ratio(in_parts, whole), "<= 1.2")
            if table.peaks:
                table.mark(f"{what_of}: peak", found.peaks[in_parts] / found.peaks[whole], "<= 0.22")
        print(f"    the time of its derivatives alone, in plain torch: x {found.ratio(bound, 'derivatives alone'):.2f}")
        if table.peaks:
            of_step = [peak_of(way, {**what, "steps": 1}) for way in pairs["in memory"]]
            print(f"    the peak of one step alone, without stored points: x {of_step[1] / of_step[0]:.2f}")


def weights(table: Table, compiled: bool) -> None:
    """The same training, whose weights are the first of a vector of N."""
    work = training(LONG)
    problem, batches = work.problem(0), [work.batch(j) for j in range(LONG)]

    def run(w: Tensor) -> None:
        given = {"w": gimli.indexed(w)}
        gimli.meta_gradient(problem, work.theta_0, batches, work.asked, phi_loss=given, compile=False)

    sizes = {n: torch.ones(n) for n in (10**3, 10**7)}
    seconds = paired_times({str(n): (lambda w=w: run(w)) for n, w in sizes.items()}, table.repeats, time.process_time)
    small, large = (seconds[str(n)] for n in sizes)
    ratio, least = median_ratio(large, small), min(large) / min(small)
    print(f"\n10^7 weights against 10^3, J = {LONG}: time x {ratio:.3f} (of the least times {least:.3f})")
    table.mark("10^7 weights / 10^3: time", ratio, "<= 1.05")
    table.history.note(f"10^7 weights against 10^3, J = {LONG}/of the least times", least, "ratio")


def exactness(table: Table, compiled: bool) -> None:
    for eps_root in (0.0, 1e-8):
        work = training(STEPS, queries=2, eps_root=eps_root, dtype=torch.float64)
        right = plain.by_autograd(work)
        found = {name: WAYS[name](work) for name in ("ours", *(["bergson"] if eps_root else []))}
        for name, values in found.items():
            error = ((values - right).norm() / right.norm()).item()
            print(f"\nfloat64, J = {STEPS}, eps_root = {eps_root:g}: {name} against autograd: {error:.1e}")
            table.history.note(f"{name}, float64 against autograd/eps_root {eps_root:g}", error, "relative error")
            if name == "ours":
                table.mark(f"float64, eps_root = {eps_root:g}: against autograd", error, "<= 1e-12")
    work = training(SHORT, queries=K)
    same = torch.equal(WAYS["ours"](work), WAYS["ours, k calls"](work))
    print(f"{K} rows have the bits of {K} calls: {same}")
    table.mark(f"{K} rows that have not the bits of {K} calls", float(not same), "<= 0")


def lds(table: Table, compiled: bool) -> None:
    """As `gimli attribute` does it, without wrong labels."""
    print("\ndigits, 10 % left out, AdamW: rank correlation of predicted and retrained losses, mean over queries")
    for seed in range(3):
        splits, generator = load(None, seed), torch.Generator().manual_seed(seed)
        some = torch.randperm(len(splits.train.y), generator=generator)[:EXAMPLES]
        made = setting(splits.train.x[some], splits.train.y[some], splits.classes, LONG, generator)
        call = {"phi_loss": made.phi_loss}
        theta_J = gimli.adapt(made.problem, made.theta_0, made.batches, **call).theta_J
        _, asked = hard_queries(theta_J, splits.test.x, splits.test.y, splits.val.x, splits.val.y)
        given = (made.problem, made.theta_0, made.batches, asked)
        halves = {"outputs": outputs, "output_loss": output_loss}
        at_end = (made.problem, theta_J, [made.full_batch], asked)
        newton = influence_scores(*at_end, **call, damping=DAMPINGS, **halves)
        absolute = influence_scores(*at_end, **call, damping=DAMPINGS)
        methods = {"meta-gradient": scores(*given, **call)}
        methods |= {f"influence, Gauss-Newton, {d:g}": found for d, found in newton.items()}
        methods |= {f"influence, absolute Hessian, {d:g}": found for d, found in absolute.items()}
        trial = leave_out(*given, **call, share=0.1, seed=seed)
        print(f"  seed {seed}")
        for name, found in methods.items():
            value, (low, high) = trial.lds(found).mean().item(), trial.interval(found)
            print(f"    {name:36} {value:.3f}   95 %: {low:.3f}, {high:.3f}", flush=True)
            if name == "meta-gradient":
                table.mark(f"LDS, seed {seed}", value, ">= 0.95")
            table.history.note(f"LDS, {name}/seed {seed}", value, "ratio")


PARTS_OF_IT = {f.__name__: f for f in (query, queries, parts, weights, exactness, lds)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=PARTS_OF_IT, default=list(PARTS_OF_IT))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--no-compile", action="store_true", help="leave out what is compiled (a minute and more)")
    parser.add_argument("--no-peaks", action="store_true", help="leave out memory, which takes a process each")
    parser.add_argument("--peak", nargs="+", metavar="WAY", help="print only one way's peak, in bytes: WAY steps=20 …")
    add_history(parser)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.peak:
        print(peak(arguments.peak[0], arguments.peak[1:]))
        return
    print(f"transformer, 2 layers of 64, {N} windows of 64 characters; bergson: {peer.name()}")
    with noted("attribution", arguments) as history:
        table = Table(history, arguments.repeats, not arguments.no_peaks)
        for name in arguments.only:
            PARTS_OF_IT[name](table, not arguments.no_compile)
        table.summary()


if __name__ == "__main__":
    main()
