"""How the house is built, read off the source: one recursion over trees of tensors, short lists of parameters, one
place that makes a result."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import typing
from pathlib import Path
from types import ModuleType

import gimli_core
from gimli_core.errors import kind_of

ROOT = Path(gimli_core.__file__).parent
SOURCES = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in sorted(ROOT.rglob("*.py"))}

# Functions that name themselves, and what they go through, which is no tree of tensors. trees.py has the one that is.
NO_TREE = {
    "arguments/batches.py": {"code_of": "functions within functions"},
    "attributes.py": {"visit": "objects, by their attributes"},
    "compiled/compiler/copies.py": dict.fromkeys(
        ("read", "refilled"), "what the compiler reads, an instruction at a time"
    ),
    "compiled/compiler/trees_in_source.py": {"written": "what pytree says of a tree's structure"},
    "derivatives/evaluate.py": {"evaluate": "the parts of one batch"},
    "environment.py": {"visit": "functions and objects, to the modules that they hold"},
    "inner_loop/structure.py": {"_exchanged": "objects, by what they hold", "uncompiled": "a module within a module"},
    "memory/measure.py": {"costs_of": "the same costs without a disk"},
    "optimizers/wrappers/interface.py": {"rules_within": "rules within rules"},
    "runs/digests.py": {"_read": "code within code", "add": "an object, by its attributes"},
    "runs/make_run.py": {"_prepared": "the same call once more"},
    "step_through/terminal/expressions.py": {"_check": "an expression's syntax", "_value": "an expression's syntax"},
    "verification/oracles/plain_rules.py": {"read": "the names that lead to one hyperparameter"},
}


def recursive(source: str) -> set[str]:
    """The functions of a file that name themselves, called or handed on; a method by `self`."""
    tree = ast.parse(source)
    methods = {id(f) for c in ast.walk(tree) if isinstance(c, ast.ClassDef) for f in c.body}
    functions = [f for f in ast.walk(tree) if isinstance(f, (ast.FunctionDef, ast.AsyncFunctionDef))]
    return {f.name for f in functions if (_by_self(f) if id(f) in methods else _by_name(f))}


def _by_self(method: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    return any(
        isinstance(n, ast.Attribute)
        and n.attr == method.name
        and isinstance(n.value, ast.Name)
        and n.value.id == "self"
        for n in ast.walk(method)
    )


def _by_name(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    inside = [n for n in ast.walk(function) if n is not function]
    another = {a.arg for a in inside if isinstance(a, ast.arg)} | {
        f.name for f in inside if isinstance(f, ast.FunctionDef)
    }
    another |= {n.id for n in inside if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    named = any(isinstance(n, ast.Name) and n.id == function.name for n in inside)
    return named and function.name not in another


def test_trees_are_gone_through_in_one_place() -> None:
    """One function of trees.py names itself; whatever else does goes through something that is no tree of tensors."""
    by_file = {file: names for file, source in SOURCES.items() if (names := recursive(source))}
    assert by_file.pop("trees.py") == {"folded"}
    assert by_file == {file: set(names) for file, names in NO_TREE.items()}


def test_another_recursion_is_found() -> None:
    planted = """
def halved(tree):
    return {k: halved(v) for k, v in tree.items()} if isinstance(tree, dict) else tree / 2
def listed(tree):
    return [*map(listed, tree)]
def total(tree):
    total = sum(tree)
    return total
class Sum:
    def of(self, tree):
        return sum(self.of(v) for v in tree)
    def total(self):
        return total(self)
"""
    assert recursive(planted) == {"halved", "listed", "of"}


def long_lists(source: str, most: int = 8) -> set[str]:
    """The functions of a file with more parameters than that, `self` aside; a constructor by its class's name."""
    tree = ast.parse(source)
    classes = {id(f): c.name for c in ast.walk(tree) if isinstance(c, ast.ClassDef) for f in c.body}
    functions = [f for f in ast.walk(tree) if isinstance(f, (ast.FunctionDef, ast.AsyncFunctionDef))]
    names = [
        classes[id(f)] if f.name == "__init__" else f.name
        for f in functions
        if len([*f.args.posonlyargs, *f.args.args, *f.args.kwonlyargs]) - (id(f) in classes) > most
    ]
    return set(names)


