"""phi_opt, checked by its kind; what each value means is read in meta_parameters/."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gimli_core.errors import unexpected

__all__ = ["check_phi_opt"]


def check_phi_opt(phi_opt: Any) -> Mapping[str, Any]:
    """phi_opt, or an empty dict."""
    if phi_opt is not None and not isinstance(phi_opt, Mapping):
        do = "For example {'lr': lr}."
        raise unexpected("phi_opt", "a dict {hyperparameter: value}", type(phi_opt).__name__, do)
    return phi_opt or {}
