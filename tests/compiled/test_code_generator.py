"""What stands in the place of functions of torch's compiler writes the same code, and nothing of it is left behind."""

from __future__ import annotations

import contextlib
import copy
import glob
import os
import pathlib
import pickle
import signal
import subprocess
import sys
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
from gimli_core.compiled.compiler.side_by_side import side_by_side, whole_files

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
    others = [
        FloorDiv(x, 4),
        ModularIndexing(x, 2, 4) + y,
        x / y,
        x * FloorDiv(y, 8),
        sympy.Max(x, y),
        sympy.Eq(x, y),
        2**x,
    ]
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
    """A file in the place of torch's builder of one."""

    def __init__(self, path):
        self.path = path

    def get_target_file_path(self):
        return str(self.path)

    def get_command_line(self):
        return f"compile {self.path.name} -o {self.path}"


@pytest.fixture
def made(monkeypatch):
    """`made(works, compiler)`: loading C++ means these works, one a call, and the compiler is this function of (the
    file's name, where it is written to)."""
    from torch._inductor import cpp_builder
    from torch._inductor.codecache import CppWrapperCodeCache

    def made(works, compiler):
        def run(command, cwd):
            _, name, _, path = command.split()
            compiler(name, pathlib.Path(path))

        def load_async(number, submit_fn):
            future = submit_fn(works[number])

            def ready():
                future.result()
                return lambda: number

            return ready

        monkeypatch.setattr(cpp_builder, "run_compile_cmd", run)
        monkeypatch.setattr(CppWrapperCodeCache, "load_pybinding_async", load_async)
        return lambda number: CppWrapperCodeCache.load_pybinding(number)

    return made


def work(folder, *names):
    """What torch asks for: these files, the last one linked of the others."""
    folder.mkdir(exist_ok=True)
    return partial(lambda lock, files: None, str(folder / "lock"), tuple(File(folder / name) for name in names))


def test_files_are_compiled_side_by_side_and_beside_what_comes_next(tmp_path, made):
    both, next_is_lowered = threading.Barrier(2), threading.Event()
    order = []

    def compiler(name, path):
        if name.endswith(".o"):  # they wait for each other, and for what comes next
            both.wait(WAIT)
            assert next_is_lowered.wait(WAIT)
        order.append(name)
        path.touch()

    load = made([work(tmp_path / "a", "main.o", "kernels.o", "a.so"), work(tmp_path / "b", "b.so")], compiler)
    with side_by_side():
        first, second = load(0), load(1)
        next_is_lowered.set()
    assert (first(), second()) == (0, 1)
    assert sorted(order) == ["a.so", "b.so", "kernels.o", "main.o"]
    assert order.index("a.so") > max(order.index("main.o"), order.index("kernels.o"))
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("gimli_core: C++")]


def test_a_file_that_is_there_is_not_compiled_again(tmp_path, made):
    asked = []
    load = made([work(tmp_path, "main.o", "a.so")], lambda name, path: asked.append(name) or path.touch())
    (tmp_path / "main.o").touch()
    with side_by_side():
        load(0)
    assert asked == ["a.so"]


def test_graphs_with_the_same_kernels_make_their_file_at_once(tmp_path, made):
    both = threading.Barrier(2)

    def compiler(name, path):
        path.touch()
        if name == "kernels.o":
            both.wait(WAIT)

    works = [work(tmp_path, name, "kernels.o", f"{name}.so") for name in ("a", "b")]
    for number, of_graph in enumerate(works):
        works[number] = partial(of_graph.func, str(tmp_path / f"lock{number}"), of_graph.args[1])
    load = made(works, compiler)
    with side_by_side():
        load(0)
        load(1)
    assert {path.name for path in tmp_path.glob("*.*")} == {"kernels.o", "a.so", "b.so"}


def test_what_processes_that_are_gone_left_half_written_is_removed_and_no_other(tmp_path, made):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    (tmp_path / f"a.so.{gone.pid}.1").touch()
    (tmp_path / f"a.so.{os.getpid()}.1").touch()
    load = made([work(tmp_path, "a.so")], lambda name, path: path.touch())
    with side_by_side():
        load(0)
    assert {path.name for path in tmp_path.iterdir()} - {"lock"} == {"a.so", f"a.so.{os.getpid()}.1"}


