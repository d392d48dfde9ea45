"""The examples run as a user runs them, on small settings."""

from __future__ import annotations

import ast
import io
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"
CHARACTERS, DRAWINGS = 10, 12


def run(name: str, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", name, *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, cwd=EXAMPLES, env=environment, check=False)


@pytest.mark.parametrize("name", ["learned_schedule.py", "learned_loss.py"])
def test_examples_on_bundled_data(name: str) -> None:
    done = run(name, "--outer-steps", "2", "--inner-steps", "3")
    assert done.returncode == 0, done.stderr
    assert "outer step   0" in done.stdout
    assert "test " in done.stdout.splitlines()[-1] or "cross entropy" in done.stdout.splitlines()[-1]


def test_nested_loops_learn_their_rates() -> None:
    done = run("learned_outer_rate.py", "--outer", "1")
    assert done.returncode == 0, done.stderr
    assert "query loss" in done.stdout.splitlines()[-1]


@pytest.mark.long
def test_a_language_model_s_paragraphs_are_scored(tmp_path: Path) -> None:
    text = "\n\n".join(f"{word} " * 60 for word in ("north", "south"))
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    options = ["--text", str(tmp_path / "text.txt"), "--steps", "3", "--queries", "2"]
    done = run("attribute_language_model.py", *options, "--out", str(tmp_path / "scores.npz"))
    assert done.returncode == 0, done.stderr
    assert "scored 2 of 2 queries" in done.stdout
    for name in ("paragraph 1", "paragraph 2"):  # each is helped by its own words
        query = done.stdout.split(f"query from '{name}'")[1]
        assert query.split("helped most: ")[1].startswith(name)
    with np.load(tmp_path / "scores.npz") as file:
        assert file["scores"].shape == (2, 8, 64)


def test_imaml_s_synthetic_problem(tmp_path: Path) -> None:
    done = run("imaml_synthetic.py", "--outer-steps", "20", "--out", str(tmp_path / "imaml.svg"))
    assert done.returncode == 0, done.stderr
    losses = [
        float(line.split("validation loss ")[1].split(",")[0])
        for line in done.stdout.splitlines()
        if line.startswith("outer step")
    ]
    assert losses[-1] < losses[0] / 2
    assert "unrolled     100    0.0e+00" in done.stdout
    assert "error of the result:" in done.stdout
    assert "<svg" in (tmp_path / "imaml.svg").read_text(encoding="utf-8")


def characters() -> NDArray[np.uint8]:
    """A few drawings of each digit, [10, 12, 28, 28], standing in for Omniglot, which is not in this repository."""
    images, labels = load_digits(return_X_y=True)
    chosen = np.stack([images[labels == digit][:DRAWINGS] for digit in range(CHARACTERS)])
    grey = (chosen * 255 / 16).astype(np.uint8).reshape(-1, 8, 8)
    large = [np.asarray(Image.fromarray(image).resize((28, 28))) for image in grey]
    return np.stack(large).reshape(CHARACTERS, DRAWINGS, 28, 28)


def write_npz(path: Path) -> None:
    order = np.random.default_rng(0).permutation(CHARACTERS * DRAWINGS)
    character = np.repeat(np.arange(CHARACTERS), DRAWINGS)
    np.savez(path, images=characters().reshape(-1, 28, 28)[order], character=character[order])


def write_zip(path: Path) -> None:
    """As published: black on white, 105 x 105, a folder for each character."""
    with zipfile.ZipFile(path, "w") as archive:
        for character, drawings in enumerate(characters()):
            for number, drawing in enumerate(drawings):
                png = io.BytesIO()
                Image.fromarray(255 - drawing).resize((105, 105)).convert("1").save(png, format="PNG")
                archive.writestr(f"images_background/Digits/character{character:02}/{number:02}.png", png.getvalue())


@pytest.mark.parametrize("write", [write_npz, write_zip])
def test_maml_reads_omniglot_as_published_and_as_arrays(tmp_path: Path, write: object) -> None:
    path = tmp_path / "omniglot"
    write(path)  # type: ignore[operator]
    path = next(tmp_path.iterdir())
    done = run(
        "maml_step.py", "--data", str(path), "--outer-steps", "1", "--tasks", "1", "--ways", "2", "--inner-steps", "2"
    )
    assert done.returncode == 0, done.stderr
    assert "8 characters to learn from, 2 held out" in done.stdout
    assert "after 2 inner steps" in done.stdout.splitlines()[-1]


@pytest.mark.long
def test_any_number_of_processes_learns_the_same(tmp_path: Path) -> None:
    write_npz(tmp_path / "omniglot.npz")
    options = ["--data", str(tmp_path / "omniglot.npz"), "--outer-steps", "1", "--tasks", "5", "--ways", "2"]
    options += ["--inner-steps", "2", "--test-tasks", "3"]
    alone = run("many_processes.py", *options)
    two = run("-m", "torch.distributed.run", "--nproc-per-node", "2", "many_processes.py", *options)
    said = []
    for done, size in ((alone, 1), (two, 2)):
        assert done.returncode == 0, done.stdout + done.stderr
        lines = done.stdout.splitlines()
        assert lines[0] == f"{size} processes; 8 characters to learn from, 2 held out"
        said.append([line for line in lines[1:] if "ms an outer step" not in line])
    assert said[0] == said[1]
    assert len(said[0]) == 3


def test_maml_says_where_omniglot_is(tmp_path: Path) -> None:
    done = run("maml_step.py", "--data", str(tmp_path / "absent.zip"))
    assert done.returncode == 1
    assert "https://github.com/brendenlake/omniglot" in done.stderr
    assert "Traceback" not in done.stderr


def test_both_forms_of_omniglot_hold_the_same_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)
    import omniglot

    write_npz(tmp_path / "a.npz")
    write_zip(tmp_path / "a.zip")
    arrays, published = omniglot.load(tmp_path / "a.npz"), omniglot.load(tmp_path / "a.zip")
    assert arrays.shape == published.shape == (CHARACTERS, DRAWINGS, 1, 28, 28)
    # Ink is dithered to black and white in the PNGs, so compare each character's amount of it.
    amounts = [images.mean((1, 2, 3, 4)) for images in (arrays, published)]
    assert (amounts[0] / amounts[1] - 1).abs().max() < 0.1


def test_the_index_has_every_program_with_its_first_line() -> None:
    index = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    for path in EXAMPLES.glob("*.py"):
        first = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").splitlines()[0].rstrip(".")
        assert f"| [`{path.name}`]({path.name}) | {first} |" in index
