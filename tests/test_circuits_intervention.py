"""Every edge against an intervention: with patterns and norms held, ablate a source and look.

Nothing is differentiated here. The host's own forward pass is run with its patterns and norms'
denominators replaced by what they were, and each MLP's output by what it was, less what the
ablated source wrote; what every target then reads has moved by minus its edge.
"""

import random
from contextlib import contextmanager, nullcontext
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hosts import DTYPES, FAMILIES, PROMPT, model

import circuits

CLOSE = {torch.float32: 1e-5, torch.float64: 1e-10}
SOURCES = 10
FROZEN = ("attn.hook_pattern", "ln1.hook_scale", "ln2.hook_scale", "ln1_post.hook_scale")
FROZEN = (*FROZEN, "ln2_post.hook_scale", "ln_final.hook_scale")


def record(bridge):
    with torch.no_grad():
        _, cache = bridge.run_with_cache(torch.tensor([PROMPT]))
    return {name: value.clone() for name, value in cache.items()}


def post_hoc(bridge):
    """GPT-J's attention shows its pattern only after it has used it: a hook cannot hold it."""
    return "GPTJ" in type(bridge.original_model).__name__


@contextmanager
def held_patterns(recorded):
    """Hold the patterns where they arise, layer after layer."""
    names = sorted(n for n in recorded if n.endswith("attn.hook_pattern"))
    patterns = [recorded[n] for n in names]
    with patch("torch.nn.functional.softmax", lambda *args, **kwargs: patterns.pop(0)):
        yield
    assert not patterns


def frozen_run(replaced, recorded, removed, token=None):
    """What each layer reads, and the final norm's output; `removed`: layer -> what is taken."""
    bridge, dictionary = replaced.host.bridge, replaced.dictionary
    seen, hooks = {}, []

    def keep(x, hook):
        seen[hook.name] = x[0].clone()

    def hold(x, hook):
        return recorded[hook.name]

    def write(m, read):
        def put(y, hook):
            out = recorded[hook.name][0] - removed.get(m, 0)
            if dictionary.layers[m].skip is not None:
                moved = reads[m]() - recorded[read][0]
                out = out + moved @ dictionary.layers[m].skip.T
            return out[None]

        return put

    def ablate(x, hook):
        x = x.clone()
        x[0, token] = 0
        return x

    reads = {}
    hooks += [(name, hold) for name in recorded if name.endswith(FROZEN)]
    for m in range(replaced.host.n_layers):
        read = f"blocks.{m}.{dictionary.read}"
        actual = bridge.hook_dict[read].name
        reads[m] = lambda actual=actual: seen[actual]
        hooks += [(read, keep), (f"blocks.{m}.{dictionary.write}", write(m, actual))]
    hooks.append(("ln_final.hook_out", keep))
    if token is not None:
        hooks.append(("blocks.0.hook_in", ablate))
    with torch.no_grad(), held_patterns(recorded) if post_hoc(bridge) else nullcontext():
        bridge.run_with_hooks(torch.tensor([PROMPT]), fwd_hooks=hooks)
    return [reads[m]() for m in reads], seen["ln_final.hook_out"]


def targets(replaced, graph, run):
    """All targets' readings in one run; neurons' readings are not linear and left out."""
    reads, final = run
    unembedding = replaced.host.bridge.unembed.original_component.weight.detach()
    values = np.full(len(graph.targets), np.nan)
    for row, node in enumerate(graph.nodes.iloc[graph.targets].itertuples()):
        if node.kind == "logit":
            reader = unembedding[node.feature] - unembedding.mean(0)
            values[row] = (final[node.position] @ reader).item()
        elif not replaced.dictionary.exact:
            layer = replaced.dictionary.layers[node.layer]
            values[row] = float(reads[node.layer][node.position] @ layer.reader[node.feature])
    return values


def removal(replaced, graph, column, errors):
    """What a source wrote: layer -> (positions, d_model)."""
    node = graph.nodes.iloc[graph.sources[column]]
    removed = {}
    if node["kind"] == "feature":
        for m, writer in replaced.dictionary.layers[node["layer"]].writers.items():
            out = torch.zeros(len(PROMPT), writer.shape[1], dtype=writer.dtype)
            out[node["position"]] = writer[node["feature"]] * node["activation"]
            removed[m] = out
    elif node["kind"] == "error":
        out = torch.zeros_like(errors[node["layer"]])
        out[node["position"]] = errors[node["layer"]][node["position"]]
        removed[node["layer"]] = out
    return removed, node["position"] if node["kind"] == "token" else None


def sources(graph, rows):
    """Columns drawn at random, of each kind, those that reach something in these rows."""
    draw, chosen = random.Random(1), []
    kinds = graph.nodes["kind"].to_numpy()[graph.sources]
    for kind in ("feature", "error", "token"):
        columns = [c for c in np.flatnonzero(kinds == kind) if graph.edges[rows, c].any()]
        chosen += draw.sample(columns, min(SOURCES if kind == "feature" else 3, len(columns)))
    return chosen


CASES = [(f, k) for f in FAMILIES for k in ("cross-skip", "jumprelu", "neurons")]


@pytest.mark.filterwarnings("ignore:A forward hook edited")
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize(("family", "kind"), CASES, ids=["-".join(c) for c in CASES])
def test_ablating_a_source_moves_each_target_by_minus_its_edge(family, kind, dtype):
    replaced = model(family, kind, dtype)
    graph = circuits.trace(replaced, PROMPT)
    recorded = record(replaced.host.bridge)
    before = targets(replaced, graph, frozen_run(replaced, recorded, {}))
    errors = replaced.read(replaced.run(PROMPT)).errors
    seen = ~np.isnan(before)
    assert seen.sum() == ((graph.weights > 0).sum() if kind == "neurons" else len(before))
    # Float32 readings of size one move by 1e-7 whatever the row's scale.
    floor = 0.1 * np.median(graph.scale) if dtype == torch.float32 else 0.0
    for column in sources(graph, seen):
        removed, token = removal(replaced, graph, column, errors)
        run = frozen_run(replaced, recorded, removed, token)
        moved = (targets(replaced, graph, run) - before)[seen]
        edge = graph.edges[seen, column]
        scale = np.maximum(graph.scale, floor)[seen]
        assert np.abs(edge).max() > 0
        assert (np.abs(moved + edge) <= CLOSE[dtype] * scale).all()


@pytest.mark.filterwarnings("ignore:A forward hook edited")
def test_the_freezing_is_needed():
    """Were patterns and norms let go, the same ablation would not fit: the hooks do hold them."""
    replaced = model("llama", "jumprelu", torch.float64)
    graph = circuits.trace(replaced, PROMPT)
    recorded = record(replaced.host.bridge)
    loose = {n: v for n, v in recorded.items() if not n.endswith(FROZEN)}
    column = sources(graph, slice(None))[-1]
    removed, token = removal(replaced, graph, column, None)
    assert token is not None
    gaps = []
    for held in (recorded, loose):
        before = targets(replaced, graph, frozen_run(replaced, held, {}))
        after = targets(replaced, graph, frozen_run(replaced, held, removed, token))
        gaps.append(np.abs(after - before + graph.edges[:, column]).max())
    assert gaps[0] < 1e-10 and gaps[1] > 1e-2
