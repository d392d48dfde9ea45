"""Every rule with every combination of its options: is it torch.optim's, and is its meta-gradient right?

    python -m tests.benchmarks.optimizer_table                     the whole table, with --rules Adam,RAdam a part of it
    python -m tests.benchmarks.optimizer_table --peer higher       the same questions to another library
    python -m tests.benchmarks.optimizer_table --peer torchopt     (`pip install gimli_core[bench]`)

Columns, each the largest relative error of its kind:

    parity      theta after 100 steps against torch.optim, float64 (Lion and LAMB: against their papers' programs)
    autograd    dL/d(every used hyperparameter, phi_loss, theta_0) after 6 steps against autograd through a plain unroll
    differences the same against finite differences of that plain unroll (their own error estimate in brackets)
    G = 0       V at G = 0 in the first step against the slope of the step there; "jump" where sign() has none

For a peer the second and third columns compare its meta-gradient of theta_0 and lr with finite differences of its own
forward pass, so that a different rule is not counted as a wrong derivative.
"""

from __future__ import annotations

import argparse
import math
import re
from typing import Any

import torch
from torch import Tensor

import gimli_core as gimli
from gimli_core.arguments.call import Call
from gimli_core.optimizers.check import constants
from gimli_core.verification.oracles.autograd_through_the_graph import autograd_gradient
from gimli_core.verification.oracles.finite_differences import finite_differences
from gimli_core.verification.question import Question, flatten
from tests.benchmarks.history import Run, add_history, noted
from tests.optimizers.cases import CASES, PUBLISHED, Case, run, run_torch, start

STEPS = 6
JUMPS = ("Rprop", "Lion")
NUMBER = re.compile(r"nan|\de[+-]\d+")  # what `show` makes of one
COLUMNS = ("parity", "autograd", "differences")


def loss(theta: dict[str, Tensor], phi: dict[str, Tensor], batch: Any) -> Tensor:
    return sum(((n + 1) * torch.cosh(v - phi["centre"])).sum() for n, v in enumerate(theta.values()))


def raised(theta: dict[str, Tensor], phi: dict[str, Tensor], batch: Any) -> Tensor:
    """For a rule that maximizes."""
    return -loss(theta, phi, batch)


def val_loss(theta: dict[str, Tensor], phi: dict[str, Tensor], batch: Any) -> Tensor:
    return sum((torch.sin(v) + v**2).sum() for v in theta.values())


def parity(case: Case) -> float:
    """Largest error of theta after 100 steps."""
    ours = run(case)
    theirs = PUBLISHED[case.rule](case) if case.rule in PUBLISHED else run_torch(case)
    return max(float((ours[k] - v).abs().max() / v.abs().max()) for k, v in theirs.items())


def question(case: Case) -> Question:
    """Six steps on a smooth loss, with every hyperparameter that this set of options uses as a meta-parameter."""
    rule = case.build()
    used = [name for name in rule.continuous() if rule.uses(name)]
    # An eps of 1e-8 is beyond finite differences; 1e-2 is within them.
    values = {**rule.hyperparameters(), **({"eps": 1e-2} if "eps" in used else {})}
    phi_opt = {name: torch.tensor(float(values[name])) for name in used}
    if case.rule == "RAdam":
        phi_opt.pop("eps") if case.options["betas"][1] == 0.5 else None  # never rectified, so never used
    call = Call(
        problem=gimli.Problem(raised if case.options.get("maximize") else loss, val_loss, rule),
        theta_0=start(case),
        train_batches=lambda j: None,
        val_batch=None,
        steps=STEPS,
        phi_opt=phi_opt,
        phi_loss={"centre": torch.tensor(0.3)},
    )
    return Question(call)


