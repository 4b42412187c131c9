"""The top functions: `train` on a host's activations, `fit` on activations given as tensors."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from replacement.dictionary import Dictionary
from replacement.host import Host
from replacement.training.buffer import Buffer, Shape
from replacement.training.corpus import Chunks, label, open_corpus
from replacement.training.folder import RunFolder, open_folder
from replacement.training.generated import SelfGenerated, generated
from replacement.training.harvest import Harvester, Sample
from replacement.training.normal import fold
from replacement.training.parallel import Ranks, joined
from replacement.training.settings import Settings
from replacement.training.trainer import Metrics, Trainer, restored, start

Progress = Callable[[Metrics], Any] | None
_SAMPLES = 4096  # positions from which means, scales and the first weights are estimated


def train(
    host: Host,
    corpus: Any,
    settings: Settings,
    out: str | Path | None = None,
    progress: Progress = None,
    resume: bool = False,
) -> Dictionary:
    """Train a dictionary for a host on a corpus, on one device or on those of `torchrun`.

    corpus: the path of a text file (a document a line) or of a JSONL file (field "text"), a list
        of paths, the name of a Hugging Face dataset, an iterable of texts or of lists of token
        ids, or `SelfGenerated()`: text sampled from the host.
    out: a folder for the log, checkpoints and the dictionary; nothing is written without it.
    progress: called with the `Metrics` of every step, on the first rank.
    resume: go on from the newest checkpoint in `out`, if there is one.
    """
    ranks = joined(host.device)
    with flushed():
        source = _source(host, corpus, settings, ranks)
        folder = _folder(out, host, corpus, settings, ranks, resume)
        buffer = _buffer(host, source, settings, ranks, folder)
        trainer = _begin(buffer, settings, ranks, folder)
        _run(trainer, buffer, folder, progress)
        return _finish(trainer, host.name, folder)


def fit(
    read: Float[Tensor, "layers positions d_model"],
    write: Float[Tensor, "layers positions d_model"],
    settings: Settings,
    progress: Progress = None,
) -> Dictionary:
    """Train a dictionary on what layers read and wrote, without a host."""
    layers, positions, width = read.shape
    bound = Shape(layers, width, read.dtype, read.device, 0, 0).bytes(positions)
    shape = Shape(layers, width, read.dtype, read.device, bound, positions)
    with flushed():
        source = Given(torch.stack([read, write]).permute(2, 0, 1, 3))
        buffer = Buffer(shape, source, (settings.seed, 0))
        trainer = _begin(buffer, settings, Ranks(), None)
        _run(trainer, buffer, None, progress)
        return _finish(trainer, "fitted", None)


@dataclass(frozen=True, eq=False)
class Given:
    """A buffer's source: the same positions again at every fill."""

    values: Float[Tensor, "positions 2 layers d_model"]

    def samples(self, positions: int) -> Iterator[Sample]:
        """All of them."""
        yield Sample(torch.zeros(len(self.values), dtype=torch.long), self.values)

    def place(self) -> dict[str, int]:
        """There is but one."""
        return {}

    def seek(self, place: Mapping[str, int]) -> None:
        """There is nowhere else to go."""


@contextmanager
def flushed() -> Iterator[None]:
    """Denormal numbers count as zero: dead features hold many, each a hundred times as slow."""
    already = bool((torch.full((1,), 1e-40) * 1 == 0).all())
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(already)


def _source(host: Host, corpus: Any, settings: Settings, ranks: Ranks) -> Harvester:
    for site in (settings.read, settings.write):
        if f"blocks.0.{site}" not in host.bridge.hook_dict:
            raise ValueError(f"{host.name} has no activation {site!r} to train on.")
    if isinstance(corpus, SelfGenerated):
        documents = generated(host, corpus, settings, ranks)
    else:
        documents = open_corpus(corpus, ranks)
    return Harvester(host, Chunks(host, documents, settings.length), settings)


def _folder(
    out: str | Path | None, host: Host, corpus: Any, settings: Settings, ranks: Ranks, resume: bool
) -> RunFolder | None:
    if out is None:
        return None
    about = {"host": host.name, "corpus": label(corpus), "settings": asdict(settings)}
    return open_folder(Path(out).expanduser(), ranks, about, resume)


def _buffer(
    host: Host, source: Harvester, settings: Settings, ranks: Ranks, folder: RunFolder | None
) -> Buffer:
    batch, bound = ranks.share(settings.batch), settings.buffer_bytes
    needed = max(_SAMPLES, batch * settings.total)
    shape = Shape(host.n_layers, host.d_model, host.dtype, host.device, bound, needed)
    if shape.capacity < batch:
        raise ValueError(
            f"buffer_bytes={bound} holds {shape.capacity} positions of "
            f"{shape.bytes(1)} bytes, fewer than a batch; give {shape.bytes(8 * settings.batch)}."
        )
    file = None
    if settings.buffer_on_disk:
        if folder is None:
            raise ValueError("buffer_on_disk=True needs out=, the folder that it is kept in.")
        file = folder.path / f"buffer-{ranks.rank}"
    return Buffer(shape, source, (settings.seed, ranks.rank), settings.even, file)


def _begin(buffer: Buffer, settings: Settings, ranks: Ranks, folder: RunFolder | None) -> Trainer:
    """From the newest checkpoint, or from the first samples."""
    found = folder.restore(buffer) if folder is not None else None
    if found is not None:
        return restored(settings, *found, ranks)
    return start(settings, *buffer.look(_SAMPLES), ranks)


def _run(trainer: Trainer, buffer: Buffer, folder: RunFolder | None, progress: Progress) -> None:
    settings, ranks = trainer.settings, trainer.ranks
    share = ranks.share(settings.batch)
    while trainer.step < settings.total:
        metrics = trainer.advance(*buffer.take(share))
        last = trainer.step == settings.total
        if folder is not None:
            if metrics.step % settings.log_every == 0 or last:
                folder.log(metrics)
            if trainer.step % settings.checkpoint_every == 0 or last:
                folder.checkpoint(trainer, buffer)
        if progress is not None and ranks.first:
            progress(metrics)


def _finish(trainer: Trainer, name: str, folder: RunFolder | None) -> Dictionary:
    label = f"{name} {trainer.settings.kind} {trainer.settings.activation}"
    dictionary = fold(trainer.coder, trainer.normal, trainer.settings, trainer.floors, label)
    if folder is not None:
        folder.save(dictionary)
    return dictionary
