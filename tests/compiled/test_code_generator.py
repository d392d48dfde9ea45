"""What stands in the place of functions of torch's compiler writes the same code, and nothing of it is left behind."""

from __future__ import annotations

import contextlib
import copy
import os
import threading
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import gimli_core as gimli
from gimli_core.compiled.compiler.in_this_thread import replaced
from gimli_core.compiled.compiler.indexes import is_polynomial, polynomials_as_they_are
from gimli_core.compiled.compiler.lowering import lowered
from gimli_core.compiled.compiler.side_by_side import side_by_side

# torch's own, where its compiler is imported for the first time.
pytestmark = pytest.mark.filterwarnings("ignore:.*script_method. is deprecated:DeprecationWarning")

NUMBERS = st.integers(0, 64)
WAIT = 20.0  # seconds after which a test fails instead of hanging


class Owner:
    @staticmethod
    def name(x):
        return x


def test_a_function_is_another_one_in_one_thread_and_one_block_alone():
    torchs = Owner.name
    told: list[int] = []

    def elsewhere():
        thread = threading.Thread(target=lambda: told.append(Owner.name(1)))
        thread.start()
        thread.join()

    def block():
        with replaced(Owner, "name", lambda torchs: lambda x: torchs(x) + 10):
            assert Owner.name(1) == 11
            with replaced(Owner, "name", lambda torchs: lambda x: torchs(x) + 20):
                assert Owner.name(1) == 21
                elsewhere()
            assert Owner.name(1) == 11
            raise KeyError

    with pytest.raises(KeyError):
        block()
    elsewhere()
    assert told == [1, 1]
    assert Owner.name(1) == torchs(1) == 1
    assert Owner.name.__name__ == "name"


@st.composite
def indexes(draw):
    """An index of three loops as torch writes them: products with numbers, floors and remainders of whole terms."""
    import sympy
    from torch.utils._sympy.functions import FloorDiv, ModularIndexing

    loops = sympy.symbols("x0 x1 x2", integer=True, nonnegative=True)
    term = sum((draw(NUMBERS) * loop for loop in loops), sympy.Integer(draw(NUMBERS)))
    number, times = st.sampled_from([2, 8, 16, 28, 32]), st.integers(1, 64)
    for kind in draw(st.lists(st.sampled_from(["floor", "remainder", "product"]), max_size=3)):
        if kind == "floor":
            term += draw(times) * FloorDiv(loops[0], draw(number))
        elif kind == "remainder":
            term += draw(times) * ModularIndexing(loops[0], draw(number), draw(number))
        else:
            term += draw(times) * loops[0] * (loops[2] + 1) ** 2
    return term, draw(st.sampled_from(loops[:2]))


@given(indexes(), st.sampled_from([8, 16]))
def test_neighbours_lie_as_far_apart_as_torch_finds_them(drawn, vector):
    from torch._inductor import sizevars

    index, loop = drawn
    apart = sizevars.stride_at_vec_range.__wrapped__
    expected = apart(index, loop, vector)
    with polynomials_as_they_are():
        found = apart(index, loop, vector)
    assert (found - expected).expand() == 0


def test_a_polynomial_is_told_from_what_can_be_simplified():
    import sympy
    from torch.utils._sympy.functions import FloorDiv, ModularIndexing

    x, y = sympy.symbols("x y", integer=True)
    assert all(map(is_polynomial, [sympy.Integer(3), x, 4 * x * y + y**2 - 1, (x + 1) * (y + 2)]))
    others = [FloorDiv(x, 4), ModularIndexing(x, 2, 4) + y, x / y, x / 2, sympy.Max(x, y), sympy.Eq(x, y), 2**x]
    assert not any(map(is_polynomial, others))


def traced(x):
    """The gradient of two convolutions with a pool between them, as a graph."""
    from torch.fx.experimental.proxy_tensor import make_fx

    net = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 6, 3), nn.Tanh())
    theta = tuple(p.detach() for p in net.parameters())

    def gradient(x, *theta):
        named = dict(zip(dict(net.named_parameters()), theta, strict=True))

        def loss(named):
            return torch.func.functional_call(net, named, (x,)).square().mean((0, 2, 3)).sum()

        return tuple(torch.func.grad(loss)(named).values())

    arguments = (x, *theta)
    graph = make_fx(gradient)(*arguments)
    for node in graph.graph.nodes:
        node.meta.clear()  # shapes that the compiler finds by itself
    return graph, arguments


def written(way, graph, arguments):
    """The C++ that torch writes for a graph, within a context. Nothing is compiled."""
    from torch._inductor import config
    from torch._inductor.codecache import CppWrapperCodeCache
    from torch._inductor.compile_fx import compile_fx

    kernels: list[str] = []

    def noted(_):
        return lambda *arguments, **named: kernels.append(named["kernel_code"])

    options = {"cpp_wrapper": True, "cpp_wrapper_build_separate": True}
    with way(), replaced(CppWrapperCodeCache, "load_pybinding", noted), config.patch(force_disable_caches=True):
        compile_fx(copy.deepcopy(graph), arguments, config_patches=options)
    return kernels


