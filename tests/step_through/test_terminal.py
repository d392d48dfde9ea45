"""`gimli step` and `gimli trace` through a pseudo-terminal, a pipe and a file."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

import gimli_core as gimli
from gimli_core.commands.command_line import main
from gimli_core.errors import ArgumentError
from gimli_core.step_through.page.algorithm import LINES
from gimli_core.step_through.terminal.session import Session
from gimli_core.step_through.terminal.stepper import Stepper
from gimli_core.step_through.terminal.view import Style, screen, section_of
from tests.problems import network
from tests.step_through.pages import lesson as cached

RUN = [
    sys.executable,
    "-c",
    "import sys; from gimli_core.commands.command_line import main; sys.exit(main(sys.argv[1:]))",
]
ROOT = Path(gimli.__file__).parents[1]
USER = """
import torch
import gimli_core as gimli

def loss(theta, phi, batch):
    if batch == {fails}:
        raise RuntimeError("the disk is full")
    return ((theta["w"] - 1) ** 2).sum() * (1 + batch)

def build():
    problem = gimli.Problem(loss, loss, gimli.optimizers.SGD(lr=0.1))
    return problem, dict(theta_0={{"w": torch.zeros(2)}}, train_batches=list(range(10)), val_batch=0, check=False)

def wrong():
    return 3
