"""Modules as they are: with tensors in place of its parameters, each computes the same and gets the same gradient.

The reference is a plain unroll of SGD by autograd over `torch.func.functional_call`.
"""

from __future__ import annotations

import copy
import functools
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import parametrizations, parametrize, weight_norm

import gimli_core.inner_loop as inner_loop

ROUNDING = 1e-10
STEPS, LR = 3, 0.05


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.head = nn.Linear(4, 5, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.embed(x.argmax(-1))))


class Recurrent(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.rnn = getattr(nn, kind)(5, 4, num_layers=2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x[:, None].expand(-1, 3, -1))[0][:, -1])


class References(nn.Module):
    """Holds what it owns a second time: in lists, tuples, a partial, a bound method."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 4), nn.Linear(4, 1)
        self.scale = nn.Parameter(torch.ones(4))
        self.register_buffer("shift", torch.full((4,), 0.5))
        self.layers = [self.first, {"second": self.second}]
        self.constants = (self.scale, [self.shift])
        self.activation = functools.partial(self.squash, power=2)
        self.method = self.squash

    def squash(self, x: Tensor, power: int = 1) -> Tensor:
        return torch.tanh(x * self.scale) ** power

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.activation(self.layers[0](x)) * self.constants[0] + self.method(self.constants[1][0])
        return self.layers[1]["second"](hidden)


class Lists(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(5, 5) for _ in range(2)])
        self.scales = nn.ParameterList([nn.Parameter(torch.ones(5)) for _ in range(2)])
        self.more = nn.ParameterDict({"shift": nn.Parameter(torch.zeros(5))})
        self.pick = nn.ModuleDict({"relu": nn.Softplus()})

    def forward(self, x: Tensor) -> Tensor:
        for layer, scale in zip(self.layers, self.scales, strict=True):
            x = self.pick["relu"](layer(x) * scale + self.more["shift"])
        return x


class Image(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x[:, None, None, :].expand(-1, 1, 5, -1)).flatten(1)


def parametrized() -> nn.Module:
    module = nn.Sequential(parametrizations.weight_norm(nn.Linear(5, 4)), nn.Tanh(), nn.Linear(4, 1))
    parametrizations.orthogonal(module[2])
    return module


class Square(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.square()


def parametrized_root() -> nn.Module:
    module = nn.Linear(5, 2)
    parametrize.register_parametrization(module, "weight", Square())
    return module


def hooked() -> nn.Module:
    module = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 1))
    module[0].register_forward_hook(lambda m, args, out: out * m.weight.sum())
    return module


def with_frozen() -> nn.Module:
    module = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 1))
    module[0].requires_grad_(False)
    return module


def from_checkpoint() -> nn.Module:
    source, file = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 1)), io.BytesIO()
    torch.save(source.state_dict(), file)
    file.seek(0)
    with torch.device("meta"):
        module = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 1))
    module.load_state_dict(torch.load(file), assign=True)
    return module


def pickled_whole() -> nn.Module:
    file = io.BytesIO()
    torch.save(Recurrent("LSTM"), file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def transformer() -> nn.Module:  # its layers are deep copies of one
    layer = nn.TransformerEncoderLayer(5, 1, dim_feedforward=6, dropout=0.0, batch_first=True)
    return nn.Sequential(
        nn.Unflatten(0, (2, 3)), nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(5, 1)
    )


def convolutions(norm: Callable[[int], nn.Module]) -> nn.Module:
    return Image(nn.Sequential(nn.Conv2d(1, 3, 3), norm(3), nn.Softplus(), nn.AvgPool2d(2), nn.Conv2d(3, 2, 1)))


MODULES: dict[str, Callable[[], nn.Module]] = {
    "tied": Tied,
    "LSTM": lambda: Recurrent("LSTM"),
    "GRU": lambda: Recurrent("GRU"),
    "RNN": lambda: Recurrent("RNN"),
    "pickled LSTM": pickled_whole,
    "LSTM cell": lambda: Cell(),
    "references": References,
    "lists": Lists,
    "parametrized": parametrized,
    "parametrized root": parametrized_root,
    "old weight_norm": lambda: nn.Sequential(nn.Linear(5, 4), nn.Tanh(), weight_norm(nn.Linear(4, 1))),
    "hooked": hooked,
    "frozen": with_frozen,
    "checkpoint": from_checkpoint,
    "deep copy": lambda: copy.deepcopy(References()),
    "transformer": transformer,
    "batch norm": lambda: convolutions(nn.BatchNorm2d),
    "group norm": lambda: convolutions(lambda c: nn.GroupNorm(1, c)),
    "instance norm": lambda: convolutions(lambda c: nn.InstanceNorm2d(c, affine=True, track_running_stats=True)),
    "module used twice": lambda: used_twice(nn.Linear(5, 5)),
}


def used_twice(layer: nn.Module) -> nn.Module:
    return nn.Sequential(layer, nn.Tanh(), layer)


def without_references(module: nn.Module) -> nn.Module:
    """An equal module that owns everything once: functional_call does not see the other places."""
    if isinstance(module, References):
        clean = Clean()
        clean.load_state_dict(module.state_dict())
        return clean
    if isinstance(module, nn.Sequential) and len(module) == 3 and module[0] is module[2]:
        twice = Twice(5)
        twice.layer.load_state_dict(module[0].state_dict())
        return twice
    return module


class Clean(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 4), nn.Linear(4, 1)
        self.scale = nn.Parameter(torch.ones(4))
        self.register_buffer("shift", torch.full((4,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.first(x) * self.scale) ** 2 * self.scale + torch.tanh(self.shift * self.scale)
        return self.second(hidden)


class Twice(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(torch.tanh(self.layer(x)))


class Cell(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        state = self.cell(x)
        return self.cell(x, state)[0]


def unrolled(module: nn.Module, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Loss and gradient by autograd; buffers move, as they do in the loop."""
    module = without_references(module)
    theta = {k: p for k, p in module.named_parameters() if p.requires_grad}
    leaves = list(theta.values())
    buffers = {k: b.clone() for k, b in module.named_buffers()}
    with sdpa_kernel(SDPBackend.MATH):
        for j in range(STEPS):
            loss = functional_call(module, {**theta, **buffers}, (x + j,)).square().mean()
            G = torch.autograd.grad(loss, list(theta.values()), create_graph=True)
            theta = {k: p - LR * g for (k, p), g in zip(theta.items(), G, strict=True)}
        loss = functional_call(module, {**theta, **buffers}, (x - 1,)).square().mean()
    return loss.detach(), list(torch.autograd.grad(loss, leaves))


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
@pytest.mark.parametrize("name", MODULES)
def test_a_module_as_it_is(name: str) -> None:
    module = MODULES[name]()
    x = torch.randn(6, 5)
    before = copy.deepcopy(module.state_dict())
    loss, expected = unrolled(module, x)
    trained = [p for p in module.parameters() if p.requires_grad]
    opt = torch.optim.SGD(module.parameters(), lr=LR)
    with inner_loop.innerloop_ctx(module, opt, copy_initial_weights=False) as (fmodel, diffopt):
        assert isinstance(fmodel, type(module))
        assert [k for k, _ in fmodel.named_parameters()] == [k for k, _ in module.named_parameters()]
        for j in range(STEPS):
            diffopt.step(fmodel(x + j).square().mean())
        outer = fmodel(x - 1).square().mean()
        found = torch.autograd.grad(outer, trained)
    torch.testing.assert_close(outer.detach(), loss, rtol=ROUNDING, atol=0)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=ROUNDING, atol=ROUNDING * float(b.abs().max()))
    assert max(float(g.abs().max()) for g in expected) > 1e-6, "a gradient that is 0 would tell nothing"
    for k, value in module.state_dict().items():
        assert torch.equal(value, before[k]), f"{k} of the module has moved"


