"""JAX: the same workloads as one jitted function, steps under `lax.scan`, tasks under `vmap`.

jax             keeps what every step needs
jax_checkpoint  each step under jax.checkpoint: computed again in the backward pass
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch import Tensor

from tests.benchmarks.models import HEADS, LAYERS
from tests.benchmarks.speed import rules
from tests.benchmarks.speed.workloads import Workload

Named = dict[str, Any]


def linear(theta: Named, name: str, x: jax.Array) -> jax.Array:
    return x @ theta[f"{name}weight"].T + theta[f"{name}bias"]


def mlp(activation: Callable[[Any], Any], theta: Named, x: jax.Array) -> jax.Array:
    x = activation(linear(theta, "0.", x))
    return linear(theta, "4.", activation(linear(theta, "2.", x)))


def mlp_named(theta: Named, x: jax.Array) -> jax.Array:
    for i in range(3):
        x = x @ theta[f"w{i}"].T + theta[f"b{i}"]
        x = jax.nn.relu(x) if i < 2 else x
    return x


def conv(theta: Named, x: jax.Array) -> jax.Array:
    for i in range(4):
        x = jax.lax.conv_general_dilated(x, theta[f"{3 * i}.weight"], (2, 2), ((1, 1), (1, 1)))
        mean, var = x.mean((0, 2, 3), keepdims=True), x.var((0, 2, 3), keepdims=True)
        scale, shift = (theta[f"{3 * i + 1}.{k}"][:, None, None] for k in ("weight", "bias"))
        x = jax.nn.relu((x - mean) * jax.lax.rsqrt(var + 1e-5) * scale + shift)
    return linear(theta, "13.", x.mean((2, 3)))


def norm(theta: Named, name: str, x: jax.Array) -> jax.Array:
    x = (x - x.mean(-1, keepdims=True)) * jax.lax.rsqrt(x.var(-1, keepdims=True) + 1e-5)
    return x * theta[f"{name}.weight"] + theta[f"{name}.bias"]


def transformer(theta: Named, x: jax.Array) -> jax.Array:
    x = theta["tokens.weight"][x] + theta["places.weight"][: x.shape[1]]
    B, T, W = x.shape
    mask = jnp.triu(jnp.ones((T, T), bool), 1)
    for i in range(LAYERS):
        b = f"blocks.{i}"
        qkv = linear(theta, f"{b}.qkv.", norm(theta, f"{b}.norms.0", x))
        q, k, v = qkv.reshape(B, T, 3, HEADS, W // HEADS).transpose(2, 0, 3, 1, 4)
        scores = q @ k.swapaxes(-1, -2) / (W // HEADS) ** 0.5
        y = jax.nn.softmax(jnp.where(mask, -jnp.inf, scores), -1) @ v
        x = x + linear(theta, f"{b}.out.", y.swapaxes(1, 2).reshape(B, T, W))
        up = linear(theta, f"{b}.up.", norm(theta, f"{b}.norms.1", x))
        x = x + linear(theta, f"{b}.down.", jax.nn.gelu(up, approximate=False))
    return linear(theta, "head.", norm(theta, "norm", x))


NETS: dict[str, Callable[[Named, Any], Any]] = {
    "mlp_relu": partial(mlp, jax.nn.relu),
    "mlp_tanh": partial(mlp, jnp.tanh),
    "mlp_named": mlp_named,
    "conv": conv,
    "transformer": transformer,
}


def mse(out: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.square(out - y).mean()


def cross_entropy(out: jax.Array, y: jax.Array) -> jax.Array:
    return -jnp.take_along_axis(jax.nn.log_softmax(out), y[..., None], -1).mean()


OBJECTIVES = {"mse": mse, "cross_entropy": cross_entropy}


def array(value: Any) -> Any:
    """A tensor as JAX's array, whole numbers in 32 bits; dicts and tuples of them likewise; a plain number as it is."""
    if isinstance(value, dict):
        return {k: array(v) for k, v in value.items()}
    if isinstance(value, tuple):
        return tuple(array(v) for v in value)
    if not isinstance(value, Tensor):
        return value
    whole = not value.is_floating_point()
    return jnp.asarray(value.cpu().numpy().astype(np.int32) if whole else value.cpu().numpy())


def tensors(meta: Any, prefix: str = "") -> dict[str, Tensor]:
    """JAX's {"lr": {"w": …}} as tensors {"lr.w": …}."""
    if not isinstance(meta, dict):
        return {prefix: torch.tensor(np.asarray(meta))}
    return {k: v for name, m in meta.items() for k, v in tensors(m, f"{prefix}.{name}" if prefix else name).items()}


def prepare(work: Workload, checkpoint: bool) -> tuple[Callable[[], Any], float]:
    """The compiled meta-gradient, which returns when its arrays are there, and the seconds that compiling it took."""
    if work.val[0].device.type == "cuda":
        if jax.default_backend() != "gpu":
            raise LookupError("this JAX sees no GPU")
        jax.config.update("jax_default_matmul_precision", "highest")  # float32, as in torch
    net, objective = NETS[work.architecture], OBJECTIVES[work.objective]
    held = {k: array(getattr(work, k)) for k in ("theta_0", "lr", "phi_loss")}

    def train_loss(theta: Named, phi: Named, batch: Any) -> jax.Array:
        loss = objective(net(theta, batch[0]), batch[1])
        return loss + sum(jnp.exp(phi[k]) * jnp.square(theta[k]).sum() for k in phi)

    def validation(meta: Named, train: Any, val: Any) -> jax.Array:
        given = {**held, **meta}
        theta = given["theta_0"]

        def step(carry: Any, at: Any) -> Any:
            (theta, s), (j, c) = carry, at
            G = jax.grad(train_loss)(theta, given["phi_loss"], tuple(b[j % len(b)] for b in train))
            return rules.step(work.rule, theta, s, G, given["lr"], c, jnp.sqrt), None

        c1, c2 = zip(*map(rules.corrections, range(work.steps)), strict=True)
        at = jnp.arange(work.steps), (jnp.array(c1), jnp.array(c2))
        start = theta, rules.start(work.rule, theta, jnp.zeros_like)
        (theta, _), _ = jax.lax.scan(jax.checkpoint(step) if checkpoint else step, start, at)
        return objective(net(theta, val[0]), val[1])

    def summed(meta: Named, train: Any, val: Any) -> jax.Array:
        if not work.tasks:
            return validation(meta, train, val)
        return jax.vmap(validation, (None, 1, 0))(meta, train, val).sum()

    arguments = array(work.meta), array(work.train), array(work.val)
    start = time.perf_counter()
    compiled = jax.jit(jax.grad(summed)).lower(*arguments).compile()
    seconds = time.perf_counter() - start
    return lambda: jax.block_until_ready(compiled(*arguments)), seconds