def public_names() -> dict[str, object]:
    """Every function and class that a user reaches by a public name."""
    modules = [
        gimli_core,
        *(m for name in gimli_core.__all__ if isinstance(m := getattr(gimli_core, name), ModuleType)),
    ]
    modules += [importlib.import_module(f"gimli_core.{name}") for name in ("outer_loop", "inner_loop", "few_shot")]
    named = {f"{m.__name__}.{name}": getattr(m, name) for m in modules for name in getattr(m, "__all__", ())}
    return {name: made for name, made in named.items() if callable(made)}


def test_only_what_is_public_has_more_than_eight_parameters() -> None:
    public = {name.split(".")[-1] for name in public_names()}
    public |= {base.__name__ for made in public_names().values() if isinstance(made, type) for base in made.__mro__}
    more = {file: names for file, source in SOURCES.items() if (names := long_lists(source) - public)}
    assert more == {}


def test_a_long_list_of_parameters_is_found() -> None:
    planted = "def f(a, b, c, d, e, f, g, h): ...\ndef step(a, b, c, d, e, f, g, *, h, i): ...\n"
    planted += "class Rule:\n    def __init__(self, a, b, c, d, e, f, g, h, i): ...\n"
    planted += "    def of(self, a, b, c, d, e, f, g, h): ..."
    assert long_lists(planted) == {"step", "Rule"}


ALL_PURPOSE = {"found", "held", "own", "whole", "given", "came", "known"}


def all_purpose(source: str) -> set[str]:
    """The nouns that say nothing, among the names that a file gives: of variables, arguments, functions and fields."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Name, ast.Attribute)) and isinstance(node.ctx, ast.Store):
            names.add(node.id if isinstance(node, ast.Name) else node.attr)
        elif isinstance(node, ast.arg):
            names.add(node.arg)
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, ast.alias):
            names.add(node.asname or node.name)
    return {name for name in names if name.strip("_") in ALL_PURPOSE}


def test_names_are_nouns_of_the_field() -> None:
    assert not {f"{file}: {', '.join(sorted(n))}" for file, text in SOURCES.items() if (n := all_purpose(text))}


def test_an_all_purpose_name_is_found() -> None:
    source = "def whole(x, given):\n    self._held, y = x\n    for found in y: pass\nfrom a import own\nx.known"
    assert all_purpose(source) == {"whole", "given", "_held", "found", "own"}


def names_of(source: str, name: str) -> int:
    """How often a file calls something by this name."""
    calls = [n.func for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Call)]
    return sum(name in (getattr(f, "id", None), getattr(f, "attr", None)) for f in calls)


def test_a_result_is_made_in_one_place() -> None:
    assert {file for file, source in SOURCES.items() if names_of(source, "MetaGradient")} == {"runs/outcome.py"}


def test_a_maker_of_results_is_found() -> None:
    assert (
        names_of("a = MetaGradient(1)\nb = results.MetaGradient(*x)\ndef f(x: MetaGradient): ...", "MetaGradient") == 2
    )


A_KIND = re.compile(r"\ba \{[^}]*__name__", re.IGNORECASE)


def test_kinds_are_told_with_their_article() -> None:
    """By `errors.kind_of`, which knows that it is "an int"."""
    assert {file for file, source in SOURCES.items() if A_KIND.search(source)} == set()
    assert A_KIND.search('f"a {type(parts).__name__}, which"')
    names = {"OrderedDict": "an", "UserDict": "a", "uint8": "a", "UnboundLocalError": "an", "_io": "an", "Tensor": "a"}
    assert {name: kind_of(type(name, (), {})()) for name in names} == {n: f"{a} {n}" for n, a in names.items()}


def test_every_file_can_be_read_in_one_go() -> None:
    """At most 250 lines, and a checked call is made in fewer than 40: a list of checks."""
    assert {file: lines for file, source in SOURCES.items() if (lines := source.count("\n")) > 250} == {}
    functions = ast.walk(ast.parse(SOURCES["arguments/inputs.py"]))
    (prepare,) = [f for f in functions if isinstance(f, ast.FunctionDef) and f.name == "prepare"]
    assert (prepare.end_lineno or 0) - prepare.lineno + 1 < 40


def test_annotations_can_be_read() -> None:
    """`typing.get_type_hints` of every public function, class and method; what imports nothing more costs nothing."""
    for made in public_names().values():
        typing.get_type_hints(made)
        if isinstance(made, type):
            methods = [m for name, m in vars(made).items() if inspect.isfunction(m) and not name.startswith("__")]
            for method in methods:
                typing.get_type_hints(method)
