"""Random numbers that depend on a key alone, so that a checkpoint holds counters and no states."""

import hashlib
from typing import Any

import torch


def generator(*key: Any) -> torch.Generator:
    """A generator on the CPU, the same for the same key."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=7).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big"))
