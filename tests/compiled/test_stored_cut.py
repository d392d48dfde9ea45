"""A cut graph is found on the disk by all that it depends on: the graph, where it is cut, and the code that cuts."""

from __future__ import annotations

import logging
import os
import random
from pathlib import Path

import pytest
import torch
from torch._functorch._aot_autograd.autograd_cache import AOTAutogradCache

from gimli_core.compiled.compiler import split_function, stored_cut
from gimli_core.compiled.compiler.split_function import Halves
from gimli_core.environment import Environment

SETTINGS = {"float64": torch.float64, "float32": torch.float32}


def a_new_number():
    """For a graph that no cache has."""
    return 1.0 + random.SystemRandom().random()


@pytest.fixture
def cuts(monkeypatch):
    """How often a graph was cut so far, as the length of a list."""
    cut_in_two, noted = split_function.cut_in_two, []

    def counted(graph, late, options):
        noted.append(tuple(late))
        return cut_in_two(graph, late, options)

    monkeypatch.setattr(split_function, "cut_in_two", counted)
    return noted


def both(factor):
    def function(x, B, C):
        G = torch.sin(x @ x) * factor
        return G, (G.cos() @ B, C * G.exp())

    return function


def arguments(dtype=torch.float64, n=5):
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(n, n, dtype=dtype, generator=generator) for _ in range(3))


def halves(function, late=2, of=None):
    """Compiled as in a process that has traced nothing yet."""
    torch._dynamo.reset()
    of = arguments() if of is None else of
    return Halves(function, Environment([], of[0].device), of, late)


def results(made, late=2, of=None):
    of = arguments() if of is None else of
    joined = made.look(of)
    first, kept = joined.first(of[: len(of) - late])
    return [*first, *joined.second(kept, of[len(of) - late :])]


@pytest.mark.parametrize("dtype", SETTINGS.values(), ids=SETTINGS)
def test_the_next_process_finds_it_and_has_the_same_bits(dtype, cuts):
    function, of = both(a_new_number()), arguments(dtype)
    found = results(halves(function, of=of), of=of)
    assert len(cuts) == 1
    again = results(halves(function, of=of), of=of)
    assert len(cuts) == 1
    assert all(torch.equal(x, y) for x, y in zip(found, again, strict=True))
    G, (curved, scaled) = function(*of)
    rtol = 1e-12 if dtype is torch.float64 else 1e-5
    assert all(torch.allclose(x, y, rtol=rtol, atol=rtol) for x, y in zip(again, (G, curved, scaled), strict=True))


def test_each_place_to_cut_has_its_own(cuts):
    """The same graph of the same arguments, of which one more is known early."""
    factor = a_new_number()

    def one_late(x, B, C):
        G = torch.sin(x @ x) * factor
        return (G, G.cos() @ B), C * G.exp()

    def two_late(x, B, C):
        G = torch.sin(x @ x) * factor
        return G, (G.cos() @ B, C * G.exp())

    two = results(halves(two_late), 2)
    one = results(halves(one_late, 1), 1)
    assert cuts == [(False, True, True), (False, False, True)]
    assert all(torch.equal(x, y) for x, y in zip(one, two, strict=True))
    assert all(torch.equal(x, y) for x, y in zip(results(halves(one_late, 1), 1), one, strict=True))
    assert len(cuts) == 2


@pytest.mark.parametrize("differs", ["number", "shape", "code"])
def test_what_it_depends_on_is_cut_anew(differs, cuts, monkeypatch):
    factor = a_new_number()
    halves(both(factor))
    of = arguments()
    if differs == "number":
        factor += 2**-52
    elif differs == "shape":
        of = arguments(n=6)
    else:
        monkeypatch.setattr(stored_cut, "get_hash_for_files", lambda files: b"another version of them")
    found = results(halves(both(factor), of=of), of=of)
    assert len(cuts) == 2
    G, (curved, scaled) = both(factor)(*of)
    assert all(torch.allclose(x, y, rtol=1e-12, atol=1e-12) for x, y in zip(found, (G, curved, scaled), strict=True))


def stored_files(monkeypatch, function):
    """Compile, and the files in which it was stored."""
    keys = []
    write = AOTAutogradCache._write_to_local_cache
    monkeypatch.setattr(AOTAutogradCache, "_write_to_local_cache", lambda *a: (keys.append(a[0]), write(*a)))
    made = results(halves(function))
    assert len(keys) == 1
    return made, list(Path(AOTAutogradCache._get_tmp_dir_for_key(keys[0])).iterdir())


# torch's own word on what it has read in part
@pytest.mark.filterwarnings("ignore:Exception ignored in. <function CompiledFxGraph.__del__")
@pytest.mark.parametrize("damage", ["empty", "cut", "other"])
def test_a_damaged_file_is_as_none(damage, cuts, monkeypatch):
    function = both(a_new_number())
    found, (path,) = stored_files(monkeypatch, function)
    whole = path.read_bytes()
    path.write_bytes({"empty": b"", "cut": whole[: len(whole) // 2], "other": b"not what it was"}[damage])
    again = results(halves(function))
    assert len(cuts) == 2
    assert all(torch.equal(x, y) for x, y in zip(found, again, strict=True))


def test_where_the_code_is_gone_it_is_written_again(cuts, monkeypatch):
    """What it calls lies in other files, which somebody may have removed."""
    from torch._inductor.codecache import PyCodeCache

    function = both(a_new_number())
    halves(function)
    loaded = [module for module in PyCodeCache.modules if os.path.exists(module.__file__)]
    for module in loaded[-2:]:
        os.remove(module.__file__)
    monkeypatch.setattr(PyCodeCache, "modules_no_attr", {})
    found = results(halves(function))
    G, (curved, scaled) = function(*arguments())
    assert len(cuts) == 1
    assert all(torch.allclose(x, y, rtol=1e-12, atol=1e-12) for x, y in zip(found, (G, curved, scaled), strict=True))


def test_a_half_that_computes_nothing_is_not_kept(cuts, caplog):
    """And nobody is told of it, since there is nothing to do about it."""
    factor = a_new_number()

    def all_early(x, B, C):
        return torch.sin(x @ x) * factor, (x.cos() * factor, C)

    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            x, B, C = arguments()
            found = results(halves(all_early))
            G, (y, C) = all_early(x, B, C)
            assert all(torch.allclose(a, b, rtol=1e-12, atol=0) for a, b in zip(found, (G, y, C), strict=True))
    assert len(cuts) == 2
    assert not [record for record in caplog.records if record.name.startswith("torch")]
