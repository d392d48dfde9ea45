"""What the C++ compiler is asked for ahead is what is needed later: nothing is made twice, nobody waits in vain."""

from __future__ import annotations

import inspect
import logging
import os
import threading

import numpy as np
import pytest
import torch

import gimli_core as gimli
from gimli_core.compiled.compiler import lowering
from tests.compare import said


@pytest.fixture
def anew(monkeypatch):
    """As in a process that has compiled nothing yet."""
    from torch._inductor import codecache, cpu_vec_isa

    monkeypatch.setattr(codecache.CppWrapperCodeCache, "cache", {})
    monkeypatch.setattr(lowering, "_thread", None)
    monkeypatch.setattr(lowering, "_instructions_known", threading.Event())
    cpu_vec_isa.valid_vec_isa_list.cache_clear()


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
    lowering._thread.join()
    eager = gimli.meta_gradient(quadratic(1.0625), theta, [batch] * 2, batch, compile=False)
    assert torch.allclose(compiled.B_0["w"], eager.B_0["w"], rtol=1e-12, atol=0)
    needed, made = ({what for main, what in asked if main is of_main} for of_main in (True, False))
    assert len(made) == 2
    assert needed
    assert needed <= made


@pytest.mark.parametrize("fails", ["pick_vec_isa", "import"])
def test_where_it_fails_nobody_waits(fails, anew, monkeypatch):
    """Who needs what is missing meets the same, and says so."""
    from torch._inductor import cpu_vec_isa

    if fails == "import":
        monkeypatch.delattr(cpu_vec_isa, "pick_vec_isa")
    else:
        monkeypatch.setattr(cpu_vec_isa, "pick_vec_isa", lambda: 1 / 0)
    lowering.make_ahead({"cpp_wrapper": True})
    lowering.wait_for_instructions()
    lowering._thread.join()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_a_fork_does_not_wait_for_a_thread_that_it_has_not(anew, monkeypatch):
    from torch._inductor import cpu_vec_isa

    may_end = threading.Event()
    monkeypatch.setattr(cpu_vec_isa, "pick_vec_isa", may_end.wait)
    lowering.make_ahead({"cpp_wrapper": True})
    child = os.fork()
    if not child:
        lowering.wait_for_instructions()
        os._exit(0)
    assert os.waitpid(child, 0) == (child, 0)
    may_end.set()
    lowering.wait_for_instructions()
    assert lowering._instructions_known.is_set()
    lowering._thread.join()


@pytest.mark.parametrize("options", [{}, {"cpp_wrapper": False}])
def test_what_is_not_compiled_to_cpp_asks_for_nothing(anew, options):
    lowering.make_ahead(options)
    assert lowering._thread is None
    lowering.wait_for_instructions()


def test_torch_s_warning_of_a_slower_call_is_not_handed_on(caplog):
    from torch._inductor import ir

    told = "aten.full.default is missing a c-shim implementation, using proxy executor as fallback"
    assert "is missing a c-shim implementation" in inspect.getsource(ir)
    logger = logging.getLogger("torch._inductor.ir")
    propagate, logger.propagate = logger.propagate, True
    try:
        with lowering.without_proxies():
            logger.warning(told)
            logger.warning("another")
        logger.warning(told)
    finally:
        logger.propagate = propagate
    assert [record.getMessage() for record in caplog.records] == ["another", told]


def test_what_torch_logs_of_a_refusal_is_one_line(caplog, capfd):
    """Of a guard that it cannot make torch logs forty lines, and raises what the notice says."""
    array = np.array([1.0, 2.0])

    def loss(theta, phi, batch):
        return (theta["w"] * torch.as_tensor(array) * batch).square().sum()

    problem, ones = gimli.Problem(loss, loss, gimli.optimizers.SGD(lr=0.1)), torch.ones(2)
    gimli.meta_gradient(problem, {"w": ones}, [ones], ones, compile="steps")
    assert said(caplog).count("not compiled: ") == 1
    assert "creating guard" not in said(caplog) + "".join(capfd.readouterr())
