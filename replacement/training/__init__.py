"""Training of transcoders (per-layer, skip, cross-layer) on what a host reads and writes.

Top function: `train`. Without a host, `fit` trains on activations that are given as tensors.
"""

from replacement.training.generated import SelfGenerated
from replacement.training.settings import Settings
from replacement.training.train import fit, train

__all__ = ["SelfGenerated", "Settings", "fit", "train"]
