"""The proofs in appendix_proofs hold, their checkers catch planted faults, and every citation of them resolves."""

from __future__ import annotations

import doctest
import importlib
import inspect
import re
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sympy as sp
import torch

from appendix_proofs import (
    PROOFS,
    __main__,
    adagrad,
    adam,
    adamw,
    amsgrad,
    exact,
    momentum,
    nesterov,
    sgd,
    zero_gradient,
)
from appendix_proofs.exact import Exact
from appendix_proofs.shipped import Case, Reference, check_float64, check_symbols
from appendix_proofs.symbolic import Statements, beta1, eps, k, prove_closed_forms, vanishes
from gimli_core.optimizers import SGD, Adagrad, Adam
from tests.mutants import mutants

ROOT = Path(__file__).parents[1]
PROOF_FILES = sorted((ROOT / "appendix_proofs").glob("*.py"))
CITED = re.compile(r"appendix_proofs/\w+\.(?:py|md)")
NOTE = re.compile(r"NOTE \[([^\]]+)\]")
TITLE = re.compile(r"^[\s#]*NOTE \[([^\]]+)\](?::.*)?$", re.MULTILINE)


# The proofs


@pytest.mark.parametrize("name", PROOFS)
def test_proof_holds(name: str) -> None:
    statements = importlib.import_module(f"appendix_proofs.{name}").prove()
    assert statements
    assert len(set(statements)) == len(statements)


