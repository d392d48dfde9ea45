"""The order of the house, read off the source: one table of layers, autograd asked in one room, schedules without
tensors, a core on torch, numpy and the standard library, names that say what they are."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import gimli_core

# Each line may import from the lines above it; rooms of one line do not import each other. Rooms to come are named.
LAYERS = """
errors notation trees globals_named
attributes layout processes outlines
environment results derivatives optimizers
record problem meta_parameters inner_loop learned
transforms watchers
arguments
lines_over_ranks
forward_unroll backward_sweep requirements memory compiled
runs
meta_gradient unroll evaluation implicit
verification step_through demo outer_loop attribution
few_shot lessons
commands __init__
"""
LINE = {room: n for n, line in enumerate(LAYERS.split("\n")) for room in line.split()}

# What is still the wrong way round: a list that can only shrink.
NOT_YET: set[tuple[str, str]] = set()

ROOT = Path(gimli_core.__file__).parent
CORE = [room for room in LINE if LINE[room] < LINE["verification"] and room != "__init__"]


def files(root: Path) -> dict[str, Path]:
    """The package's files by their dotted names below it: a folder's own file by the folder, the root's as __init__."""
    found = {}
    for path in sorted(root.rglob("*.py")):
        name = ".".join(path.relative_to(root).with_suffix("").parts)
        found[name if name == "__init__" else name.removesuffix(".__init__")] = path
    return found


def room_of(name: str) -> str:
    return name.split(".")[0]


def imports(path: Path, known: dict[str, Path]) -> set[str]:
    """Every module that a file imports, the package's by their dotted names below it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module
            whole = {f"{node.module}.{alias.name}" for alias in node.names}
            inside = {name for name in whole if name.removeprefix("gimli_core.") in known}
            found |= inside | ({node.module} if inside != whole else set())
    return {own(name, known) for name in found}


def own(name: str, known: dict[str, Path]) -> str:
    """`gimli_core.runs.plan` as `runs.plan`; the package itself as `__init__`; other packages' names as they are."""
    if name == "gimli_core":
        return "__init__"
    below = name.removeprefix("gimli_core.")
    assert below == name or below in known, f"no such module: {name}"
    return below


def graph(root: Path) -> dict[str, set[str]]:
    """For each file, the files of the package that it imports."""
    known = files(root)
    return {name: imports(path, known) & set(known) for name, path in known.items()}


def wrong_way(found: dict[str, set[str]]) -> set[tuple[str, str]]:
    """Imports that do not go to a room above one's own, (importer, imported)."""
    return {
        (name, other)
        for name, others in found.items()
        for other in others
        if room_of(name) != room_of(other) and LINE[room_of(other)] >= LINE[room_of(name)]
    }


def circles(found: dict[str, set[str]]) -> set[str]:
    """Files that reach themselves without leaving their room."""
    return {name for name in found if name in set(_reached(name, found))}


def _reached(name: str, found: dict[str, set[str]]) -> Iterator[str]:
    seen: set[str] = set()
    todo = [name]
    while todo:
        for following in found[todo.pop()] - seen:
            if room_of(following) == room_of(name):
                seen.add(following)
                todo.append(following)
                yield following


def test_every_file_has_a_line_in_the_table() -> None:
    assert {room_of(name) for name in files(ROOT)} <= set(LINE)


def test_imports_go_to_the_lines_above() -> None:
    """NOT_YET is exact: an import that has been turned round leaves the list, and none enters it unseen."""
    assert wrong_way(graph(ROOT)) == NOT_YET


def test_files_of_a_room_import_without_circles() -> None:
    assert not circles(graph(ROOT))


@pytest.mark.parametrize(
    ("file", "line", "pair"),
    [
        ("errors.py", "from gimli_core.runs.plan import Plan", ("errors", "runs.plan")),
        ("backward_sweep.py", "from gimli_core import forward_unroll", ("backward_sweep", "forward_unroll")),
        ("derivatives/first_order.py", "import gimli_core.optimizers", ("derivatives.first_order", "optimizers")),
        ("memory/storage.py", "def late():\n    import gimli_core", ("memory.storage", "__init__")),
    ],
)
def test_an_import_turned_round_is_found(tmp_path: Path, file: str, line: str, pair: tuple[str, str]) -> None:
    with (copied(tmp_path) / file).open("a", encoding="utf-8") as guilty:
        guilty.write(f"\n{line}\n")
    assert wrong_way(graph(tmp_path / "gimli_core")) - NOT_YET == {pair} - NOT_YET != set()


