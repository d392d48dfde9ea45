"""More plain rules for autograd to differentiate: the rest of `torch.optim`, Lion and LAMB, as their sources have it.

Independent of `gimli_core.optimizers`: only options and slot names are read. `STARTS` says how a slot starts
where that is not zeros shaped like theta.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gimli_core.notation import Tensors

__all__ = ["STARTS", "TORCH_RULES"]

Root = Callable[[Tensor], Tensor]
Stepped = tuple[Tensor, Tensors]


def prepared(opt: Any, w: Tensor, G: Tensor, h: Tensors) -> tuple[Tensor, Tensor]:
    """(w, g) after sign and weight decay, decoupled where the options say so."""
    g = -G if opt.maximize else G
    if getattr(opt, "decoupled_weight_decay", False) or type(opt).__name__ in ("Lion", "Adafactor", "Muon"):
        return w - h["lr"] * h["weight_decay"] * w, g
    return w, g + h.get("weight_decay", 0.0) * w


def averages(s: Tensors, g: Tensor, h: Tensors) -> Stepped:
    return (
        h["beta1"] * s["exp_avg"] + (1 - h["beta1"]) * g,
        {"exp_avg_sq": h["beta2"] * s["exp_avg_sq"] + (1 - h["beta2"]) * g**2},
    )


def nadam(opt: Any, w: Tensor, s: Tensors, G: Tensor, h: Tensors, t: int, root: Root) -> Stepped:
    w, g = prepared(opt, w, G, h)
    m, new = averages(s, g, h)
    mu, mu_next = (h["beta1"] * (1 - 0.5 * 0.96 ** (i * h["momentum_decay"])) for i in (t, t + 1))
    product = s["mu_product"] * mu
    m_hat = mu_next * m / (1 - product * mu_next) + (1 - mu) * g / (1 - product)
    v_hat = new["exp_avg_sq"] / (1 - h["beta2"] ** t)
    return w - h["lr"] * m_hat / (root(v_hat + h["eps_root"]) + h["eps"]), {"exp_avg": m, **new, "mu_product": product}


def radam(opt: Any, w: Tensor, s: Tensors, G: Tensor, h: Tensors, t: int, root: Root) -> Stepped:
    w, g = prepared(opt, w, G, h)
    m, new = averages(s, g, h)
    m_hat, beta2 = m / (1 - h["beta1"] ** t), h["beta2"]
    rho_inf = 2 / (1 - beta2) - 1
    rho = rho_inf - 2 * t * beta2**t / (1 - beta2**t)

    def rectified(rho: Tensor, rho_inf: Tensor) -> Tensor:
        r = ((rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho)) ** 0.5
        return r * (1 - beta2**t) ** 0.5 / (root(new["exp_avg_sq"]) + h["eps"])

    # Where rho <= 5 nothing of the other branch may reach autograd: it can be 0/0 there.
    trusted = rho > 5
    factor = torch.where(trusted, rectified(rho.where(trusted, 6.0), rho_inf.where(trusted, 8.0)), 1.0)
    return w - h["lr"] * m_hat * factor, {"exp_avg": m, **new}


def adamax(opt: Any, w: Tensor, s: Tensors, G: Tensor, h: Tensors, t: int, root: Root) -> Stepped:
    w, g = prepared(opt, w, G, h)
    m = h["beta1"] * s["exp_avg"] + (1 - h["beta1"]) * g
    u = torch.maximum(h["beta2"] * s["exp_inf"], g.abs() + h["eps"])
    return w - h["lr"] / (1 - h["beta1"] ** t) * m / u, {"exp_avg": m, "exp_inf": u}


def adadelta(opt: Any, w: Tensor, s: Tensors, G: Tensor, h: Tensors, t: int, root: Root) -> Stepped:
    w, g = prepared(opt, w, G, h)
    v = h["rho"] * s["square_avg"] + (1 - h["rho"]) * g**2
    delta = root(s["acc_delta"] + h["eps"]) / root(v + h["eps"]) * g
    return w - h["lr"] * delta, {"square_avg": v, "acc_delta": h["rho"] * s["acc_delta"] + (1 - h["rho"]) * delta**2}


def rmsprop(opt: Any, w: Tensor, s: Tensors, G: Tensor, h: Tensors, t: int, root: Root) -> Stepped:
    w, g = prepared(opt, w, G, h)
    new = {"square_avg": h["alpha"] * s["square_avg"] + (1 - h["alpha"]) * g**2}
    variance = new["square_avg"]
    if opt.centered:
        new["grad_avg"] = h["alpha"] * s["grad_avg"] + (1 - h["alpha"]) * g
        variance = variance - new["grad_avg"] ** 2
    step = g / (root(variance) + h["eps"])
    if "momentum_buffer" in s:
        step = new["momentum_buffer"] = h["momentum"] * s["momentum_buffer"] + step
    return w - h["lr"] * step, new


def asgd(opt: Any, w: Tensor, s: Tensors, G: Tensor, h: Tensors, t: int, root: Root) -> Stepped:
    eta, mu = s["eta"], s["mu"]
    new_w = w - eta * (prepared(opt, w, G, h)[1] + h["lambd"] * w)
    return new_w, {
        "eta": h["lr"] / (1 + h["lambd"] * h["lr"] * t) ** h["alpha"],
        "mu": 1 / torch.maximum(t - h["t0"], torch.ones_like(h["t0"])),
        "ax": (1 - mu) * s["ax"] + mu * new_w,
    }


def rprop(opt: Any, w: Tensor, s: Tensors, G: Tensor, h: Tensors, t: int, root: Root) -> Stepped:
    g = -G if opt.maximize else G
    agree = torch.sign(g * s["prev"])
    factor = torch.ones_like(w).where(agree == 0, h["etaplus"].where(agree > 0, h["etaminus"]))
    size = torch.maximum(s["step_size"] * factor, h["step_size_min"])
    size = torch.minimum(size, h["step_size_max"]).to(w.dtype)
    g = g.where(agree >= 0, 0.0)
    return w - torch.sign(g) * size, {"prev": g, "step_size": size}


def lion(opt: Any, w: Tensor, s: Tensors, G: Tensor, h: Tensors, t: int, root: Root) -> Stepped:
    decayed, g = prepared(opt, w, G, h)
    c = h["beta1"] * s["exp_avg"] + (1 - h["beta1"]) * g
    return decayed - h["lr"] * torch.sign(c), {"exp_avg": h["beta2"] * s["exp_avg"] + (1 - h["beta2"]) * g}


def sparse_adam(opt: Any, w: Tensor, s: Tensors, G: Tensor, h: Tensors, t: int, root: Root) -> Stepped:
    g = -G if opt.maximize else G
    m, new = averages(s, g, h)
    rate = h["lr"] * (1 - h["beta2"] ** t) ** 0.5 / (1 - h["beta1"] ** t)
    moved = w - rate * m / (root(new["exp_avg_sq"]) + h["eps"])
    new = {"exp_avg": m, **new}
    return moved.where(g != 0, w), {slot: v.where(g != 0, s[slot]) for slot, v in new.items()}


def lamb(opt: Any, w: Tensor, s: Tensors, G: Tensor, h: Tensors, t: int, root: Root) -> Stepped:
    m, new = averages(s, -G if opt.maximize else G, h)
    c1, c2 = (1 - h["beta1"] ** t, 1 - h["beta2"] ** t) if opt.bias_correction else (1.0, 1.0)
    u = m / c1 / (root(new["exp_avg_sq"] / c2 + h["eps_root"]) + h["eps"]) + h["weight_decay"] * w
    size = root((w**2).sum())
    if opt.norm_limit is not None:
        size = torch.minimum(size, torch.full_like(size, opt.norm_limit))
    length = root((u**2).sum())
    positive = (size > 0) & (length > 0)
    ratio = torch.where(positive, size / length.where(positive, 1.0), 1.0)
    return w - h["lr"] * ratio * u, {"exp_avg": m, **new}


def adafactor(opt: Any, w: Tensor, s: Tensors, G: Tensor, h: Tensors, t: int, root: Root) -> Stepped:
    decayed, g = prepared(opt, w, G, h)
    one = torch.ones_like(h["d"])
    eps1 = one * torch.finfo(w.dtype).eps if opt.eps1 is None else h["eps1"]
    share = t ** h["beta2_decay"]
    rho = torch.minimum(h["lr"], one.new_tensor(t**-0.5).to(h["lr"]))
    alpha = torch.maximum(h["eps2"], root((w**2).sum() / max(w.numel(), 1)).to(h["eps2"])) * rho
    if "variance" in s:
        v = (1 - share) * s["variance"] + share * g**2
        new = {"variance": v}
    else:
        row = (1 - share) * s["row_var"] + share * (g**2).mean(-1, keepdim=True)
        column = (1 - share) * s["col_var"] + share * (g**2).mean(-2, keepdim=True)
        new = {"row_var": row, "col_var": column}
        v = row * column / torch.maximum(row.mean(-2, keepdim=True), eps1.to(w.dtype))
    u = g / root(torch.maximum(v, (eps1**2).to(w.dtype)))
    clip = torch.maximum(one, root((u**2).sum() / max(w.numel(), 1)).to(one) / h["d"])
    return decayed - (alpha / clip) * u, new


def muon(opt: Any, w: Tensor, s: Tensors, G: Tensor, h: Tensors, t: int, root: Root) -> Stepped:
    decayed, g = prepared(opt, w, G, h)
    b = h["momentum"] * s["momentum_buffer"] + (1 - h["momentum"]) * g
    x = h["momentum"] * b + (1 - h["momentum"]) * g if opt.nesterov else b
    tall = w.shape[0] > w.shape[1]
    x = x.t() if tall else x
    norm = root((x**2).sum())
    x = x / torch.maximum(norm, h["eps"].to(norm))
    for _ in range(opt.ns_steps):  # on singular values: x → a x + b x³ + c x⁵
        cube = x @ x.t() @ x
        x = h["ns_a"] * x + h["ns_b"] * cube + h["ns_c"] * (x @ x.t() @ cube)
    rows, columns = w.shape
    matched = opt.adjust_lr_fn == "match_rms_adamw"
    scale = 0.2 * math.sqrt(max(rows, columns)) if matched else math.sqrt(max(1.0, rows / columns))
    return decayed - h["lr"] * scale * (x.t() if tall else x), {"momentum_buffer": b}


TORCH_RULES = {
    "NAdam": nadam,
    "RAdam": radam,
    "Adamax": adamax,
    "Adadelta": adadelta,
    "RMSprop": rmsprop,
    "ASGD": asgd,
    "Rprop": rprop,
    "Lion": lion,
    "SparseAdam": sparse_adam,
    "LAMB": lamb,
    "Adafactor": adafactor,
    "Muon": muon,
}


def rows_of(w: Tensor, h: Tensors) -> Tensor | None:
    return torch.zeros_like(w[..., :1]) if w.ndim > 1 and w.numel() else None


def columns_of(w: Tensor, h: Tensors) -> Tensor | None:
    return torch.zeros_like(w[..., :1, :]) if w.ndim > 1 and w.numel() else None


STARTS: dict[tuple[str, str], Callable[[Tensor, Tensors], Tensor | None]] = {
    ("NAdam", "mu_product"): lambda w, h: torch.ones_like(h["beta1"] + h["momentum_decay"]),
    ("ASGD", "eta"): lambda w, h: h["lr"] + 0 * (h["lambd"] + h["alpha"]),
    ("ASGD", "mu"): lambda w, h: torch.ones_like(h["t0"]),
    ("Rprop", "step_size"): lambda w, h: torch.zeros_like(w) + h["lr"],
    ("Adafactor", "row_var"): rows_of,
    ("Adafactor", "col_var"): columns_of,
    ("Adafactor", "variance"): lambda w, h: torch.zeros_like(w) if w.ndim < 2 or not w.numel() else None,
}
