"""Trace: from a prompt to an attribution graph. `trace` is the method's table of contents."""

import importlib.metadata
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

import graphs
from circuits.expand import Expansion, expand
from circuits.local import Local, freeze
from circuits.targets import Explained, Target, resolve
from replacement.host import Run
from replacement.model import ReplacementModel

BUDGET = 4096


@contextmanager
def _full_precision() -> Iterator[None]:
    """Matrix products in true float32, whatever the caller has set: edges are small differences."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@torch.no_grad()
@_full_precision()
def trace(
    model: ReplacementModel,
    prompt: str | Sequence[int] | Tensor,
    targets: Target | Sequence[Target] | None = None,
    budget: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> graphs.AttributionGraph:
    """Explain what a model predicts after a prompt.

    `targets` says what to explain: by default the likely next tokens; else one or more of a
    token's text or id, `Token`, `Difference`, `Direction`, `Feature`, `Likely`. `budget` is how
    many features may have a row of their own (4096 unless given): when all active features fit,
    the graph is complete; otherwise those of the largest influence are chosen and the effects of
    the others summed into the remainder. `progress(done, total)` is told how many rows are done.
    """
    budget = _check_budget(budget)
    run = model.run(prompt)
    _check_finite(run, model)
    reading = model.read(run)
    local = freeze(model, run, reading)
    run = run.only("ln_final.hook_out")
    explained = resolve(targets, model.host, run, local)
    expansion = expand(local, explained, budget, progress or (lambda done, total: None))
    asked = {
        "prompt": prompt if isinstance(prompt, str) else model.host.text(run.ids),
        "budget": budget,
        "outputs": [list(output.tokens) for output in explained.outputs],
        **_predicted(model, run, explained),
    }
    return _assemble(model, run, local, explained, expansion, asked)


def _check_budget(budget: int | None) -> int:
    if budget is not None and budget < 1:
        raise ValueError(f"budget={budget} must be at least 1; {BUDGET} features is usual.")
    return BUDGET if budget is None else int(budget)


def _check_finite(run: Run, model: ReplacementModel) -> None:
    if not bool(torch.isfinite(run.logits).all()):
        raise ValueError(
            f"{model.host.name} computes NaN or infinite logits on this prompt; "
            "open it with dtype=torch.float32."
        )


def _assemble(
    model: ReplacementModel,
    run: Run,
    local: Local,
    explained: Explained,
    expansion: Expansion,
    asked: dict[str, Any],
) -> graphs.AttributionGraph:
    """Rows, node table and settings as one graph."""
    nodes = pd.concat(
        [_sources(run, local, expansion), _outputs(run, local, explained)], ignore_index=True
    )
    labels, evidence = _known(model, run, nodes)
    columns = expansion.rows.shape[1]
    outputs = len(explained.outputs)
    own = torch.searchsorted(expansion.kept, expansion.expanded).numpy()
    values = torch.cat([layer.values for layer in local.reading.layers]).cpu().double()
    weights = np.zeros(len(expansion.rows))
    weights[:outputs] = [o.weight for o in explained.outputs]
    for number, weight in explained.features:
        weights[outputs + int((expansion.expanded == number).nonzero()[0, 0])] = weight
    return graphs.assemble(
        nodes=nodes.assign(label=labels),
        edges=expansion.rows.cpu().numpy(),
        targets=np.concatenate([columns + np.arange(outputs), own]),
        sources=np.arange(columns),
        values=np.concatenate([explained.values(run), values[expansion.expanded].numpy()]),
        weights=weights,
        scale=expansion.scale.cpu().numpy(),
        settings=asked | _settings(model, run, local, expansion),
        evidence=evidence,
    )


def _known(
    model: ReplacementModel, run: Run, nodes: pd.DataFrame
) -> tuple[list[str], dict[str, Any]]:
    """What is known of the nodes' features: each one's label on its token, and all evidence."""
    known = model.evidence
    if known is None:
        return [""] * len(nodes), {}
    feature = (nodes["kind"] == "feature").tolist()
    places = list(zip(nodes["layer"], nodes["feature"], strict=True))
    labels = [
        known.label(*place, run.ids[position]) if own else ""
        for own, place, position in zip(feature, places, nodes["position"], strict=True)
    ]
    own = {place for place, kept in zip(places, feature, strict=True) if kept}
    return labels, {graphs.feature_key(*place): known.describe(*place) for place in sorted(own)}


def _sources(run: Run, local: Local, expansion: Expansion) -> pd.DataFrame:
    """The nodes that have a column: features, errors, tokens, remainder, bias."""
    t, layers = local.positions, len(local.layers)
    kept = expansion.kept
    feature = torch.cat([layer.features for layer in local.reading.layers]).cpu()[kept].numpy()
    activation = torch.cat([r.activations for r in local.reading.layers]).cpu().double()[kept]
    position = local.feature_positions[kept].numpy()
    errors = 0 if local.errors is None else layers * t
    parts = [
        _nodes("feature", local.feature_layers[kept].numpy(), position, feature, activation),
        _nodes("error", np.arange(errors) // t, np.arange(errors) % t),
        _nodes("token", np.full(t, -1), np.arange(t)),
        _nodes("remainder", np.arange(layers), np.full(layers, -1)),
        _nodes("bias", np.array([-1]), np.array([-1])),
    ]
    nodes = pd.concat(parts, ignore_index=True)
    texts = np.array([*run.tokens, ""], dtype=object)  # position -1 has no token
    nodes["token"] = texts[nodes["position"].to_numpy()]
    return nodes


def _outputs(run: Run, local: Local, explained: Explained) -> pd.DataFrame:
    outputs = explained.outputs
    nodes = _nodes(
        "logit",
        np.full(len(outputs), len(local.layers)),
        np.array([o.position for o in outputs], dtype=np.int64),
        np.array([o.index for o in outputs], dtype=np.int64),
        np.array(explained.values(run)),
    )
    nodes["token"] = np.array([o.name for o in outputs], dtype=object)
    return nodes


def _nodes(
    kind: str,
    layer: np.ndarray,
    position: np.ndarray,
    feature: np.ndarray | int = -1,
    activation: np.ndarray | Tensor | float = float("nan"),
) -> pd.DataFrame:
    count = len(layer)
    return pd.DataFrame(
        {
            "kind": np.full(count, kind, dtype=object),
            "layer": layer.astype(np.int64),
            "position": position.astype(np.int64),
            "feature": np.broadcast_to(np.asarray(feature, dtype=np.int64), count),
            "token": np.full(count, "", dtype=object),
            "activation": np.broadcast_to(np.asarray(activation, dtype=np.float64), count),
        }
    )


def _predicted(model: ReplacementModel, run: Run, explained: Explained) -> dict[str, Any]:
    """The likely tokens after the position whose prediction is explained (else the last)."""
    last = len(run.ids) - 1
    position = explained.outputs[0].position if explained.outputs else last
    likely = run.logits[position].softmax(-1).topk(min(10, model.host.vocabulary))
    predictions = [
        [model.host.token(i), i, float(p)]
        for p, i in zip(likely.values, likely.indices.tolist(), strict=True)
    ]
    return {"predictions": predictions, "predicted_at": position}


def _settings(
    model: ReplacementModel, run: Run, local: Local, expansion: Expansion
) -> dict[str, Any]:
    """What made the graph, for the file and the reader."""
    packages = ("torch", "transformers", "transformer-lens")
    return {
        "model": model.host.name,
        "dictionary": model.dictionary.name,
        "tokens": run.tokens,
        "token_ids": run.ids,
        "n_layers": len(local.layers),
        "active": local.active,
        "expanded": len(expansion.expanded),
        "complete": len(expansion.expanded) == local.active,
        "versions": {name: importlib.metadata.version(name) for name in packages},
    }