def test_buffers_move_in_the_copy_and_may_carry_meta_parameters() -> None:
    module = nn.BatchNorm1d(2)
    fmodel = inner_loop.monkeypatch(module)
    fmodel(torch.randn(4, 2))
    assert fmodel.num_batches_tracked == 1
    assert module.num_batches_tracked == 0
    scale = torch.tensor(3.0, requires_grad=True)
    holder = nn.Linear(1, 1)
    holder.register_buffer("scale", scale)
    holder.plain, holder.net = scale, [nn.Linear(1, 1)]  # shared by reference: their gradients must arrive
    fmodel = inner_loop.monkeypatch(holder)
    (fmodel.scale * 2 + fmodel.plain + fmodel.net[0].weight.sum()).backward()
    assert scale.grad is not None
    assert scale.grad.item() == 3.0
    assert holder.net[0].weight.grad is not None


@pytest.mark.parametrize("track", [True, False])
def test_frozen_parameters_stay_frozen(track: bool) -> None:
    module = with_frozen()
    opt = torch.optim.SGD(module.parameters(), lr=LR, weight_decay=0.1)
    with inner_loop.innerloop_ctx(module, opt, track_higher_grads=track) as (fmodel, diffopt):
        diffopt.step(fmodel(torch.ones(1, 5)).sum())
        for fast, p in zip(fmodel.parameters(), module.parameters(), strict=True):
            assert fast.requires_grad == p.requires_grad
            assert torch.equal(fast, p) != p.requires_grad


def test_train_and_eval_are_the_copys_own() -> None:
    module = nn.Sequential(nn.Dropout(0.5), nn.Linear(2, 1))
    fmodel = inner_loop.monkeypatch(module)
    fmodel.eval()
    assert module[0].training
    torch.testing.assert_close(fmodel(torch.ones(1, 2)), module[1](torch.ones(1, 2)))


def test_submodules_and_methods_compute_with_the_latest_fast_weights() -> None:
    module = References()
    opt = torch.optim.SGD(module.parameters(), lr=LR)
    with inner_loop.innerloop_ctx(module, opt) as (fmodel, diffopt):
        for _ in range(2):
            diffopt.step(fmodel(torch.ones(2, 5)).sum() + fmodel.squash(torch.ones(4)).sum() + fmodel.first.bias.sum())
        assert fmodel.first.weight is fmodel.fast_params[1]
        torch.testing.assert_close(fmodel.first(torch.zeros(5)), fmodel.fast_params[2])
        assert fmodel.method.__self__ is fmodel
        assert module.method.__self__ is module


