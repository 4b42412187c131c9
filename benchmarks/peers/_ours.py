"""Our half: the same folder, opened and traced with the public names."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from _case import Case
from _compare import names
from safetensors.torch import load_file

import circuits
import circuits.tracing
import replacement
from circuits.expand import expand


@dataclass(frozen=True)
class Reading:
    """What is active on the prompt, at every position."""

    features: np.ndarray  # (active, 3): layer, position, feature
    activations: np.ndarray
    logits: np.ndarray

    def counts(self, case: Case) -> np.ndarray:
        """Active features per (layer, position)."""
        out = np.zeros((case.layers, case.tokens), int)
        np.add.at(out, tuple(self.features[:, :2].T), 1)
        return out

    def table(self):
        return names("feature", *self.features.T)


def load(case: Case, folder: Path, device: str) -> replacement.ReplacementModel:
    """The case's host and dictionary as a ReplacementModel."""
    read = _per_layer if case.kind == "per-layer" else _cross_layer
    layers = [read(case, layer, folder / "dictionary") for layer in range(case.layers)]
    host = replacement.Host.open(str(folder / "host"), device=device, dtype=torch.float32)
    dictionary = replacement.Dictionary(layers, read="mlp.hook_in", write="hook_mlp_out")
    return replacement.ReplacementModel(host, dictionary)


def reading(case: Case, model: replacement.ReplacementModel) -> Reading:
    """The features that are active, and the last position's logits."""
    run = model.run(case.ids)
    layers = model.read(run).layers
    found = [
        torch.stack([torch.full_like(part.features, index), part.positions, part.features], 1)
        for index, part in enumerate(layers)
    ]
    return Reading(
        torch.cat(found).cpu().numpy(),
        torch.cat([part.activations for part in layers]).cpu().numpy(),
        run.logits[-1].detach().cpu().numpy(),
    )


def trace(case: Case, model: replacement.ReplacementModel, budget: int):
    """The graph, and the seconds of all of it and of its attribution phase (see `expand`)."""
    attribution = 0.0

    def timed(*arguments: Any) -> Any:
        nonlocal attribution
        start = time.perf_counter()
        expansion = expand(*arguments)
        attribution += time.perf_counter() - start
        return expansion

    start, cpu = time.perf_counter(), time.process_time()
    with patch.object(circuits.tracing, "expand", timed):
        graph = circuits.trace(model, case.ids, budget=budget)
    wall = time.perf_counter() - start
    return graph, {"wall": wall, "attribution": attribution, "cpu": time.process_time() - cpu}


def _per_layer(case: Case, layer: int, folder: Path) -> replacement.Transcoder:
    arrays = load_file(folder / f"layer_{layer}.safetensors")
    return replacement.Transcoder(
        reader=arrays["W_enc"],
        writers={layer: arrays["W_dec"]},
        reader_bias=arrays["b_enc"],
        writer_biases={layer: arrays["b_dec"]},
        activation=replacement.TopK(case.active),
    )


def _cross_layer(case: Case, layer: int, folder: Path) -> replacement.Transcoder:
    arrays = load_file(folder / f"W_enc_{layer}.safetensors")
    writers = load_file(folder / f"W_dec_{layer}.safetensors")[f"W_dec_{layer}"].unbind(1)
    return replacement.Transcoder(
        reader=arrays[f"W_enc_{layer}"],
        writers={layer + i: writer.contiguous() for i, writer in enumerate(writers)},
        reader_bias=arrays[f"b_enc_{layer}"],
        writer_biases={layer: arrays[f"b_dec_{layer}"]},
        activation=replacement.JumpReLU(arrays[f"threshold_{layer}"]),
    )
