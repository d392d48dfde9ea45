"""What may be typed in a session: everything about the run, and nothing else; and nothing that ends it."""

from __future__ import annotations

import ast
import re

import pytest
import torch

import gimli_core as gimli
from gimli_core.errors import ArgumentError
from gimli_core.step_through.terminal.expressions import QUANTITIES, assignment, checked, evaluate
from gimli_core.step_through.terminal.session import COMMANDS, Session
from gimli_core.step_through.terminal.stepper import Stepper
from gimli_core.step_through.terminal.view import Style
from tests.problems import failing, network

W = torch.tensor([[1.0, -2.0], [3.0, 4.0]])
NAMES = {"theta": {"w": W, "b": torch.tensor(5.0)}, "G": {"w": -W}, "B": {"n": torch.tensor([float("nan")])}, "j": 3}

VALUES = {
    "norm(theta['w'])": 30**0.5,
    "norm(theta)": 55**0.5,
    "finite(theta) and not finite(B)": True,
    "largest(G)": 4.0,
    "theta['w'][0, 1]": -2.0,
    "theta['w'][0][1]": -2.0,
    "theta['w'][-1, :][1]": 4.0,
    "max(theta['w'])": 4.0,
    "min(1, theta['b'], 2)": 1.0,
    "abs(theta['w'][0, 1]) ** 3 - 1": 7.0,
    "0 < j <= 3": True,
    "0 < j < 3": False,
    "j == 3 or theta['zz']": True,  # what is not needed is not looked up
    "2 ** 10 % 7 // 1": 2,
    "9.0 ** 2": 81.0,
    "theta['w'].T[0, 1]": 3.0,
    "(theta['w'] @ G['w'])[0, 0]": 5.0,
    "theta['w'].ndim": 2,
}


@pytest.mark.parametrize("text", VALUES)
def test_what_can_be_said(text: str) -> None:
    assert float(evaluate(text, NAMES)) == pytest.approx(float(VALUES[text]), rel=1e-6)


UNSAID = [
    "torch.os.system('true')",
    "torch",
    "torch.__builtins__['open']('x')",
    "__builtins__",
    "__import__('os')",
    "().__class__",
    "theta.__class__",
    "theta['w'].__class__",
    "theta['w'].numpy()",
    "theta['w'].data",
    "theta['w'].grad_fn",
    "norm.__globals__",
    "norm",
    "(lambda: 1)()",
    "[x for x in theta]",
    "{1: 2}",
    "{1}",
    "f'{j}'",
    "'a' * 10",
    "'a'",
    "b'a'",
    "1j",
    "...",
    "None",
    "j := 3",
    "(j := 3)",
    "await j",
    "1 if j else 2",
    "j in theta",
    "j is j",
    "j << 3",
    "~j",
    "norm(*theta)",
    "norm(x=1)",
    "norm()",
    "open('x')",
    "exec('1')",
    "eval('1')",
    "print(1)",
    "abs(abs)",
    "getattr(theta, 'a')",
    "theta['w'][theta]()",
    "import os",
    "j; j",
    "",
    "   ",
    "norm(",
    "\0",
    "j\n+1",
    "(" * 500 + "j" + ")" * 500,
    "-" * 900 + "j",
    "1" * 5000,
    "nothing",
    "theta2",
]


@pytest.mark.parametrize("text", UNSAID, ids=repr)
def test_what_cannot_be_said_is_known_before_it_runs(text: str) -> None:
    with pytest.raises(ArgumentError, match="expected"):
        checked(text)


UNDONE = [
    "9**9**9",
    "9.0**9**9",
    "2**5000",
    "(2**4000)*(2**4000)",
    "10**100**100",
    "1/0",
    "1.0//0",
    "j % 0",
    "theta['zz']",
    "theta[0]",
    "theta['w']['a']",
    "theta['w'][9]",
    "theta['w'][0, 0, 0]",
    "theta['w'][None, 1.5]",
    "theta + 1",
    "-theta",
    "theta < 1",
    "not theta",
    "norm(theta['w'].shape) + theta",
    "theta['w'] and 1",
    "theta['w'] @ theta['b']",
    "V",
    "s['m']",
    "j[0]",
    "j.T",
    "max(theta['w'].T, j) + B",
    "abs(theta)",
    "theta['w'].shape * 9",
    "(theta['w'] > 0) - (theta['w'] > 0)",
]


@pytest.mark.parametrize("text", UNDONE, ids=repr)
def test_what_cannot_be_done_is_an_argument_error(text: str) -> None:
    checked(text)
    with pytest.raises(ArgumentError, match="expected"):
        evaluate(text, NAMES)


