"""The imperative inner loop: existing modules, optimizers and training loops, with exact meta-gradients.

    with innerloop_ctx(model, opt, copy_initial_weights=False) as (fmodel, diffopt):
        for x, y in train_batches:
            diffopt.step(loss(fmodel(x), y))         # in place of zero_grad, backward, step
        loss(fmodel(x_val), y_val).backward()        # the backward sweep; gradients arrive at `model`

Names, arguments and behaviour are those that scripts written for `higher` 0.2.1 rely on: such a script runs with
`import gimli_core.inner_loop as higher`. Each step is one forward step of the engine, G_j with its graph; backwards,
the optimizer's analytic pullback takes its place, and no graph is kept through the optimizer.

What differs from `higher` is in examples/guide/differences_from_higher.md; above all, updates and their derivatives
follow `torch.optim` (its Adam family did not), memory is released when the context ends, and what was silently ignored
is an error.
"""

from gimli_core.inner_loop import optim, patch, utils
from gimli_core.inner_loop.context import innerloop_ctx
from gimli_core.inner_loop.optim import create_diff_optim, get_diff_optim
from gimli_core.inner_loop.options import apply_trainable_opt_params, get_trainable_opt_params
from gimli_core.inner_loop.patch import monkeypatch
from gimli_core.inner_loop.rules import register_optim

__all__ = [
    "apply_trainable_opt_params",
    "create_diff_optim",
    "get_diff_optim",
    "get_trainable_opt_params",
    "innerloop_ctx",
    "monkeypatch",
    "optim",
    "patch",
    "register_optim",
    "utils",
]