def meta_errors(case: Case) -> tuple[float, float, float]:
    """(against autograd, against finite differences, what those think of themselves)."""
    asked = question(case)
    result = gimli.meta_gradient(
        asked.call.problem,
        asked.call.theta_0,
        asked.call.train_batches,
        None,
        steps=STEPS,
        phi_opt=asked.phi_opt,
        phi_loss=asked.phi_loss,
    )
    parts = {"A_opt": result.A_opt, "A_loss": result.A_loss, "B_0": result.B_0}
    found = {key: v for name, tree in parts.items() for key, v in flatten(tree, (name,)).items()}
    oracle = autograd_gradient(asked, asked.environment()).gradient
    scale = max(float(v.abs().max()) for v in oracle.values())

    def relative(error: Tensor, size: Tensor) -> float:
        return float(error.abs().max()) / max(float(size.abs().max()), 1e-6 * scale)

    by_autograd = max(relative(found[key] - v, v) for key, v in oracle.items())
    slopes = finite_differences(asked, asked.environment())
    by_differences = max(relative(s.of(found[key]) - s.values, s.values) for key, s in slopes.items())
    unsure = max(relative(s.uncertainty, s.values) for s in slopes.values())
    return by_autograd, by_differences, unsure


def zero_error(case: Case) -> float | None:
    """V at G = 0 in the first step, theta = 0, against the slope of the step along a random direction."""
    if case.rule in JUMPS:
        return None
    rule = case.build()
    theta = {k: torch.zeros(shape) for k, shape in case.shapes.items()}
    hyper = constants(rule, theta)
    state = rule.initial_state(theta, hyper)
    torch.manual_seed(5)
    direction, B = ({k: torch.randn(v.shape) for k, v in theta.items()} for _ in range(2))
    zero = {k: torch.zeros_like(v) for k, v in theta.items()}
    V = rule.pullback(theta, state, zero, hyper, B, rule.zero_adjoint(state), ()).V
    h = 1e-26  # theta = 0, so that nothing cancels; small beside every eps

    def along(h: float) -> float:
        moved, _ = rule.step(theta, state, {k: h * v for k, v in direction.items()}, hyper)
        return float(sum((B[k] * v).sum() for k, v in moved.items()))

    slope = (along(h) - along(-h)) / (2 * h)
    claimed = float(sum((V[k] * v).sum() for k, v in direction.items()))
    return abs(claimed - slope) / abs(slope)


def show(error: float | None) -> str:
    """A number, or why there is none."""
    return "jump" if error is None else "nan" if math.isnan(error) else f"{error:.0e}"


def print_table(header: list[str], rows: list[list[str]]) -> None:
    """Columns as wide as their widest entry."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    for row in [header, *rows]:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def ours(cases: list[Case], figures: Run) -> None:
    """The table of gimli_core."""
    rows, worst = [], [0.0, 0.0, 0.0]
    for case in cases:
        by_autograd, by_differences, unsure = meta_errors(case)
        columns = [parity(case), by_autograd, by_differences]
        worst = [max(a, b) for a, b in zip(worst, columns, strict=True)]
        at_zero = zero_error(case)
        rows.append([case.label, *map(show, columns), f"[{unsure:.0e}]", show(at_zero)])
        for name, error in zip((*COLUMNS, "G = 0"), (*columns, at_zero), strict=True):
            if error is not None:
                figures.note(f"{case.label}/{name}", error, "relative error")
    print_table(["optimizer and options", *COLUMNS, "", "G = 0"], rows)
    print(f"\n{len(rows)} rows; largest: parity {worst[0]:.0e}, autograd {worst[1]:.0e}, differences {worst[2]:.0e}")


def main() -> None:
    """Parse the arguments and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rules", help="names separated by commas; all by default")
    parser.add_argument("--peer", choices=("higher", "torchopt"))
    add_history(parser)
    arguments = parser.parse_args()
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    chosen = arguments.rules.split(",") if arguments.rules else None
    cases = [case for case in CASES if chosen is None or case.rule in chosen]
    with noted(f"optimizer_table_{arguments.peer or 'ours'}", arguments) as figures:
        if arguments.peer is None:
            ours(cases, figures)
            return
        from tests.benchmarks.optimizer_peers import peer_table  # needs packages of the `bench` extra

        header, rows = peer_table(arguments.peer, cases)
        print_table(header, rows)
        for label, *cells in rows:
            for name, cell in zip(header[1:], cells, strict=True):
                if NUMBER.fullmatch(cell):
                    figures.note(f"{label}/{name}", float(cell), "relative error")


if __name__ == "__main__":
    main()
