"""What the C++ compiler is asked for ahead is what is needed later: nothing is made twice, nobody waits in vain."""

from __future__ import annotations

import threading

import pytest
import torch

import gimli_core as gimli
from gimli_core.compiled.compiler import ahead


@pytest.fixture
def anew(monkeypatch):
    """As in a process that has compiled nothing yet."""
    from torch._inductor import cpu_vec_isa

    monkeypatch.setattr(ahead, "_begun", False)
    monkeypatch.setattr(ahead, "_instructions_known", threading.Event())
    cpu_vec_isa.valid_vec_isa_list.cache_clear()


def thread():
    return next((t for t in threading.enumerate() if t.name.startswith("gimli_core: compiling ahead")), None)


def quadratic(factor):
    def loss(theta, phi, batch):
        return factor * ((theta["w"] - batch) ** 2).sum()

    return gimli.Problem(loss, loss, gimli.optimizers.SGD(lr=0.1))


def test_headers_are_asked_for_by_the_same_commands(anew, monkeypatch):
    """A header compiled with other options than the kernels would be of no use, and the kernels would wait for two."""
    from torch._inductor import codecache

    asked: list[tuple[bool, object]] = []
    precompile = codecache._precompile_header

    def noted(header, command, **options):
        path = precompile(header, command, **options)
        asked.append((threading.current_thread() is threading.main_thread(), (header, command, path)))
        return path

    monkeypatch.setattr(codecache, "_precompile_header", noted)
    theta, batch = {"w": torch.arange(3.0, dtype=torch.float64)}, torch.ones(3, dtype=torch.float64)
    compiled = gimli.meta_gradient(quadratic(1.0625), theta, [batch] * 2, batch, compile="steps")
    if running := thread():
        running.join()
    eager = gimli.meta_gradient(quadratic(1.0625), theta, [batch] * 2, batch, compile=False)
    assert torch.allclose(compiled.B_0["w"], eager.B_0["w"], rtol=1e-12, atol=0)
    needed, made = ({what for main, what in asked if main is of_main} for of_main in (True, False))
    assert len(made) == 2
    assert needed
    assert needed <= made


def test_without_a_compiler_nobody_waits_and_the_one_who_needs_it_says_so(anew, monkeypatch):
    from torch._inductor import cpu_vec_isa

    def absent():
        raise OSError("no C++ compiler")

    monkeypatch.setattr(cpu_vec_isa, "pick_vec_isa", absent)
    ahead.make_ahead({"cpp_wrapper": True})
    ahead.wait_for_instructions()
    if running := thread():
        running.join()


@pytest.mark.parametrize("options", [{}, {"cpp_wrapper": False}])
def test_what_is_not_compiled_to_cpp_asks_for_nothing(anew, options):
    ahead.make_ahead(options)
    assert thread() is None
    ahead.wait_for_instructions()
