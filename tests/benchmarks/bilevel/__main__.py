"""Methods for bilevel problems beside each other: is the gradient right, what does a step take, how far does it go.

    python -m tests.benchmarks.bilevel [--only PROBLEM …] [--methods METHOD …] [--seeds 5] [--outer-steps 3]
                                       [--processes 2] [--data DIR] [--picture FILE] [--quick]

Per problem and method, over the seeds median and [least, largest]:

    error, J steps    ‖g − g_J‖ / ‖g_J‖ at phi_0; g_J differentiates J inner steps, in float64 by autograd
    error, minimum    the same to the gradient at the inner minimum, where ell is strongly convex
    outer loss        L(theta_J(phi), phi) where the last outer step begins, judged alike for all methods
    gradients         matrix products of an outer step, in those of one gradient of the inner loss (counted)
    seconds           processor time of an outer step on one thread, the methods in turn (A B A B …); several
                      instances are raced at once, each in a process of its own (`--processes`)
    MiB               peak of an outer step, each in a process of its own

Every method has the same inner steps, start and outer optimizer, and linear solvers have the same iterations, but for
ours, which goes on until its system is solved, or refuses. What a method does before its first result (ours checks a
problem, and measures it for a budget) is not in its seconds.
Adam's rate for phi was chosen from 0.03 … 3 by the unrolled gradient's outer loss, once for all problems of a kind
(quadratics 0.3, hyper-cleaning 1, logistic regression 1, Omniglot 0.03), whatever the noise, network or data set;
SOBA's, as a share of it for all problems, from 1/3, 1/10 and 1/30.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from pathlib import Path

import torch

from tests.benchmarks.bilevel.methods import METHODS
from tests.benchmarks.bilevel.picture import draw
from tests.benchmarks.bilevel.problems import PROBLEMS
from tests.benchmarks.bilevel.race import Score, installed, race
from tests.benchmarks.bilevel.rounds import Rounds
from tests.benchmarks.history import FOLDER, Run, add_history, noted
from tests.benchmarks.measure import MIB
from tests.benchmarks.speed.workloads import DATA

HEADS = {"": 15, "error, J steps": 28, "error, minimum": 28, "outer loss": 28, "gradients": 11, "seconds": 9, "MiB": 7}


def spread(values: list[float], form: str) -> str:
    """Median [least, largest]."""
    if not values:
        return "–"
    return f"{statistics.median(values):{form}} [{min(values):{form}}, {max(values):{form}}]"


def row(name: str, score: Score) -> str:
    if score.refused:
        return f"{name:{HEADS['']}}refused: {score.refused.splitlines()[0]}"
    last = [losses[-1] for losses in score.losses]
    seconds, peak = statistics.median(score.seconds), "" if score.peak is None else f"{score.peak / MIB:.0f}"
    errors = (spread(values, ".1e") for values in (score.of_steps, score.of_minimum))
    cells = [name, *errors, spread(last, ".4g"), f"{score.gradients:.0f}", f"{seconds:.3f}", peak]
    return "".join(f"{c:{'<' if not head else '>'}{w}}" for c, (head, w) in zip(cells, HEADS.items(), strict=True))


def note(run: Run, name: str, score: Score) -> None:
    if score.refused:
        return
    if score.of_steps:
        run.note(f"{name}/error, J steps", score.of_steps, "relative error")
    if score.of_minimum:
        run.note(f"{name}/error, minimum", score.of_minimum, "relative error")
    run.note(f"{name}/outer loss", [losses[-1] for losses in score.losses], "loss")
    run.note(f"{name}/gradients", score.gradients, "gradients")
    run.note(f"{name}/time", score.seconds, "s")
    if score.peak is not None:
        run.note(f"{name}/peak", score.peak, "bytes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=PROBLEMS, default=list(PROBLEMS), metavar="PROBLEM")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="METHOD")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--outer-steps", type=int, default=3)
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="that race at once, of a thread each")
    parser.add_argument("--data", type=Path, default=DATA, help="the folder of mnist.npz and omniglot28.npz")
    parser.add_argument("--picture", type=Path, default=FOLDER / "bilevel.png", metavar="FILE")
    parser.add_argument(
        "--quick", action="store_true", help="one seed, two outer steps, one process, no peaks, no picture"
    )
    add_history(parser)
    given = parser.parse_args()
    torch.set_num_threads(1)
    names, scores = installed(given.methods), {}
    if given.quick:
        raced = ((p, race(PROBLEMS[p](0, given.data), names, outer_steps=2)) for p in given.only)
    else:
        rounds = Rounds(names, given.outer_steps, given.seeds, given.data, given.processes)
        raced = rounds.scores(given.only)
    start = time.perf_counter()
    with noted("bilevel", given) as run:
        for problem, scores[problem] in raced:
            print(f"\n{problem} (after {time.perf_counter() - start:.0f} s)")
            print("".join(f"{head:{'<' if not head else '>'}{w}}" for head, w in HEADS.items()))
            for name, score in scores[problem].items():
                print(row(name, score), flush=True)
                note(run, f"{problem}/{name}", score)
    if not given.quick:
        draw({p: {n: s for n, s in of.items() if not s.refused} for p, of in scores.items()}, given.picture)
        print(f"\npicture: {given.picture}")


if __name__ == "__main__":
    main()
