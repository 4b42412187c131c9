"""A run's folder: its log, its checkpoints and at the end its dictionary.

training.jsonl     one JSON object per logged step
checkpoints/       the newest checkpoint
dictionary/        the result, as `replacement.formats` saves it
"""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from replacement.dictionary import Dictionary
from replacement.training import checkpoint
from replacement.training.buffer import Buffer
from replacement.training.parallel import Ranks
from replacement.training.trainer import Metrics, Trainer

_LOG, _CHECKPOINTS, _RESULT = "training.jsonl", "checkpoints", "dictionary"


@dataclass(frozen=True)
class RunFolder:
    """Where a run is written; `about` is what must be the same for it to go on."""

    path: Path
    ranks: Ranks
    about: Mapping[str, Any]

    def restore(self, buffer: Buffer) -> tuple[dict[str, Tensor], int] | None:
        """The newest checkpoint's tensors and step; buffer and log go back to it."""
        newest = checkpoint.latest(self.path / _CHECKPOINTS)
        step = 0 if newest is None else int(newest.name)
        self._cut_log(step)
        if newest is None:
            return None
        tensors, state = checkpoint.read(newest, self.ranks, self.about, buffer.shape.device)
        buffer.load(state)
        return tensors, step

    def _cut_log(self, step: int) -> None:
        """Drop what was logged after the checkpoint, and a line that was cut short."""
        log = self.path / _LOG
        if not self.ranks.first or not log.exists():
            return
        lines = [(line, _step(line)) for line in log.read_text().splitlines()]
        kept = [line for line, own in lines if own is not None and own < step]
        scratch = log.with_suffix(".writing")
        scratch.write_text("".join(f"{line}\n" for line in kept))
        os.replace(scratch, log)

    def log(self, metrics: Metrics) -> None:
        """One line more."""
        if self.ranks.first:
            with (self.path / _LOG).open("a") as file:
                file.write(json.dumps(asdict(metrics), allow_nan=False) + "\n")

    def checkpoint(self, trainer: Trainer, buffer: Buffer) -> None:
        """Write a checkpoint in the place of the last."""
        checkpoint.write(self.path / _CHECKPOINTS, trainer, buffer, self.ranks, self.about)

    def save(self, dictionary: Dictionary) -> None:
        """Write the result."""
        from replacement.formats import save

        if self.ranks.first:
            save(dictionary, self.path / _RESULT, self.about)
        self.ranks.wait()


def open_folder(path: Path, ranks: Ranks, about: Mapping[str, Any], resume: bool) -> RunFolder:
    """The folder, made if need be; one that holds a run is refused unless it is to go on."""
    if path.exists() and not path.is_dir():
        raise ValueError(f"{path} is a file; name a folder.")
    used = [name for name in (_LOG, _CHECKPOINTS, _RESULT) if (path / name).exists()]
    if used and not resume:
        raise ValueError(
            f"{path} already holds a run ({', '.join(used)}); go on with it by resume=True "
            "(--resume), or name another folder."
        )
    ranks.wait()
    path.mkdir(parents=True, exist_ok=True)
    return RunFolder(path, ranks, about)


def _step(line: str) -> int | None:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return None
