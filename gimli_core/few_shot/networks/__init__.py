"""Networks of the few-shot papers, ordinary `nn.Module`s.

`NETWORKS[name](channels, size, outputs=…)` makes one for pictures [n, channels, size, size]. With `outputs=None` it is
an embedding, and ends before the linear layer. Batch norm is one of two (`statistics`):

    "batch"     statistics of the batch at hand, always: "training mode everywhere". In a test they are those of all
                queries together, which is transductive.
    "running"   `nn.BatchNorm2d` as usual: statistics of the training in the test.

For MAML++'s scales and shifts that differ from step to step see `gradient_based/maml_pp.py`.
"""

from collections.abc import Callable, Mapping

from torch import nn

from gimli_core.few_shot.networks.conv4 import conv4, strided_conv4, vgg
from gimli_core.few_shot.networks.densenet import densenet, densenet_bc
from gimli_core.few_shot.networks.resnet import resnet

__all__ = ["NETWORKS", "conv4", "densenet", "densenet_bc", "resnet", "strided_conv4", "vgg"]

NETWORKS: Mapping[str, Callable[..., nn.Module]] = {
    "conv4": conv4,
    "strided-conv4": strided_conv4,
    "vgg": vgg,
    "resnet-4": lambda *args, **named: resnet(*args, layers=1, **named),
    "resnet-8": lambda *args, **named: resnet(*args, layers=2, **named),
    "resnet-12": lambda *args, **named: resnet(*args, layers=3, **named),
    "densenet-8": densenet,
}
