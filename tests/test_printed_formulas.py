"""The paper's formulas as printed: each has a verdict, a proof and a row on the page, and a wrong formula is caught."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import sympy as sp

from appendix_proofs import printed, printed_algorithm, printed_prose, printed_requirements, printed_training
from appendix_proofs.printed import MODULES, VERDICTS, Chain, Printed
from appendix_proofs.symbolic import Statements
from tests.mutants import mutants

README = Path(__file__).parents[1] / "appendix_proofs/README.md"
ROWS = [(name, row) for name in MODULES for row in importlib.import_module(f"appendix_proofs.{name}").PRINTED]
FORMULAS = [
    (name, formula)
    for name in MODULES
    for formula in getattr(importlib.import_module(f"appendix_proofs.{name}"), "FORMULAS", ())
]


def unproved(rows: list[Printed], statements: list[str], others: dict[str, list[str]]) -> list[str]:
    """The places of rows that no statement is about; `others` are the statements of other proofs."""
    return [
        row.where
        for row in rows
        if row.verdict != "definition"
        and not any(each.startswith(row.begins or f"{row.where}:") for each in others.get(row.proof, statements))
    ]


@pytest.mark.parametrize("name", MODULES)
def test_every_formula_has_a_proof_and_every_statement_a_formula(name: str) -> None:
    module = importlib.import_module(f"appendix_proofs.{name}")
    rows, statements = list(module.PRINTED), module.prove()
    elsewhere = {row.proof for row in rows if row.proof}
    others = {proof: importlib.import_module(f"appendix_proofs.{proof}").prove() for proof in elsewhere}
    assert unproved(rows, statements, others) == []
    places = [f"{row.where}:" for row in rows]
    assert [each for each in statements if not any(each.startswith(place) for place in places)] == []


def test_a_formula_without_a_proof_is_found() -> None:
    rows = [Printed("Equation 9", "a = b", "holds"), Printed("Equation 99", "b", "definition")]
    assert unproved(rows, ["Equation 99: b"], {}) == ["Equation 9"]
    assert unproved([rows[0]._replace(proof="other", begins="IX ")], ["Equation 9: a"], {"other": ["I a"]}) == [
        "Equation 9"
    ]
    assert unproved(rows, ["Equation 9: a = b"], {}) == []


def test_every_row_has_a_place_of_its_own_and_a_known_verdict() -> None:
    places = [row.where for _, row in ROWS]
    assert len(set(places)) == len(places)
    assert {row.verdict for _, row in ROWS} == set(VERDICTS)
    assert [row.where for _, row in ROWS if row.verdict in ("holds if", "fails", "misprint") and not row.note] == []


def test_the_page_has_the_rows() -> None:
    page = README.read_text(encoding="utf-8")
    assert [name for name in MODULES if printed.table(name) not in page] == []
    assert page.count("| `printed_") == sum(row.verdict != "definition" and not row.proof for _, row in ROWS)


# Planted faults


@pytest.mark.parametrize(("name", "formula"), FORMULAS, ids=[f.__name__ for _, f in FORMULAS])
def test_every_fault_in_a_printed_formula_is_caught(name: str, formula: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module(f"appendix_proofs.{name}")
    module.prove()
    missed = []
    planted = list(mutants(formula))
    assert planted
    for fault, mutant in planted:
        monkeypatch.setattr(module, formula.__name__, mutant)
        try:
            module.prove()
        except (AssertionError, TypeError):  # TypeError: matrices do not divide
            continue
        missed.append(fault)
    assert missed == []


def test_a_step_of_equation_3_too_late_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def late(opt: Any, grad: Any, theta_0: Any, T: int) -> Any:
        theta = theta_0
        for t in range(T):
            theta = opt(t, theta, printed.phi, grad(t, theta_0, printed.lam))  # G of θ_0, not of P_t
        return opt(T, theta, printed.phi, grad(T, theta, printed.lam))

    monkeypatch.setattr(printed_training, "equation_3", late)
    with pytest.raises(AssertionError, match=r"Section 2\.2, Equation 3: T = 2"):
        printed_training.prove()


def test_the_misprinted_adjoint_is_not_the_sweep() -> None:
    """What is printed of B after the algorithm, in line 14's place: a derivative of B_{j'+1} by θ'_{j'}."""
    chain = Chain(range(1))
    by_start = sp.diff(chain.B[0], chain.start[0])
    with pytest.raises(AssertionError, match="B as printed"):
        Statements().equal("B as printed", by_start, chain.total(chain.start)[0])


@pytest.mark.parametrize(
    ("formula", "fault"),
    [
        ("line_12", lambda A_opt, B, of_phi: B * of_phi),
        ("line_13", lambda A_loss, B, O, M: A_loss + B * M),  # noqa: E741
        ("line_14", lambda B, of_theta, O, H: B * of_theta),  # noqa: E741
        ("line_14", lambda B, of_theta, O, H: B * (of_theta + 2 * O * H)),  # noqa: E741 - without the stop-gradient
        ("line_14", lambda B, of_theta, O, H: B * (of_theta + H * O)),  # noqa: E741 - the other order
    ],
)
def test_a_term_left_out_or_turned_round_is_caught(formula: str, fault: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(printed_algorithm, formula, fault)
    with pytest.raises(AssertionError, match="not proved: Algorithm 1, line"):
        printed_algorithm.prove()


def test_a_stop_gradient_that_does_not_stop_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    right = printed.held
    monkeypatch.setattr(printed_algorithm, "held", lambda f, at, stopped, by: right(f, at, (), by))
    with pytest.raises(AssertionError, match="the stop-gradient"):
        printed_algorithm.prove()


def test_a_wrong_slope_of_the_example_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(printed_requirements, "one_sided", lambda *_: (sp.Integer(0), sp.Integer(0)))
    with pytest.raises(AssertionError, match="does not exist"):
        printed_requirements.prove()


def test_a_sweep_that_joins_wrongly_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(printed_prose, "swept", lambda chain: (chain.B, sp.zeros(1), sp.zeros(1)))
    with pytest.raises(AssertionError, match="joined they are"):
        printed_prose.prove()