def test_a_circle_is_found(tmp_path: Path) -> None:
    with (copied(tmp_path) / "memory/schedules/actions.py").open("a", encoding="utf-8") as guilty:
        guilty.write("\nfrom gimli_core.memory.schedules.costs import Costs\n")
    assert {"memory.schedules.actions", "memory.schedules.costs"} <= circles(graph(tmp_path / "gimli_core"))


def copied(tmp_path: Path) -> Path:
    where = tmp_path / "gimli_core"
    shutil.copytree(ROOT, where, ignore=shutil.ignore_patterns("__pycache__"))
    return where


def outside(root: Path) -> dict[str, set[str]]:
    """For each file of the core, the top names of other packages that it imports."""
    known = files(root)
    return {
        name: {module.split(".")[0] for module in imports(path, known) if module not in known}
        for name, path in known.items()
        if room_of(name) in CORE
    }


def test_the_core_stands_on_torch_numpy_and_the_standard_library() -> None:
    allowed = {"torch", "numpy", *sys.stdlib_module_names}
    assert {name: found - allowed for name, found in outside(ROOT).items() if found - allowed} == {}


def test_schedules_touch_no_tensor() -> None:
    schedules = {name: found for name, found in outside(ROOT).items() if name.startswith("memory.schedules.")}
    assert len(schedules) > 5
    assert {name for name, found in schedules.items() if "torch" in found} == set()


def test_another_package_in_the_core_is_found(tmp_path: Path) -> None:
    with (copied(tmp_path) / "memory/schedules/budget.py").open("a", encoding="utf-8") as guilty:
        guilty.write("\nimport scipy.linalg, torch\n")
    assert {"scipy", "torch"} <= outside(tmp_path / "gimli_core")["memory.schedules.budget"]


# Autograd is asked in derivatives/. Besides: once more, traced, for the compiler; within one step, by design, an
# optimizer of which only the step is written, and SAM, which is a loss.
EXCEPTIONS = {"compiled.pure_derivatives", "optimizers.derived", "optimizers.wrappers.sam"}
ASKED = {"grad", "grad_and_value", "vjp", "jvp", "jacrev", "jacfwd", "hessian", "backward", "functional", "forward_ad"}
# What `torch.autograd.grad` calls in its turn, and `torch.func`.
ASKED |= {"Variable", "_engine_run_backward", "_autograd_grad"}
ASKING = ("torch.func", "torch.autograd", "torch._functorch")