"""


def environment(**changed: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "COLUMNS", "LINES")}
    return {**kept, "PYTHONPATH": str(ROOT), "TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8", **changed}


class Terminal:
    """A program in a pseudo-terminal of a given width."""

    def __init__(self, arguments: list[str], columns: int = 110, **changed: str) -> None:
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
        self.process = subprocess.Popen(
            [*RUN, *arguments], stdin=slave, stdout=slave, stderr=slave, env=environment(**changed), close_fds=True
        )
        os.close(slave)

    def until(self, text: str, limit: float = 120) -> str:
        """All that comes up to `text`."""
        seen, end = b"", monotonic() + limit
        while text.encode() not in seen:
            assert monotonic() < end, f"waited for {text!r}; came: {seen.decode(errors='replace')[-3000:]}"
            if select.select([self.master], [], [], 0.5)[0]:
                try:
                    seen += os.read(self.master, 65536)
                except OSError:  # the program has gone
                    break
        assert text.encode() in seen, seen.decode(errors="replace")[-3000:]
        return seen.decode(errors="replace")

    def type(self, command: str) -> str:
        """What is drawn after a command, up to the next prompt."""
        os.write(self.master, f"{command}\n".encode())
        return self.until("gimli> ")

    def close(self) -> int:
        os.write(self.master, b"quit\n")
        code = self.process.wait(60)
        os.close(self.master)
        return code


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


@pytest.fixture(scope="module")
def walked() -> Iterator[Terminal]:
    terminal = Terminal(["step", "momentum"])
    terminal.until("gimli> ")
    yield terminal
    assert terminal.close() == 0


def marked(drawn: str) -> list[str]:
    return [line for line in plain(drawn).splitlines() if line.startswith("▶")]


def test_a_walk_in_the_terminal(walked: Terminal) -> None:
    drawn = walked.type("step 0")
    drawn = walked.type("line 6")
    assert "line 6  step" in plain(drawn)
    assert len(marked(drawn)) == 1
    assert marked(drawn)[0].startswith("▶  6   θ_j₊₁")
    assert "\x1b[1;33m▶" in drawn
    drawn = walked.type("line 14")
    assert "line 14  step 11 of 12  backward" in plain(drawn)
    assert "B_11" in drawn
    back = walked.type("back")
    assert "line 13  step 11" in plain(back)
    assert "(back from" in back
    drawn = walked.type("")
    assert "line 14  step 11" in plain(drawn)
    drawn = walked.type("step 7")
    assert "line 11  step 7" in plain(drawn)
    exact = list(gimli.lessons.momentum().walk())
    B_8 = next(m for m in exact if (m.line, m.j) == (14, 8)).values["B"]["θ"]
    assert f"= {B_8[1].item():.10g}" in walked.type("print B['θ'][1]")
    drawn = walked.type("watch norm(B)")
    assert f"watch norm(B) = {B_8.norm().item():.10g}"[:24] in plain(drawn)
    drawn = plain(walked.type("follow θ[0]"))
    assert re.search(r"follow B of θ\[0\] = .*[▁-█]", drawn)
    assert "Breakpoint: norm(V) > 0.05" in walked.type("break norm(V) > 0.05")
    drawn = walked.type("run")
    assert "Stopped at the breakpoint: norm(V) > 0.05" in drawn
    assert "is no command. Did you mean 'follow'?" in walked.type("folow")
    assert "expected an expression over theta" in walked.type("print nothing")
    assert "does not come to step 99" in walked.type("step 99")
    assert "No breakpoints." in walked.type("clear")
    assert "the end" in plain(walked.type("end"))
    result = gimli.meta_gradient(**gimli.lessons.momentum().arguments)
    assert f"{result.A_opt['lr'].item():.4f}" in walked.type("result")


def test_an_intervention_in_the_terminal() -> None:
    terminal = Terminal(["step", "quadratic", "--break", "line 9"])
    terminal.until("gimli> ")
    terminal.type("run")
    drawn = plain(terminal.type("change B['θ'][0] = 0"))
    assert "after interventions, not the exact meta-gradient: B changed at line 9 of step 8" in drawn
    assert "= 0" in terminal.type("print B['θ'][0]")
    assert "expected one of 'V'" in (terminal.type("next"), terminal.type("change B = 0"))[1]
    terminal.type("end")
    assert "with interventions: B changed at line 9 of step 8" in terminal.type("result")
    assert terminal.close() == 0


def test_forty_columns() -> None:
    terminal = Terminal(["step", "adam"], columns=40)
    seen = terminal.until("gimli> ") + terminal.type("line 11") + terminal.type("watch norm(B)") + terminal.type("end")
    drawn = plain(seen)
    views = drawn[drawn.index("line 5") :]
    assert all(len(line) <= 40 for line in views.splitlines()), max(views.splitlines(), key=len)
    assert "▶ 11" in drawn
    assert terminal.close() == 0


@pytest.mark.parametrize("changed", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_without_colour(changed: dict[str, str]) -> None:
    terminal = Terminal(["step", "quadratic"], **changed)
    drawn = terminal.until("gimli> ") + terminal.type("next")
    assert "\x1b[" not in drawn.replace("\x1b[?2004h", "").replace("\x1b[?2004l", "")
    assert "▶  6" in drawn
    assert terminal.close() == 0


def test_a_terminal_without_unicode() -> None:
    terminal = Terminal(["step", "quadratic", "--no-colour"], PYTHONIOENCODING="ascii")
    drawn = terminal.until("gimli> ") + terminal.type("next")
    assert drawn.isascii()
    assert ">  6   theta_j" in drawn
    assert terminal.close() == 0


def run(*arguments: str, typed: str = "", **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*RUN, *arguments], input=typed, capture_output=True, text=True, env=environment(), timeout=300, **options
    )


def test_piped_output_lists_the_run() -> None:
    done = run("step", "quadratic", "--watch", "norm(B)")
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout
    rows = [line for line in done.stdout.splitlines() if line.startswith("line ")]
    assert len(rows) == len(list(gimli.lessons.quadratic().walk()))
    assert rows[-1].startswith("line 16")
    result = gimli.meta_gradient(**gimli.lessons.quadratic().arguments)
    assert f"norm(B) = {result.B_0['θ'].norm().item():.8g}"[:18] in done.stdout


def test_commands_from_a_pipe() -> None:
    done = run("step", "quadratic", typed="line 14\nprint norm(B)\nquit\nnext\n")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("▶") == 2
    assert "norm(B) = " in done.stdout


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for module in ("mine", "failing"):  # another test may have imported its own
        monkeypatch.delitem(sys.modules, module, raising=False)
    (tmp_path / "mine.py").write_text(USER.format(fails=-1), encoding="utf-8")
    (tmp_path / "failing.py").write_text(USER.format(fails=7), encoding="utf-8")
    return tmp_path


def test_a_users_own_problem(user: Path) -> None:
    done = run("trace", "mine:build", "--out", "page.html", "--memory", "store", cwd=user)
    assert done.returncode == 0, done.stderr
    assert re.match(r"page.html: \d+ moments, 0\.\d+ MB", done.stdout)
    assert "mine:build" in (user / "page.html").read_text(encoding="utf-8")


def test_a_large_run_names_its_worst_steps(user: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.chdir(user)
    (user / "mine.py").write_text(
        USER.format(fails=-1).replace("zeros(2)", "zeros(50)").replace("lr=0.1", "lr=0.03"), encoding="utf-8"
    )
    assert main(["trace", "mine:build", "--out", "page.html"]) == 0
    first, *worst = capsys.readouterr().out.splitlines()
    assert first.startswith("page.html: ")
    assert len(worst) == 3
    for j, line in enumerate(worst):  # B_j = (1 - 2·lr·(1 + j))·B_{j+1}
        factor = 1 - 0.06 * (1 + j)
        assert line == f"step {j}: |B| x{factor:.3g}, most by the optimizer, largest in w: #line=14&j={j}"


def test_a_problem_that_raises_on_its_way(user: Path) -> None:
    done = run("trace", "failing:build", "--out", "page.html", cwd=user)
    assert done.returncode == 2
    assert "the run ended after line 6 of step 6: RuntimeError: the disk is full" in done.stderr
    assert "The page shows all up to there." in done.stderr
    assert "the disk is full" in (user / "page.html").read_text(encoding="utf-8")
    listed = run("step", "failing:build", cwd=user)
    assert listed.returncode == 2
    assert listed.stdout.count("\n") == 2 * 7 + 1
    assert "The run ended here: RuntimeError: the disk is full" in listed.stdout


def complaint(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(list(arguments)) == 2
    said = capsys.readouterr().err
    assert said.startswith("gimli: ")
    assert said.count("\n") == 1
    return said


def test_bad_input_is_named(capsys: pytest.CaptureFixture[str], user: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(user)
    page = str(user / "page.html")
    assert "Did you mean 'momentum'?" in complaint(capsys, "trace", "momentun", "--out", page)
    assert "MODULE:FUNCTION that can be imported" in complaint(capsys, "trace", "nowhere:f", "--out", page)
    assert "got an int" in complaint(capsys, "trace", "mine:wrong", "--out", page)
    assert "no directory" in complaint(capsys, "trace", "adam", "--out", str(user / "no" / "page.html"))
    assert "got a directory" in complaint(capsys, "trace", "adam", "--out", str(user))
    assert "Count from 0" in complaint(capsys, "trace", "adam", "--out", page, "--follow", "w[9]")


def test_no_browser(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("webbrowser.open", lambda address: False)
    assert main(["trace", "quadratic", "--out", str(tmp_path / "page.html"), "--open"]) == 0
    assert "no browser could be started. Open" in capsys.readouterr().err


def test_all_lessons_from_the_command(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    two = {name: (lambda made: lambda: made)(cached(name)) for name in ("quadratic", "momentum")}
    monkeypatch.setattr(gimli.lessons, "LESSONS", two)
    assert main(["trace", "lessons", "--out", str(tmp_path / "pages")]) == 0
    names = {"quadratic.html", "momentum.html", "index.html"}
    assert {path.name for path in (tmp_path / "pages").iterdir()} == names
    said = capsys.readouterr().out
    assert all(f"{name}: " in said for name in names)
    assert 'href="momentum.html"' in (tmp_path / "pages" / "index.html").read_text(encoding="utf-8")
    assert "--out and --open alone; got --title" in complaint(
        capsys, "trace", "lessons", "--out", str(tmp_path / "pages"), "--title", "x"
    )


def test_figures_from_the_command(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    main(["trace", "quadratic", "--out", str(tmp_path / "page.html"), "--figures", str(tmp_path / "figures")])
    names = {
        f"{name}.{kind}"
        for name in ("adjoints", "contributions", "growth", "memory", "stacked", "tensors")
        for kind in ("png", "pdf")
    }
    assert {p.name for p in (tmp_path / "figures").iterdir()} == names


# --- the screen, without a terminal ---


@pytest.mark.parametrize("width", [40, 60, 80, 92, 100, 107, 108, 160])
def test_line_14_is_whole_at_every_width(width: int) -> None:
    one = stepper()
    one.to(line=14)
    drawn = screen(one, width, Style(False))
    column = drawn if width < 92 else [line.partition("│")[0] for line in drawn]
    start = next(i for i, line in enumerate(column) if line.startswith("▶ 14"))
    end = next(i for i, line in enumerate(column) if line.startswith("  15"))
    text = next(text for number, _, text in LINES if number == 14)
    assert " ".join(" ".join(column[start:end]).split()) == f"▶ 14 {text}"
    assert max(map(len, drawn)) <= width


def test_the_terminal_tells_the_lesson(capsys: pytest.CaptureFixture[str]) -> None:
    lesson = cached("momentum")
    session = Session(Stepper(lesson.walk()), Style(False), lesson)
    session.introduce()
    told = capsys.readouterr().out
    assert told.splitlines() == [lesson.title, lesson.summary, lesson.sections[0]["heading"]]
    for part in lesson.sections:
        for _, line, j in part["go"]:
            shown = section_of(lesson, line, j)
            assert (shown is None and part["kind"] == "say") or [line, j] in [place[1:] for place in shown["go"]]
    session.stepper.to(line=14)
    session.show()
    drawn = " ".join(capsys.readouterr().out.split())
    section = section_of(lesson, 14, session.stepper.here.j)
    assert section is not None
    assert lesson.title in drawn
    assert section["text"] in drawn


# --- the stepper, without a terminal ---


def stepper(**changed: Any) -> Stepper:
    return Stepper(gimli.step_through(**network(**changed)))


def test_back_shows_what_was() -> None:
    one = stepper()
    values = []
    while one.next():
        values.append(float(one.evaluate("norm(theta)")))
    while one.back():
        pass
    again = [float(one.evaluate("norm(theta)"))]
    while one.next():
        again.append(float(one.evaluate("norm(theta)")))
    assert again == values


def test_accumulators_are_kept_as_they_were() -> None:
    one = stepper()
    one.to(line=12, step=3)
    start = one.evaluate("A_opt['lr']").item()
    one.to(line=16)
    assert start == 0.0
    final = one.evaluate("A_opt['lr']").item()
    one.to(line=12, step=3)
    assert one.evaluate("A_opt['lr']").item() == 0.0
    assert final == gimli.meta_gradient(**network()).A_opt["lr"].item()


def test_breakpoints() -> None:
    one = stepper(steps=6)
    one.add_break("not finite(B)")
    one.add_break("step 3")
    assert one.run() == "step 3"
    assert (one.here.line, one.here.j) == (5, 3)
    assert one.run() == "step 3"
    assert one.here.backward
    assert one.here.j == 3
    one.breaks.clear()
    one.add_break("line 14")
    assert one.run() == "line 14"
    one.change("B", {"b": float("nan")})
    one.breaks.clear()
    one.add_break("not finite(B)")
    assert one.run() == "not finite(B)"
    assert one.run() is not None


def test_one_parameter_through_the_run() -> None:
    one = stepper()
    while one.next():
        pass
    found = one.series("w", 1)
    result = gimli.meta_gradient(**network())
    assert found["theta"][4] == result.theta_J["w"][1].item()
    assert found["B"][0] == result.B_0["w"][1].item()
    assert sorted(found["G"]) == [0, 1, 2, 3]


def test_tensors_are_let_go_beyond_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["gimli_core.step_through.terminal.stepper"], "KEPT_BYTES", 400)
    one = stepper()
    while one.next():
        pass
    while one.back():
        pass
    assert one.here.names is None
    assert one.here.norms["G"] > 0
    with pytest.raises(ArgumentError, match="let go"):
        one.evaluate("norm(G)")


def test_what_cannot_be_asked_of_a_stepper() -> None:
    one = stepper()
    one.next()
    with pytest.raises(ArgumentError, match="expected Python"):
        one.evaluate("norm(")
    with pytest.raises(ArgumentError, match="a number after 'line'"):
        one.add_break("line x")
    one.next()
    one.back()
    with pytest.raises(ArgumentError, match="What has run cannot be changed"):
        one.change("G", {})
