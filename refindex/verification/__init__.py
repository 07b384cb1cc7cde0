"""Whether an archive is right: its manifest, its sources, and its values beside those of the originals."""

from refindex.verification.result import Kind, Problem, Stage, Uncompared, Verification, VerificationInterrupted

__all__ = ["Kind", "Problem", "Stage", "Uncompared", "Verification", "VerificationInterrupted"]