@pytest.mark.skipif(torch.cuda.device_count() < 1, reason="needs a second device")
def test_parts_on_two_devices() -> None:
    class Split(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.here, self.there = nn.Linear(3, 2), nn.Linear(2, 1).cuda()

        def forward(self, x: Tensor) -> Tensor:
            return self.there(self.here(x).tanh().cuda()).cpu()

    module = Split()
    lr = torch.tensor(0.1, requires_grad=True)
    opt = torch.optim.Adam(module.parameters())
    with inner_loop.innerloop_ctx(module, opt, copy_initial_weights=False, override={"lr": [lr]}) as (fmodel, diffopt):
        for _ in range(3):
            diffopt.step(fmodel(torch.ones(1, 3)).square().sum())
        fmodel(torch.ones(1, 3)).square().sum().backward()
    assert lr.grad is not None
    assert all(p.grad is not None and p.grad.device == p.device for p in module.parameters())


def test_the_device_argument_moves_weights_buffers_and_state() -> None:
    module = nn.Sequential(nn.Linear(2, 1), nn.BatchNorm1d(1))
    fmodel = inner_loop.monkeypatch(module, device="meta")
    assert {t.device.type for t in [*fmodel.parameters(), *fmodel.buffers()]} == {"meta"}
    assert {t.device.type for t in module.parameters()} == {"cpu"}
    opt = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    module(torch.randn(3, 2)).sum().backward()
    opt.step()
    diffopt = inner_loop.get_diff_optim(opt, module.parameters(), device="meta")
    assert {s["momentum_buffer"].device.type for s in diffopt.state[0]} == {"meta"}


SMALL = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 8}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
# of the `transformers` package: the model, the class of its configuration, and small options
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "GPT2LMHeadModel": (
        "GPT2Config",
        {"n_embd": 8, "n_layer": 2, "n_head": 2, "n_positions": 8, "bos_token_id": 0, "eos_token_id": 0}
        | {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    ),
    "BertForMaskedLM": ("BertConfig", SMALL | NO_DROPOUT),
    "LlamaForCausalLM": ("LlamaConfig", SMALL | {"num_key_value_heads": 1, "tie_word_embeddings": True}),
    "MambaForCausalLM": ("MambaConfig", {"hidden_size": 8, "num_hidden_layers": 1, "state_size": 4}),
    "T5ForConditionalGeneration": (
        "T5Config",
        {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2, "decoder_start_token_id": 0}
        | {"dropout_rate": 0.0},
    ),
    "ViTModel": ("ViTConfig", SMALL | NO_DROPOUT | {"image_size": 8, "patch_size": 4}),
    "ResNetModel": ("ResNetConfig", {"embedding_size": 4, "hidden_sizes": [4, 8], "depths": [1, 1]}),
}


@pytest.mark.filterwarnings("ignore")  # of the library's own
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_third_party_architectures(name: str) -> None:
    transformers = pytest.importorskip("transformers")
    config, options = ARCHITECTURES[name]
    images = name in ("ViTModel", "ResNetModel")
    module = getattr(transformers, name)(
        getattr(transformers, config)(**options | ({} if images else {"vocab_size": 11}))
    )
    tokens = torch.randint(11, (2, 6))
    batch = {"pixel_values": torch.randn(2, 3, 8, 8)} if images else {"input_ids": tokens, "labels": tokens}
    theta = dict(module.named_parameters())
    leaves, buffers = list(theta.values()), {k: b.clone() for k, b in module.named_buffers()}

    def loss(output: Any) -> Tensor:
        value = output.last_hidden_state.square().mean() if images else output.loss
        assert isinstance(value, Tensor)
        return value

    with sdpa_kernel(SDPBackend.MATH):
        for _ in range(2):
            value = loss(functional_call(module, {**theta, **buffers}, (), batch))
            G = torch.autograd.grad(value, list(theta.values()), create_graph=True, allow_unused=True)
            theta = {k: p if g is None else p - LR * g for (k, p), g in zip(theta.items(), G, strict=True)}
        outer = loss(functional_call(module, {**theta, **buffers}, (), batch))
    expected = torch.autograd.grad(outer, leaves, allow_unused=True)

    opt = torch.optim.SGD(module.parameters(), lr=LR)
    with inner_loop.innerloop_ctx(module, opt, copy_initial_weights=False) as (fmodel, diffopt):
        for _ in range(2):
            diffopt.step(loss(fmodel(**batch)))
        value = loss(fmodel(**batch))
        found = torch.autograd.grad(value, leaves, allow_unused=True)
    torch.testing.assert_close(value, outer, rtol=ROUNDING, atol=0)
    for a, b in zip(found, expected, strict=True):
        assert (a is None) == (b is None)
        if a is not None and b is not None:
            torch.testing.assert_close(a, b, rtol=ROUNDING, atol=ROUNDING)
