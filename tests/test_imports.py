"""The order of the house, read off the source: data flows one way, and autograd is asked in one place."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

import gimli_core

ROOT = Path(gimli_core.__file__).parent
FILES = {
    ".".join(("gimli_core", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in sorted(ROOT.rglob("*.py"))
}
OUTER = (
    "verification",
    "demo",
    "command_line",
    "step_through",
    "watch",
    "outer_loop",
)  # stand on the engine; it never on them
CORE = {name: path for name, path in FILES.items() if not name.removeprefix("gimli_core.").startswith(OUTER)}

# Each may import from those before it, never from those after it.
FLOW = [
    "problem",
    "forward_unroll",
    "record",
    "backward_sweep",
    "execution",
    "runs",
    "meta_gradient",
    "autograd_bridge",
]


def imports(path: Path) -> set[str]:
    """Every module that a file imports; `from package import name` counts as package and as package.name."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found & set(FILES) | {name for name in found if not name.startswith("gimli_core")}


def reached(name: str) -> set[str]:
    """Everything in gimli_core that importing a file brings in, packages' own files aside."""
    seen: set[str] = set()
    todo = [name]
    while todo:
        for following in imports(FILES[todo.pop()]) & set(FILES) - seen:
            seen.add(following)
            if FILES[following].name != "__init__.py":
                todo.append(following)
    return seen


def test_the_files_are_found() -> None:
    assert {f"gimli_core.{name}" for name in FLOW} <= set(CORE)
    assert any(name.startswith("gimli_core.verification.") for name in FILES)
    assert not any("verification" in name for name in CORE)


def test_unroll_and_sweep_do_not_know_each_other() -> None:
    assert "gimli_core.backward_sweep" not in reached("gimli_core.forward_unroll")
    assert "gimli_core.forward_unroll" not in reached("gimli_core.backward_sweep")


def test_data_flows_one_way() -> None:
    for position, name in enumerate(FLOW):
        later = {f"gimli_core.{other}" for other in FLOW[position + 1 :]}
        # record is the parcel between the two halves; the unroll makes it.
        later -= {"gimli_core.record"} if name == "forward_unroll" else set()
        assert not reached(f"gimli_core.{name}") & later, name
    assert {"gimli_core.forward_unroll", "gimli_core.backward_sweep"} <= imports(FILES["gimli_core.runs.scheduled_run"])


@pytest.mark.parametrize("name", CORE)
def test_the_core_stands_on_torch_numpy_and_the_standard_library(name: str) -> None:
    allowed = {"torch", "numpy", "gimli_core", *sys.stdlib_module_names}
    assert {module.split(".")[0] for module in imports(CORE[name])} <= allowed


@pytest.mark.parametrize("name", CORE)
def test_the_engine_does_not_know_what_stands_on_it(name: str) -> None:
    outer = {f"gimli_core.{part}" for part in OUTER}
    known = {module for module in imports(CORE[name]) if any(module.startswith(part) for part in outer)}
    # The package's front door may show verify; nothing behind it may.
    assert not known or name == "gimli_core", known


def test_memory_schedules_touch_no_tensor() -> None:
    for name, path in CORE.items():
        if name.startswith("gimli_core.memory."):
            assert not any(module.split(".")[0] == "torch" for module in imports(path)), name


TRANSFORMS = {"grad", "grad_and_value", "vjp", "jvp", "jacrev", "jacfwd", "hessian"}


def autograd_calls(path: Path) -> set[str]:
    """Names of autograd's differentiating functions that a file uses."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Attribute) and node.value.attr == "autograd":
            found |= {node.attr} & {"grad", "backward", "functional", "forward_ad"}
        if (
            isinstance(node, ast.ImportFrom)
            and node.module
            and node.module.startswith(("torch.func", "torch.autograd"))
        ):
            found |= {alias.name for alias in node.names} & {
                "grad",
                "vjp",
                "jvp",
                "jacrev",
                "jacfwd",
                "hessian",
                "grad_and_value",
                "forward_ad",
            }
    return found


def test_autograd_is_asked_in_three_places() -> None:
    """First derivatives in derivatives.py; second ones in second_order/, which stands on it and knows no run; and both
    once more, traced, in compiled/functions.py."""
    asking = {name for name, path in CORE.items() if autograd_calls(path)}
    second = {"gimli_core.derivatives.second_order.reverse_over_reverse", "gimli_core.derivatives.second_order.dual"}
    assert asking == {"gimli_core.derivatives.first_order", "gimli_core.compiled.pure_steps"} | second | LOCAL
    package = {name for name in CORE if name.startswith("gimli_core.derivatives.second_order.")}
    below = {
        "gimli_core.derivatives.first_order",
        "gimli_core.errors",
        "gimli_core.problem",
        "gimli_core.optimizers.interface",
    }
    for name in package:
        known = {module for module in imports(CORE[name]) if module in CORE}
        assert {
            module for module in known if module not in package | {"gimli_core.derivatives.second_order"}
        } <= below | {module.rpartition(".")[0] for module in below}, name


# Autograd within one step, by design: an optimizer of which only the step is written, and SAM, which is a loss.
LOCAL = {"gimli_core.optimizers.derived", "gimli_core.optimizers.wrappers.sam"}


def test_no_rule_uses_autograd() -> None:
    for name, path in CORE.items():
        if name.startswith("gimli_core.optimizers.") and name not in LOCAL:
            assert not autograd_calls(path), name
            assert "torch.autograd" not in path.read_text(encoding="utf-8")


def test_the_check_can_fail(tmp_path: Path) -> None:
    guilty = tmp_path / "guilty.py"
    guilty.write_text("import torch\nfrom torch.func import vjp\ng = torch.autograd.grad\n", encoding="utf-8")
    assert autograd_calls(guilty) == {"grad", "vjp"}
    guilty.write_text("from torch.autograd import forward_ad\n", encoding="utf-8")
    assert autograd_calls(guilty) == {"forward_ad"}
