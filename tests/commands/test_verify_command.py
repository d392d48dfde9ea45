"""`gimli verify` leads from a disagreement to the page of the run, opened at the first wrong step."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from gimli_core.commands.command_line import main

PROBLEM = """
import dataclasses
import torch
import gimli_core as gimli


class Wrong(gimli.optimizers.SGD):
    def pullback(self, *arguments):
        pulled = super().pullback(*arguments)
        return dataclasses.replace(pulled, V={k: 1.5 * v for k, v in pulled.V.items()}) if dataclasses.is_dataclass(
            pulled) else pulled._replace(V={k: 1.5 * v for k, v in pulled.V.items()})


def loss(theta, phi, batch):
    return ((theta["w"] - 1) ** 4).sum()


def made(rule):
    return dict(problem=gimli.Problem(loss, loss, rule(lr=0.1)), theta_0={"w": torch.zeros(2).double()},
                train_batches=[0, 1, 2], val_batch=0, tolerance=1e-9)


def wrong():
    return made(Wrong)


def right():
    return made(gimli.optimizers.SGD)
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delitem(sys.modules, "faulty", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "faulty.py").write_text(PROBLEM, encoding="utf-8")
    return tmp_path


def test_a_disagreement_offers_its_page(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "faulty:wrong"]) == 1
    assert "See the first wrong step: gimli verify faulty:wrong --page wrong.html" in capsys.readouterr().out
    assert main(["verify", "faulty:wrong", "--page", "wrong.html"]) == 1
    said = capsys.readouterr().out
    assert f"The first wrong step: {(place / 'wrong.html').as_uri()}#line=11&j=2\n" in said
    assert "first wrong is V_2" in (place / "wrong.html").read_text(encoding="utf-8")


def test_what_is_told_beside_json_is_not_in_it(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "faulty:wrong", "--json", "--page", "wrong.html"]) == 1
    came = capsys.readouterr()
    checks = json.loads(came.out)["cases"]["faulty:wrong"]["checks"]
    assert {check["applied"] for check in checks} >= {check["allowed"] + 10 * check["uncertainty"] for check in checks}
    assert re.search(r"wrong.html#line=11&j=2", came.err)


def test_an_agreement_needs_no_page(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "faulty:right", "--page", "wrong.html"]) == 0
    assert "wrong step" not in capsys.readouterr().out
    assert not (place / "wrong.html").exists()


def test_a_page_that_cannot_be_written_is_said_first(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "faulty:wrong", "--page", "no/wrong.html"]) == 2
    assert "--page 'no/wrong.html': expected a file that can be written" in capsys.readouterr().err