@pytest.mark.parametrize("broken", ["main.o", "kernels.o", "a.so"])
def test_what_the_compiler_says_is_said_at_the_end_of_the_block_and_no_half_file_stays(broken, tmp_path, made):
    def compiler(name, path):
        path.write_text("half")
        if name == broken:
            raise ZeroDivisionError

    works = [work(tmp_path / "a", "main.o", "kernels.o", "a.so"), work(tmp_path / "b", "b.so")]
    load = made(works, compiler)
    reached = []

    def block():
        with side_by_side():
            load(0)
            load(1)
            reached.append("the end")

    with pytest.raises(ZeroDivisionError):
        block()
    assert reached == ["the end"]
    others = {"main.o", "kernels.o", "a.so"} - {broken, "a.so"}
    assert {path.name for path in (tmp_path / "a").iterdir()} - {"lock"} == others
    assert {path.name for path in (tmp_path / "b").iterdir()} - {"lock"} == {"b.so"}


COMPILES = """
import logging, torch, gimli_core as gimli
logging.basicConfig(level="INFO")
def loss(theta, phi, batch):
    return ((theta["w"] - batch) ** 2).sum()
problem = gimli.Problem(loss, loss, gimli.optimizers.SGD(lr=0.25))
one = torch.ones(3)
print(gimli.meta_gradient(problem, {"w": torch.zeros(3)}, [one] * 2, one, compile="steps").B_0["w"])
"""


def test_a_function_that_was_replaced_is_sent_to_another_process_by_its_name():
    """torch's own pool of compiling processes is handed functions: another use of torch.compile must find it so."""
    from torch._inductor import codecache

    with whole_files():
        sent = pickle.dumps(partial(codecache._worker_compile_cpp, "lock", ()))
    assert pickle.loads(sent).func is codecache._worker_compile_cpp
    code = f"import pickle; print(pickle.loads({sent!r}).func.__class__.__name__)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "function\n"


SLOW = """#!/bin/sh
g++ "$@"
ended=$?
case "$*" in *" -o "*) sleep 0.5 ;; esac
exit $ended
"""


@pytest.mark.long
def test_a_process_killed_while_a_file_grows_leaves_nothing_that_is_taken_for_it(tmp_path):
    """By a compiler that ends half a second after its file is there: a quick one's was whole before the kill came."""
    slow = tmp_path / "slow-g++"
    slow.write_text(SLOW, encoding="utf-8")
    slow.chmod(0o755)
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path), "TMPDIR": str(tmp_path), "CXX": str(slow)}
    command = [sys.executable, "-c", COMPILES]
    for kind in ("h.gch", "o", "so"):
        process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, start_new_session=True)
        while not glob.glob(f"{tmp_path}/**/*.{kind}.{process.pid}.*", recursive=True):  # folders come and go
            assert process.poll() is None, f"no .{kind} was seen to grow"
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert not list(tmp_path.rglob("*main.so"))
        assert bool(list(tmp_path.rglob("*.h.gch"))) == (kind != "h.gch")
        assert glob.glob(f"{tmp_path}/**/*.{kind}.{process.pid}.*", recursive=True)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=600)
    assert "compiled in" in done.stderr, done.stderr
    assert "not compiled" not in done.stderr, done.stderr
    assert "-0.1250" in done.stdout
    assert not glob.glob(f"{tmp_path}/**/*.{process.pid}.*", recursive=True)


@pytest.mark.parametrize("compile", ["steps", True])
def test_a_broken_compiler_is_a_reason_to_run_as_it_is(compile, monkeypatch, caplog):
    from torch._inductor import cpp_builder, exc

    def broken(command, cwd):
        said = "In file included from a:\nfatal error: no space left on the device\nstopped"
        raise exc.CppCompileError(["c++"], said)

    monkeypatch.setattr(cpp_builder, "run_compile_cmd", broken)
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
    assert "C++ compiler says: fatal error: no space left on the device" in caplog.text


def test_nothing_is_left_of_a_block_that_ends_badly():
    from torch._inductor import sizevars
    from torch._inductor.codecache import CppWrapperCodeCache

    with pytest.raises(Exception, match=r".+"):
        lowered(None, None)
    for torchs in (sizevars.simplify_index_in_vec_range, CppWrapperCodeCache.load_pybinding):
        assert not hasattr(torchs.here, "function") or torchs.here.function is torchs.torchs