def test_every_proof_file_is_run_and_listed() -> None:
    helpers = {"__init__", "__main__", "symbolic", "exact", "shipped", "coupled", "printed"}
    assert {path.stem for path in PROOF_FILES} == helpers | set(PROOFS)
    readme = (ROOT / "appendix_proofs/README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"`(\w+)\.py`", readme)) >= set(PROOFS)


def test_main_prints_every_statement(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(__main__, "PROOFS", ("requirements",))
    __main__.main()
    printed = capsys.readouterr().out
    statements = importlib.import_module("appendix_proofs.requirements").prove()
    assert all(statement in printed for statement in statements)
    assert f"{len(statements)} statements proved" in printed


# What the checkers refuse


def test_vanishes_knows_zero_from_nearly_zero() -> None:
    assert vanishes(beta1 ** (k + 1) - beta1 * beta1**k)
    assert not vanishes(beta1 ** (k + 1) - beta1**k)
    assert not vanishes(sp.Rational(1, 10**12) * beta1)
    root = sp.sqrt(eps**2 + 2 * eps + 1)
    assert vanishes(root - eps - 1)
    assert not vanishes(root - eps)


def test_statements_refuse_what_is_false() -> None:
    proved = Statements()
    with pytest.raises(AssertionError, match="not proved: one is two"):
        proved.equal("one is two", 1, sp.Integer(2))
    with pytest.raises(AssertionError, match="not proved: undecided"):
        proved.holds("undecided", sp.Symbol("z") > 0)
    with pytest.raises(AssertionError, match="∂theta'/∂lr"):
        prove_closed_forms(proved, "SGD", sgd.sgd(1), {"theta": sgd.CLOSED["theta"] | {"lr": "g"}})
    assert not any("lr" in statement.partition(" = ")[0] for statement in proved)


def test_the_example_of_exact_numbers_runs() -> None:
    assert doctest.testmod(exact) == (0, 3)


def test_exact_numbers_refuse_what_they_cannot_decide() -> None:
    unknown = Exact(sp.Symbol("z", real=True))
    with pytest.raises(ValueError, match="not decided"):
        torch.maximum(unknown, Exact(0))
    with pytest.raises(NotImplementedError, match="erf"):
        torch.erf(unknown)
    assert torch.where(Exact(2) > 1, 0.25, 1.0).expr == sp.Rational(1, 4)


def test_a_rule_with_eps_elsewhere_is_another_rule() -> None:
    """Adam as old releases had it: eps is added before the bias correction of the second moment."""
    rule = adam.adam(1)
    misplaced = {"theta": rule.outputs["theta"].subs(eps, eps / sp.sqrt(rule.where["c2"]))}
    case = Case("Adam", Adam(weight_decay=0.1), replace(rule, outputs={**rule.outputs, **misplaced}))
    with pytest.raises(AssertionError, match="computes another theta'"):
        check_symbols(Statements(), case)
    with pytest.raises(AssertionError, match="theta' at t = 1"):
        check_float64(Statements(), case.label, case.optimizer, case.references())


def some_cases(kind: type) -> list[Case]:
    """A few cases of each rule that between them run every line."""
    if kind is SGD:
        return [*list(sgd.cases())[::2], *list(momentum.cases())[::2], *list(nesterov.cases())[::2]]
    if kind is Adagrad:
        return list(adagrad.cases())[::2]
    return [*list(adam.cases())[1:4], *list(adamw.cases())[:1], *list(amsgrad.cases())[:6:2]]


def with_method(optimizer: Any, method: str, function: Any) -> Any:
    """A copy of an optimizer, of a subclass in which one method is replaced."""
    kind = type(optimizer)
    faulty: Any = object.__new__(type(kind.__name__, (kind,), {method: function}))
    vars(faulty).update(vars(optimizer))
    return faulty


def is_caught(cases: list[tuple[Case, list[Reference]]], method: str, function: Any) -> bool:
    """Whether the float64 check of any case fails for the rule with one method replaced."""
    for case, references in cases:
        try:
            check_float64(Statements(), case.label, with_method(case.optimizer, method, function), references)
        except AssertionError:
            return True
    return False


@pytest.mark.parametrize("kind", [SGD, Adagrad, Adam])
def test_every_fault_in_a_shipped_rule_is_caught(kind: type) -> None:
    cases = [(case, case.references()[:2]) for case in some_cases(kind)]
    methods = {name: f for name, f in vars(kind).items() if inspect.isfunction(f) and re.match("_[a-z]", name)}
    faults = [(name, fault, mutant) for name, f in methods.items() for fault, mutant in mutants(f)]
    assert sum(name == "_pullback" for name, _, _ in faults) >= 15
    assert [fault for name, fault, mutant in faults if not is_caught(cases, name, mutant)] == []


def test_the_check_on_symbols_catches_a_wrong_factor() -> None:
    case = next(adam.cases())
    check_symbols(Statements(), case)
    source = textwrap.dedent(inspect.getsource(Adam._pullback))
    assert source.count("2 * (1 - beta2)") == 1
    names: dict[str, Any] = {}
    exec(source.replace("2 * (1 - beta2)", "2.001 * (1 - beta2)"), Adam._pullback.__globals__, names)
    faulty = case._replace(optimizer=with_method(case.optimizer, "_pullback", names["_pullback"]))
    with pytest.raises(AssertionError, match="adjoint of G"):
        check_symbols(Statements(), faulty)


@pytest.mark.parametrize(
    ("kind", "proof", "name", "infinite"),
    [(Adam, adam, "inverse_root", lambda root: 1 / root), (Adagrad, adagrad, "sqrt_slope", lambda root: 0.5 / root)],
)
def test_a_wrong_slope_of_the_root_is_caught(
    kind: type, proof: Any, name: str, infinite: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped: Any = inspect.getmodule(kind)
    right = getattr(shipped, name)
    monkeypatch.setattr(shipped, name, lambda root: right(root) * 1.0005)
    with pytest.raises(AssertionError, match="adjoint of"):
        proof.prove()
    monkeypatch.setattr(shipped, name, infinite)  # at 0, as autograd has it
    with pytest.raises(AssertionError, match=r"their mean|at zero"):
        zero_gradient.prove()


# Citations


def dangling(text: str, titles: list[str]) -> list[str]:
    """Citations in `text` of files that do not exist and of notes that are not defined exactly once."""
    files = [path for path in CITED.findall(text) if not (ROOT / path).is_file()]
    return files + [name for name in NOTE.findall(text) if titles.count(name) != 1]


def test_every_citation_resolves() -> None:
    texts = {path: path.read_text(encoding="utf-8") for path in (ROOT / "gimli_core").rglob("*.py")}
    texts |= {path: path.read_text(encoding="utf-8") for path in PROOF_FILES}
    titles = [title for text in texts.values() for title in TITLE.findall(text)]
    broken = {
        str(path.relative_to(ROOT)): missing for path, text in texts.items() if (missing := dangling(text, titles))
    }
    assert broken == {}
    cited = {path for text in texts.values() for path in CITED.findall(text)}
    assert {f"appendix_proofs/{name}.py" for name in ("sgd", "adagrad", "adam", "adamw", "augmented_state")} <= cited


def test_dangling_citations_are_found() -> None:
    text = "Proof: appendix_proofs/nowhere.py, appendix_proofs/adam.py, NOTE [a], NOTE [b], NOTE [c]."
    assert TITLE.findall("NOTE [a]\n# NOTE [b]: why\nsee NOTE [c]\n    NOTE [b]\n") == ["a", "b", "b"]
    assert dangling(text, ["a", "b", "b"]) == ["appendix_proofs/nowhere.py", "b", "c"]


def test_the_rules_cite_their_own_proofs() -> None:
    for kind, name in ((SGD, "sgd"), (Adagrad, "adagrad"), (Adam, "adam")):
        assert f"appendix_proofs/{name}.py" in (inspect.getdoc(kind) or "")
