"""How Atlas is made, from its table of facts to its dictionaries: `python -m replacement.atlas`."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from replacement import formats
from replacement.atlas import facts
from replacement.atlas.dictionaries import PARTS, train_dictionary
from replacement.atlas.features import write_evidence
from replacement.atlas.sentences import sentences
from replacement.atlas.tokenizer import tokenizer, vocabulary
from replacement.atlas.training import Recipe, train_host
from replacement.formats.folder import whole_folder
from replacement.host import Host
from replacement.training.train import flushed

FOLDER = Path(__file__).parent
_FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
)


def build(out: Path = FOLDER, say: Callable[[str], Any] = print) -> None:
    """Make host and dictionaries anew from the world and from seeds; about an hour on two cores."""
    world = facts.load()
    said = sentences(world)
    words = tokenizer(vocabulary(world, said))
    with flushed():
        model = train_host(words, said, Recipe(), _host_progress(say))
        save(model, words, out / "model")
        for kind, parts in PARTS.items():
            dictionary = train_dictionary(model, words, said, parts, _progress(kind, say))
            about = {"host": "atlas", "parts": [asdict(part) for part in parts]}
            formats.save(dictionary, out / kind, about, dtype=torch.float16)
    build_evidence(out, say)


def build_evidence(out: Path = FOLDER, say: Callable[[str], Any] = print) -> None:
    """Gather the evidence of both dictionaries anew, from the host in `out`; about a minute."""
    host, said = Host.open(out / "model", device="cpu"), sentences(facts.load())
    for kind in PARTS:
        write_evidence(host, out / kind, said, _gathered(kind, say))


def save(model: Any, words: Any, folder: Path) -> None:
    """Write the host as an ordinary Hugging Face folder, whole or not at all."""
    with whole_folder(folder, _FILES) as new:
        model.save_pretrained(new)
        words.save_pretrained(new)
        for file in new.iterdir():
            file.chmod(0o644)  # weights are written for their owner's eyes only


def _host_progress(say: Callable[[str], Any]) -> Callable[[int, float, Any], None]:
    def progress(step: int, loss: float, model: Any) -> None:
        if step % 100 == 0:
            say(f"host: step {step}, loss {loss:.4f}")

    return progress


def _gathered(kind: str, say: Callable[[str], Any]) -> Callable[[int, int | None], None]:
    def progress(done: int, total: int | None) -> None:
        if done % 3200 == 0:
            say(f"{kind}: evidence from {done} sentences")

    return progress


def _progress(kind: str, say: Callable[[str], Any]) -> Callable[[Any], None]:
    def progress(metrics: Any) -> None:
        if metrics.step % 250 == 0:
            say(f"{kind}: step {metrics.step}, fvu {metrics.fvu:.4f}, l0 {metrics.l0:.2f}")

    return progress
