"""Is a meta-gradient right? Oracles independent of the engine, one a file, and the report."""

from gimli_core.verification.check import Check, Verdict
from gimli_core.verification.report import Report
from gimli_core.verification.verify import verify

__all__ = ["Check", "Report", "Verdict", "verify"]
