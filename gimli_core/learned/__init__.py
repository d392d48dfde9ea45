"""Optimizers and losses that are networks, trained by the meta-gradient: rules as any other, of own parameters phi.

rule = gimli.learned.CoordinatewiseLSTM()
phi = rule.parameters(seed=0)                               # {name: tensor}, to be trained
loss = gimli.unroll(problem, theta_0, …, phi_opt={"net": phi})
"""

from gimli_core.learned.coordinatewise_lstm import CoordinatewiseLSTM
from gimli_core.learned.learned_loss import LearnedLoss
from gimli_core.learned.meta_lstm import MetaLSTM
from gimli_core.learned.mlp_rule import MLPRule
from gimli_core.learned.preprocessing import log_and_sign

__all__ = ["CoordinatewiseLSTM", "LearnedLoss", "MLPRule", "MetaLSTM", "log_and_sign"]
