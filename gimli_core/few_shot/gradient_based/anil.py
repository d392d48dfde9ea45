"""ANIL: Raghu, Raghu, Bengio & Vinyals 2020, "Rapid learning or feature reuse? Towards understanding … MAML"."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from gimli_core.errors import unexpected
from gimli_core.few_shot.gradient_based.adapting import Adapting
from gimli_core.notation import Tensors
from gimli_core.optimizers import SGD

__all__ = ["Anil"]


class Anil(Adapting):
    """Almost no inner loop: only the last linear layer adapts, and is theta; all before it is phi_loss.

    So the head learns by B_0 and the body by A_loss, its explicit part included.

    Args:
        learner, steps, test_steps, objective: as in `Adapting`.
        lr: of the inner SGD.
    """

    def __init__(self, learner: nn.Module, lr: float = 0.4, steps: int = 1, **arguments: Any) -> None:
        super().__init__(learner, SGD(lr=lr), steps, **arguments)
        linear = [name for name, module in learner.named_modules() if isinstance(module, nn.Linear)]
        if not linear:
            do = "Give a network with `outputs`."
            raise unexpected("learner", "a network that ends in a linear layer", "none in it", do)
        self._head = f"{linear[-1]}."

    def theta_0(self) -> Mapping[str, Tensor]:
        return {k: v for k, v in self.learner.named_parameters() if k.startswith(self._head)}

    def meta_parameters(self) -> dict[str, Any]:
        return {"phi_loss": {k: v for k, v in self.learner.named_parameters() if not k.startswith(self._head)}}

    def weights(self, theta: Tensors, phi_loss: Tensors, j: Tensor) -> Tensors:
        return {**phi_loss, **theta}
