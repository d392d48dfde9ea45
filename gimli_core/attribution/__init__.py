"""Which training examples made a model good or bad at what: scores [k, N] of k queries and N examples, and their trial.

scores = gimli.attribution.scores(problem, theta_0, batches, queries, phi_loss={"w": gimli.indexed(torch.ones(N))})
trial = gimli.attribution.leave_out(problem, theta_0, batches, queries, scores, phi_loss=…)     # retrains; LDS
"""

from gimli_core.attribution.influence import influence_scores
from gimli_core.attribution.leave_out import LeaveOut, leave_out
from gimli_core.attribution.metasmoothness import Metasmoothness, metasmoothness
from gimli_core.attribution.scores import Scores, scores

__all__ = [
    "LeaveOut",
    "Metasmoothness",
    "Scores",
    "influence_scores",
    "leave_out",
    "metasmoothness",
    "scores",
]
