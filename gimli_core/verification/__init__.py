"""Is a meta-gradient right? Oracles independent of the engine, one a file, and the report."""

from gimli_core.verification.report import Check, Report, Verdict
from gimli_core.verification.verify import verify

__all__ = ["Check", "Report", "Verdict", "verify"]