def test_no_tensor_is_made_that_is_much_larger_than_what_there_is() -> None:
    long = torch.ones(1 << 13)
    with pytest.raises(ArgumentError, match="at most 16,777,216 elements; got 67,108,864"):
        evaluate("theta['w'][:, None] * theta['w'][None, :]", {"theta": {"w": long}})
    assert evaluate("(theta['w'] * theta['w'])[0]", {"theta": {"w": long}}) == 1


def test_the_names_are_those_of_a_run() -> None:
    one = Stepper(gimli.step_through(**network()))
    seen: set[str] = set()
    while one.next():
        seen |= set(one.quantities())
    assert seen == set(QUANTITIES)


def test_an_assignment_is_read_as_python_reads_it() -> None:
    assert assignment("G['a=b]['][0, 1] = 2 * j", NAMES) == ("G", ["a=b][", (0, 1)], 6)
    for text in ("", "G", "G == 1", "G = B = 1", "G += 1", "G, B = 1, 2", "3 = 4", "G.x = 1", "G['w'] = torch", "= 1"):
        with pytest.raises(ArgumentError, match="expected"):
            assignment(text, NAMES)


@pytest.fixture
def session() -> Session:
    one = Session(Stepper(gimli.step_through(**network())), Style(False))
    one.obey("next")
    return one


TYPED = [
    "change G['zz'] = 1",
    "change G['w'][99] = 1",
    "change G['w']['a'] = 1",
    "change line = 3",
    "change G = 'a'",
    "change G = G",
    "change G['w'] = G['w'][:2]",
    "change s['step'] = 1",
    "change V = 0",
    "change theta = 0",
    "change nothing = 1",
    "change G = 10**400",
    "change G['w'] = (-1)**0.5",
    "change",
    "change G",
    "next ²",
    "next -1",
    "next 1.5",
    "next x",
    "back ²",
    "back -1",
    "back 10000000000",
    "line ²",
    "line",
    "step x",
    "step " + "9" * 5000,
    "next 10000000000",
    "line 99999999999",
    "print theta['w'] > 0",
    "print",
    "print theta",
    "print G['w'] @ G['b']",
    "print (",
    "print torch.ones(20)",
    "print \ud800",
    "print \0",
    "watch",
    "watch x",
    "watch 1/0",
    "watch V['zz']",
    "unwatch",
    "break",
    "break x",
    "break line",
    "break line ²",
    "break step",
    "break norm(C) > 1",
    "break 1/0",
    "breaks",
    "run",
    "clear",
    "follow",
    "follow x",
    "follow w[9]",
    "follow w[²]",
    "follow w[0",
    "follow w[]",
    "result",
    "end",
    "help",
    "help me",
    "exact",
    "exact G",
    "exact result",
    "break 3",
    "break line 7",
    "break step 99",
    "\x1b[2J",
    "²",
    "print " + "(" * 900,
    "print '" + "a" * 99,
    "next" + "\tx" * 600,
]