@pytest.mark.long
def test_the_code_is_the_same_with_and_without():
    graph, arguments = traced(torch.randn(4, 1, 16, 16))
    plain, ours = (written(way, graph, arguments) for way in (contextlib.nullcontext, polynomials_as_they_are))
    assert ours == plain
    assert len(plain) == 1
    assert "vectorized" in plain[0].lower()


class File:
    """A C++ file in the place of torch's builder of one: it is compiled once another one is begun."""

    def __init__(self, path, begins, goes_on):
        self.path, self._begins, self._goes_on = path, begins, goes_on

    def get_target_file_path(self):
        return str(self.path)

    def build(self):
        self._begins()
        assert self._goes_on.wait(WAIT)
        self.path.touch()


def begun(monkeypatch, works, built):
    """Loading C++ means these works, one a call; each then gives a function that tells what was built by then."""
    from torch._inductor.codecache import CppWrapperCodeCache

    def load_async(number, submit_fn):
        future = submit_fn(works[number])

        def ready():
            future.result()
            return lambda: (number, sorted(built))

        return ready

    monkeypatch.setattr(CppWrapperCodeCache, "load_pybinding_async", load_async)
    return lambda number: CppWrapperCodeCache.load_pybinding(number)


def test_files_are_compiled_side_by_side_and_beside_what_comes_next(tmp_path, monkeypatch):
    both, next_is_lowered, built = threading.Barrier(2), threading.Event(), []
    files = [File(tmp_path / name, partial(both.wait, WAIT), next_is_lowered) for name in ("main.o", "kernels.o")]

    def linked(lock, files):
        built.extend(file.path.name for file in files[:-1] if file.path.exists())

    lock = str(tmp_path / "lock")
    load = begun(monkeypatch, [partial(linked, lock, (*files, None)), partial(linked, lock, (None,))], built)
    with side_by_side():
        first = load(0)  # its files wait for each other, and for what comes next
        second = load(1)
        next_is_lowered.set()
    assert first() == (0, ["kernels.o", "main.o"])
    assert second()[0] == 1
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("gimli_core: C++")]


def test_a_file_that_is_there_is_not_compiled_again(tmp_path, monkeypatch):
    there = File(tmp_path / "main.o", lambda: pytest.fail("compiled again"), threading.Event())
    there.path.touch()
    load = begun(monkeypatch, [partial(lambda lock, files: None, str(tmp_path / "lock"), (there, None))], [])
    with side_by_side():
        entry = load(0)
    assert entry() == (0, [])


def test_what_the_compiler_says_is_said_at_the_end_of_the_block(tmp_path, monkeypatch):
    goes_on = threading.Event()
    goes_on.set()
    works = []
    for number in range(2):
        broken = File(tmp_path / f"{number}.o", lambda: 1 / 0, goes_on)
        works.append(partial(lambda lock, files: None, str(tmp_path / f"{number}.lock"), (broken, None)))
    load = begun(monkeypatch, works, [])
    reached = []

    def block():
        with side_by_side():
            load(0)
            load(1)
            reached.append("the end")

    with pytest.raises(ZeroDivisionError):
        block()
    assert reached == ["the end"]


@pytest.mark.parametrize("compile", ["steps", True])
def test_a_broken_compiler_is_a_reason_to_run_as_it_is(compile, monkeypatch, caplog):
    from torch._inductor import cpp_builder, exc

    def broken(self):
        raise exc.CppCompileError(["c++"], "no space left on the device")

    monkeypatch.setattr(cpp_builder.CppBuilder, "build", broken)
    factor = 1.0 + int.from_bytes(os.urandom(6), "big") / 2**50  # a graph that no cache has

    def loss(theta, phi, batch):
        return factor * ((theta["w"] - batch) ** 2).sum()

    problem = gimli.Problem(loss, loss, gimli.optimizers.SGD(lr=0.1))
    theta, batch = {"w": torch.arange(3.0)}, torch.ones(3)
    with caplog.at_level("INFO", logger="gimli_core"):
        result = gimli.meta_gradient(problem, theta, [batch] * 2, batch, compile=compile)
    eager = gimli.meta_gradient(problem, theta, [batch] * 2, batch, compile=False)
    assert torch.equal(result.B_0["w"], eager.B_0["w"])
    assert "not compiled" in caplog.text
    assert "C++" in caplog.text


def test_nothing_is_left_of_a_block_that_ends_badly():
    from torch._inductor import sizevars
    from torch._inductor.codecache import CppWrapperCodeCache

    with pytest.raises(Exception, match=r".+"):
        lowered(None, None)
    for torchs in (sizevars.simplify_index_in_vec_range, CppWrapperCodeCache.load_pybinding):
        assert not hasattr(torchs.here, "function") or torchs.here.function is torchs.torchs
