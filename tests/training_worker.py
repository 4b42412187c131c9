"""Training in another process, to be killed, or in two under torchrun. Not a test itself."""

import sys
import time
from pathlib import Path

import hosts
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from replacement.training import Settings, train
from replacement.training.parallel import joined
from replacement.training.trainer import Trainer, start

RUN = Settings(
    kind="cross-layer", features=48, activation="batchtopk", k=6, steps=120, batch=64,
    dead_after=20, even=True, length=12, prompts=8, buffer_bytes=200_000, checkpoint_every=20,
    log_every=3,
)  # fmt: skip


def documents() -> list[list[int]]:
    random = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 13, (300,), generator=random).tolist()
    return [torch.randint(3, hosts.VOCABULARY, (n,), generator=random).tolist() for n in lengths]


def advanced(trainer: Trainer, x: Tensor, y: Tensor, ranks: tuple[int, int]) -> Trainer:
    """Ten steps on batches of which this rank sees its share."""
    rank, world = ranks
    for step in range(10):
        rows = slice(step * 32 + rank, (step + 1) * 32, world)
        trainer.advance(x[:, rows], y[:, rows])
    return trainer


def slowly(out: Path) -> None:
    """A run that leaves time to kill it."""
    train(hosts.host("llama"), documents(), RUN, out, lambda _: time.sleep(0.02))


def together(out: Path) -> None:
    """Ten steps on given numbers, then a whole run."""
    given = load_file(out / "given.safetensors")
    x, y = given["x"], given["y"]
    chosen = Settings(features=24, k=3, steps=10, batch=32, dead_after=2)
    ranks = joined(torch.device("cpu"))
    assert ranks.world == 2
    # Each rank's samples are a half: what is estimated from them must be of the whole.
    half = slice(ranks.rank, None, 2)
    trainer = start(chosen, x[:, half], y[:, half], ranks)
    save_file(trainer.state(), out / f"begun-{ranks.rank}.safetensors")
    advanced(trainer, x, y, (ranks.rank, ranks.world))
    save_file(trainer.state(), out / f"rank-{ranks.rank}.safetensors")
    seen = []
    train(hosts.host("llama"), documents(), RUN, out / "run", seen.append)
    assert bool(seen) == ranks.first


if __name__ == "__main__":
    {"slowly": slowly, "together": together}[sys.argv[1]](Path(sys.argv[2]))