@pytest.mark.parametrize("word", ["next", "follow", "change", "watch", "", "x"])
def test_an_answer_does_not_repeat_a_command_without_end(
    session: Session, word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert session.obey(f"{word} {'a' * 1_000_000}")
    assert "expected at most 1000 characters; got 10000" in capsys.readouterr().out


@pytest.mark.parametrize("command", TYPED, ids=[repr(text)[:30] for text in TYPED])
def test_nothing_that_is_typed_ends_a_session(
    session: Session, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert session.obey(command)
    said = capsys.readouterr().out
    assert said
    assert "could not be carried out" not in said  # each is answered in its own words
    assert "\x1b" not in said
    assert session.obey("next")
    assert session.obey("print j")
    assert "j = " in capsys.readouterr().out


@pytest.mark.parametrize("fails", [False, True], ids=["before the first line", "of a run that has none"])
def test_every_command_has_an_answer_where_no_line_has_run(fails: bool, capsys: pytest.CaptureFixture[str]) -> None:
    asked = failing(0) if fails else {**network(), "check": False}
    for command in TYPED:
        one = Session(Stepper(gimli.step_through(**asked)), Style(False))
        if fails:
            assert one.obey("next")
            assert "The run ended here" in capsys.readouterr().out
        assert one.obey(command)
        said = capsys.readouterr().out
        assert said or command.startswith("follow w")  # which is shown with the first line
        assert "could not be carried out" not in said


def test_every_command_is_typed_above() -> None:
    assert set(COMMANDS) <= {text.split()[0] for text in TYPED if text.split()}


def test_a_fault_of_a_command_does_not_end_a_session(
    session: Session, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(session: Session, rest: str) -> None:
        raise KeyError("x")

    monkeypatch.setitem(COMMANDS, "result", fails)
    assert session.obey("result")
    assert "'result' could not be carried out: KeyError: 'x'" in capsys.readouterr().out


@pytest.mark.parametrize(("option", "text"), [("breaks", "norm(C) > 1"), ("watches", "norm(C)"), ("breaks", "thta")])
def test_unknown_names_are_named_when_they_are_set(option: str, text: str) -> None:
    with pytest.raises(ArgumentError, match=r"got the name '(C|thta)'"):
        Stepper(gimli.step_through(**network()), **{option: (text,)})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("norm(B['v']) > 1", "entry of B: expected one of .*'w'.*; got 'v'"),
        ("3", "For a place say break step 3"),
        ("1 > 0", "a condition on a quantity of the run"),
        ("line 7", "expected one of 5, 6, 8, 9, 11, 12, 13, 14, 16; got 7"),
        ("step 99", "expected a step from 0 to 4; got 99"),
    ],
)
def test_what_could_never_stop_a_run_is_refused_when_it_is_set(text: str, said: str) -> None:
    one = Stepper(gimli.step_through(**network()))
    with pytest.raises(ArgumentError, match=said):
        one.add_break(text)
    assert one.breaks == []


@pytest.mark.parametrize("text", ["G['w']", "G['w'] > 0", "theta['w'][:0]"])
def test_a_condition_of_several_numbers_is_told_where_it_is_asked(text: str) -> None:
    one = Stepper(gimli.step_through(**network()))
    one.add_break(text)
    with pytest.raises(ArgumentError, match=r"^break .*expected a condition that is true or false; got a tensor of"):
        one.run()


def test_growth_and_the_adjoint_before_it() -> None:
    one = Stepper(gimli.step_through(**network()))
    norms = {m.j: norm_of(m.values["B"]) for m in gimli.step_through(**network()) if m.line in (9, 14)}
    one.add_break("growth > 0")
    for j in reversed(range(4)):
        assert one.run() == "growth > 0"
        assert (one.here.line, one.here.j) == (14, j)  # it is asked where it is computed, and nowhere else
        assert one.evaluate("norm(B_next)") == pytest.approx(norms[j + 1], rel=1e-14)
        assert one.evaluate("growth") == pytest.approx(norms[j] / norms[j + 1], rel=1e-14)
    one = Stepper(gimli.step_through(**network()))
    one.to(line=14)
    one.change("B", {k: torch.zeros_like(t) for k, t in one.evaluate("B").items()})
    assert one.evaluate("growth") == 0
    one.to(line=14)
    assert one.evaluate("norm(B_next)") == 0
    assert one.evaluate("1 / growth") == 0  # from nothing: the state hands something on


def norm_of(tree: dict[str, torch.Tensor]) -> float:
    return float(torch.cat([t.reshape(-1) for t in tree.values()]).norm())


def test_a_change_is_shown_before_and_after(session: Session, capsys: pytest.CaptureFixture[str]) -> None:
    before = session.stepper.evaluate("G['w']")[1].item()
    session.obey("change G['w'][1] = 0.25")
    assert f"G['w'][1]: {before!r} → 0.25" in capsys.readouterr().out
    session.obey("change G = 0")
    assert re.search(r"norm of G: \d\S* → 0\n", capsys.readouterr().out)


def test_every_digit_on_request(session: Session, capsys: pytest.CaptureFixture[str]) -> None:
    session.obey("exact G['w']")
    digits = capsys.readouterr().out.partition("=")[2]
    assert torch.equal(torch.tensor(ast.literal_eval(digits.strip())), session.stepper.evaluate("G['w']"))
    session.obey("end")
    capsys.readouterr()
    session.obey("exact result")
    assert repr(gimli.meta_gradient(**network()).A_opt["lr"].item()) in capsys.readouterr().out


def test_a_change_reaches_one_entry(session: Session) -> None:
    before = session.stepper.evaluate("G['w']").clone()
    assert session.obey("change G['w'][1] = 0.25")
    after = session.stepper.evaluate("G['w']")
    assert after[1] == 0.25
    assert torch.equal(after[[0, 2]], before[[0, 2]])


def test_names_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    name = "\x1b[2J\x07w"

    def loss(theta: dict[str, torch.Tensor], phi: object, batch: object) -> torch.Tensor:
        return theta[name].square().sum()

    problem = gimli.Problem(loss, loss, gimli.optimizers.SGD(lr=0.1))
    walk = gimli.step_through(problem, {name: torch.ones(2)}, [None], None)
    one = Session(Stepper(walk), Style(False))
    quoted = f"theta[{name!r}]"
    typed = [
        "next",
        f"follow {name}[0]",
        f"watch norm(theta['{name}'])",
        f"print theta['{name}']",
        f"print {quoted}",
        "print theta",
        f"break norm(theta['{name}']) > 0",
        "breaks",
        f"follow {name}[9]",
        "end",
        "result",
    ]
    for command in typed:
        assert one.obey(command)
    one.list_all()
    said = capsys.readouterr().out
    assert "follow" in said
    assert "watch" in said
    assert "\x1b" not in said
    assert "\x07" not in said
