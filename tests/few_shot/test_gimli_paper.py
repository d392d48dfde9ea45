"""GIMLI's experiments 5.1 and 5.2, run as a user runs them, on small made pictures; killed and taken up."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples" / "gimli_paper"


def run(name: str, *options: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", str(EXAMPLES / name), *map(str, options)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def cifar(path: Path) -> None:
    """Ten classes of pictures in CIFAR-10's arrays."""
    generator = np.random.default_rng(0)
    y = generator.integers(0, 10, 80).astype(np.uint8)
    x = generator.integers(0, 255, (80, 32, 32, 3)).astype(np.uint8)
    np.savez(path, train_images=x[:64], train_labels=y[:64], test_images=x[64:], test_labels=y[64:])


def classes(path: Path, channels: int) -> None:
    """Two dozen classes that noise hardly hides, half of them to train on."""
    generator, shape = np.random.default_rng(channels), (8, 8, channels)[: 2 if channels == 1 else 3]
    means, y = generator.integers(40, 200, (24, *shape)), np.repeat(np.arange(24), 10)
    x = np.clip(means[y] + generator.integers(-30, 30, (240, *shape)), 0, 255).astype(np.uint8)
    np.savez(path, images=x, label=y, split=np.array([0] * 12 + [2] * 12))


@pytest.mark.long
def test_learning_rates_are_learned_beside_two_schedules(tmp_path: Path) -> None:
    cifar(tmp_path / "cifar.npz")
    options = ["--quick", "--data", tmp_path / "cifar.npz", "--out", tmp_path, "--epochs", "2", "--unrolled", "2"]
    done = run("learning_rates.py", *options)
    assert done.returncode == 0, done.stderr
    assert "not the paper's: depth 10 (the paper: 100)" in done.stdout
    with (tmp_path / "figure_1.csv").open(encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    assert [row["variant"] for row in table] == ["fixed"] * 2 + ["annealed"] * 2 + ["meta-learned"] * 2
    rates = [line.rpartition("rates ")[2] for line in done.stdout.splitlines() if line.startswith("meta-learned, seed")]
    assert len(set(rates)) == 2  # they move
    assert all(float(each.split(" to ")[0]) < 0.1 < float(each.split(" to ")[1]) for each in rates)
    assert (tmp_path / "figure_1.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.long
def test_a_killed_run_goes_on_after_its_last_epoch_to_the_same_numbers(tmp_path: Path) -> None:
    cifar(tmp_path / "cifar.npz")
    options = ["--quick", "--data", tmp_path / "cifar.npz", "--epochs", "3", "--unrolled", "2"]
    straight = run("learning_rates.py", *options, "--out", tmp_path / "straight")
    assert straight.returncode == 0, straight.stderr
    command = [sys.executable, str(EXAMPLES / "learning_rates.py"), *map(str, options), "--out", str(tmp_path / "cut")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("meta-learned, seed 0, epoch 2"):
                process.kill()  # with kill -9, perhaps before that epoch is saved
                break
    again = run("learning_rates.py", *options, "--out", tmp_path / "cut")
    assert again.returncode == 0, again.stderr
    assert "fixed, seed 0, epoch" not in again.stdout  # what was done is not done again
    assert "meta-learned, seed 0, epoch 1" not in again.stdout
    said = [(tmp_path / name / "figure_1.csv").read_text(encoding="utf-8") for name in ("straight", "cut")]
    assert said[0] == said[1]


def test_learning_rates_say_where_cifar_10_is(tmp_path: Path) -> None:
    done = run("learning_rates.py", "--data", tmp_path / "absent.npz")
    assert done.returncode == 1
    assert "https://www.cs.toronto.edu/~kriz/cifar.html" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.long
def test_networks_and_inner_optimizers_are_compared(tmp_path: Path) -> None:
    classes(tmp_path / "drawn.npz", 1)
    classes(tmp_path / "photo.npz", 3)
    options = ["--quick", "--omniglot", tmp_path / "drawn.npz", "--colour", tmp_path / "photo.npz"]
    options += ["--out", tmp_path / "out", "--outer-steps", "2", "--only", "vgg+SGD", "resnet-4+Adam"]
    done = run("ablation.py", *options)
    assert done.returncode == 0, done.stderr
    tables = (tmp_path / "out" / "tables.md").read_text(encoding="utf-8")
    assert "| omniglot, 5-way 1-shot | 99.53 |" in tables
    with (tmp_path / "out" / "table_2.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["model+inner"] for row in rows] == ["resnet-4+Adam", "vgg+SGD"] * 2
    assert [row["the paper, %"] for row in rows] == ["", "99.62 ± 0.08", "49.71 ± 3.71", "56.33 ± 0.27"]
    pictures = sorted(path.name for path in (tmp_path / "out").glob("rates_*.png"))
    assert pictures[0] == "rates_omniglot_5way_1shot_resnet-4+Adam_0.png"
    assert len(pictures) == 4
    again = run("ablation.py", *options)  # nothing is left to train
    assert again.stdout == done.stdout


@pytest.mark.long
def test_an_ablation_names_what_is_wrong_before_training(tmp_path: Path) -> None:
    classes(tmp_path / "drawn.npz", 1)
    bad = run("ablation.py", "--quick", "--omniglot", tmp_path / "drawn.npz", "--colour", tmp_path / "absent")
    assert bad.returncode == 1
    assert "absent: expected a file or folder; got no such path" in bad.stderr
    assert "--only: expected MODEL+INNER" in run("ablation.py", "--quick", "--only", "vgg+LBFGS").stderr
