"""Seed streams: one run seed, and from it a generator of its own for every place that draws.

Counting draws from one generator would tie every number to the order of all others; a stream named by stage and
index gives the same numbers whether the run was resumed, reordered or spread over a cluster.

Of a seed, torch's CPU generator takes the lower 32 bits: among n streams, two are the same with a chance of about
n² / 2³³, a thousandth of 3000 streams and a tenth of 30,000.
"""

import hashlib
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Seeds:
    """All randomness of a run. `Seeds(0).stream("segment", 7)` is the same generator on every machine."""

    seed: int

    def derive(self, stage: str, *index: int) -> int:
        """A 63-bit seed for this stage and index (SHA-256, so that neighbours share nothing)."""
        key = ":".join([str(self.seed), stage, *map(str, index)])
        return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") >> 1

    def stream(self, stage: str, *index: int) -> torch.Generator:
        """A fresh CPU generator for this stage and index, by the lower 32 bits of their seed."""
        return torch.Generator().manual_seed(self.derive(stage, *index))
