"""Checkpoints: all that the rest of a run depends on, whole or not at all.

A checkpoint is a folder named by its step. It is filled under another name and then renamed, so
that a folder of the right name is complete whenever the process was killed. The buffer is not in
it: each rank notes where in the corpus its present fill began, and harvests that fill again.
"""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from replacement.training.buffer import Buffer
from replacement.training.parallel import Ranks
from replacement.training.trainer import Trainer

FORMAT, VERSION = "transcoder-training", "1"
_TENSORS, _HEAD = "state.safetensors", "checkpoint.json"


def write(
    folder: Path, trainer: Trainer, buffer: Buffer, ranks: Ranks, about: Mapping[str, Any]
) -> None:
    """Write a checkpoint of all ranks into `folder`, then remove the one before it."""
    scratch = folder / f"writing-{trainer.step:09d}"
    if ranks.first:
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
    ranks.wait()
    _write_json(scratch / f"rank-{ranks.rank}.json", buffer.state())
    if ranks.first:
        save_file(trainer.state(), scratch / _TENSORS)
        _sync(scratch / _TENSORS)
        head = {"format": FORMAT, "version": VERSION, "step": trainer.step, "world": ranks.world}
        _write_json(scratch / _HEAD, {**head, **about})
    ranks.wait()
    if ranks.first:
        done = folder / f"{trainer.step:09d}"
        shutil.rmtree(done, ignore_errors=True)
        os.replace(scratch, done)
        _sync(folder)
        for old in folder.iterdir():
            if old != done:
                shutil.rmtree(old)
    ranks.wait()


def latest(folder: Path) -> Path | None:
    """The newest complete checkpoint."""
    found = sorted(path for path in folder.glob("*") if path.name.isdigit())
    return found[-1] if found else None


def read(
    path: Path, ranks: Ranks, about: Mapping[str, Any], device: torch.device
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The trainer's tensors and this rank's buffer state; refused unless it is the same run."""
    try:
        head = json.loads((path / _HEAD).read_text())
        _check(path, head, {"format": FORMAT, "version": VERSION, "world": ranks.world, **about})
        buffer = json.loads((path / f"rank-{ranks.rank}.json").read_text())
        # Copies: in the file's own map they are aligned otherwise, and products round otherwise.
        tensors = load_file(path / _TENSORS)
        return {name: tensor.clone().to(device) for name, tensor in tensors.items()}, buffer
    except (OSError, SafetensorError, json.JSONDecodeError) as error:
        raise ValueError(
            f"the checkpoint {path} is damaged ({error}); remove it and train again."
        ) from error


def _check(path: Path, head: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    for name, value in wanted.items():
        found = head.get(name)
        if isinstance(value, Mapping) and isinstance(found, Mapping):
            _check(path, found, value)
        elif found != value:
            raise ValueError(
                f"{name} was {found!r} in {path} and is {value!r} now; resume a run as it was "
                "begun, or train into a new folder."
            )


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1, allow_nan=False))
    _sync(path)


def _sync(path: Path) -> None:
    """Onto the disk, so that a rename does not overtake what it renames."""
    if os.name == "nt" and path.is_dir():
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