def autograd_calls(path: Path) -> set[str]:
    """Names of autograd's differentiating functions that a file uses."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Attribute):
            found |= {node.attr} & ASKED if node.value.attr in ("autograd", "func") else set()
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(ASKING):
            found |= {alias.name for alias in node.names} & ASKED
    return found


def test_autograd_is_asked_in_one_room() -> None:
    asking = {name for name, path in files(ROOT).items() if room_of(name) in CORE and autograd_calls(path)}
    assert {name for name in asking if room_of(name) != "derivatives"} == EXCEPTIONS
    assert {"derivatives.first_order", "derivatives.evaluate"} <= asking


def test_no_rule_uses_autograd() -> None:
    for name, path in files(ROOT).items():
        if name.startswith("optimizers.") and name not in EXCEPTIONS:
            assert "torch.autograd" not in path.read_text(encoding="utf-8"), name


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        ("import torch\nfrom torch.func import vjp\ng = torch.autograd.grad\n", {"grad", "vjp"}),
        ("from torch.autograd import forward_ad\n", {"forward_ad"}),
        ("import torch\nj = torch.func.jvp\n", {"jvp"}),
    ],
)
def test_a_call_of_autograd_is_found(tmp_path: Path, text: str, calls: set[str]) -> None:
    guilty = tmp_path / "guilty.py"
    guilty.write_text(text, encoding="utf-8")
    assert autograd_calls(guilty) == calls


def test_no_test_imports_another() -> None:
    """What tests share stands in tests/problems.py, tests/compare.py, or a file of their room that holds no test."""
    for path in Path(__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "tests":
                parts = {*(node.module or "").split("."), *(alias.name for alias in node.names)}
                assert not {part for part in parts if part.startswith("test_") or part == "conftest"}, path


def test_public_names_are_no_files_by_accident() -> None:
    """A function and the file that holds it may share a name; what the package shows is then the function."""
    modules = {name for name in gimli_core.__all__ if isinstance(getattr(gimli_core, name), ModuleType)}
    assert modules == {
        "attribution",
        "errors",
        "implicit",
        "learned",
        "lessons",
        "memory",
        "optimizers",
        "verification",
    }


def test_importing_the_package_brings_little_besides_torch() -> None:
    """What stands on the engine comes when it is asked for; no compiler, no sympy, and nothing outside of the core."""
    asked = "import sys, torch, numpy.random; before = set(sys.modules); import gimli_core; "
    asked += "print(*(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, cwd=ROOT.parent, check=True)
    new = set(done.stdout.split())
    group = {
        name for name in new if name.startswith(("torch.distributed.nn", "_remote_module"))
    }  # see processes/mesh.py
    assert {name.split(".")[0] for name in new - group} <= {"gimli_core", *sys.stdlib_module_names}
    rooms = {name.split(".")[1] for name in new if name.startswith("gimli_core.")}
    late = {"verification", "outer_loop", "attribution", "implicit", "learned", "few_shot", "commands", "demo"}
    assert rooms & late == set()
    assert {"runs", "optimizers", "memory"} <= rooms
    assert {f"gimli_core.step_through.{part}" for part in ("lessons", "page.trace", "terminal")} & new == set()


def test_what_comes_late_is_what_it_says() -> None:
    assert set(gimli_core._LATE) < set(gimli_core.__all__) <= set(dir(gimli_core))
    for name in gimli_core._LATE:
        assert getattr(gimli_core, name).__name__.split(".")[-1] == name
    with pytest.raises(AttributeError, match="no attribute 'absent'"):
        gimli_core.absent  # noqa: B018


# What a function of tensors has to say, by words and no more: whether it is true, no test can tell. The shapes in
# `Tensors` and `State` are said once, in notation.py; what is a Tensor by itself says its own.
SHAPE = re.compile(r"\[[^\]\"']*\]|\b(shape|scalar|number|element)s?\b")


def silent(source: str) -> list[str]:
    """Public names of a file's top level without a docstring, and functions of tensors whose docstring has no shape."""
    wrong = []
    for node in ast.parse(source).body:
        if not isinstance(node, (ast.FunctionDef, ast.ClassDef)) or node.name.startswith("_"):
            continue
        says = ast.get_docstring(node)
        if not says:
            wrong.append(f"{node.name}: no docstring")
        elif isinstance(node, ast.FunctionDef) and _of_tensors(node) and not SHAPE.search(says):
            wrong.append(f"{node.name}: no shape")
    return wrong


def _of_tensors(function: ast.FunctionDef) -> bool:
    """Whether an annotation names Tensor."""
    arguments = ast.walk(function.args)
    annotations = [a.annotation for a in arguments if isinstance(a, ast.arg) and a.annotation]
    annotations += [function.returns] if function.returns else []
    return any(isinstance(n, ast.Name) and n.id == "Tensor" for a in annotations for n in ast.walk(a))


def test_every_public_name_of_the_engine_says_what_it_is() -> None:
    said = {name: silent(path.read_text(encoding="utf-8")) for name, path in files(ROOT).items()}
    assert {name: wrong for name, wrong in said.items() if wrong and room_of(name) in CORE} == {}


def test_what_a_docstring_lacks_is_found() -> None:
    source = '''
class Bare: ...
class Said:
    """Something."""
def norm(x: Tensor) -> Tensor:
    """The norm."""
def dot(x: Tensor) -> Tensor:
    """[N] to one value."""
def mean(x: dict[str, Tensor]): ...
def tree(x: Tensors) -> Tensors:
    """By name."""
def _private(x: Tensor): ...
'''
    assert silent(source) == ["Bare: no docstring", "norm: no shape", "mean: no docstring"]


def test_every_public_function_and_class_has_an_example() -> None:
    """Doctests run with the suite; here only that there is one."""
    public = {name: getattr(gimli_core, name) for name in gimli_core.__all__}
    assert [name for name, made in public.items() if callable(made) and ">>> " not in (made.__doc__ or "")] == []
