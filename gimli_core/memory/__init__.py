"""Memory schedules: what is kept of a run, and what is computed again. They emit actions and touch no tensor."""

from gimli_core.memory.schedules.actions import Schedule
from gimli_core.memory.schedules.budget import Budget
from gimli_core.memory.schedules.checkpoint import Checkpoint
from gimli_core.memory.schedules.retain_graphs import RetainGraphs
from gimli_core.memory.schedules.store_states import StoreStates

__all__ = ["Budget", "Checkpoint", "RetainGraphs", "Schedule", "StoreStates"]
