"""The same graph to the bit, in this process and in another; and the host is left as it was."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hosts import PROMPT, build, dictionary, host, model

import circuits
import replacement
from replacement import Host, ReplacementModel, TopK

TESTS = Path(__file__).parent
CASES = [("gemma2", "cross-skip", None), ("mixtral", "neurons", 40), ("gpt2", "relu", 25)]


def fingerprint(graph) -> str:
    """A digest of every number and name of a graph."""
    digest = hashlib.sha256()
    for array in (graph.edges, graph.targets, graph.sources, graph.values, graph.weights):
        digest.update(np.ascontiguousarray(array).tobytes())
    digest.update(np.ascontiguousarray(graph.scale).tobytes())
    for name in graph.nodes:
        digest.update(repr(graph.nodes[name].tolist()).encode())
    digest.update(repr(sorted(graph.settings.items())).encode())
    return digest.hexdigest()


def fingerprints() -> list[str]:
    return [
        fingerprint(circuits.trace(model(family, kind), PROMPT, budget=budget))
        for family, kind, budget in CASES
    ]


def test_twice_here_and_once_elsewhere():
    here = fingerprints()
    assert len(set(here)) == len(CASES)
    assert fingerprints() == here
    code = "import test_circuits_determinism as t; print(*t.fingerprints())"
    path = os.pathsep.join([str(TESTS), str(TESTS.parent)])
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert done.stdout.split() == here


def test_a_changed_number_would_be_seen():
    graph = circuits.trace(model("gpt2", "relu"), PROMPT, budget=25)
    before = fingerprint(graph)
    edges = graph.edges.copy()
    edges[0, 0] = np.nextafter(edges[0, 0], np.float32(1))
    assert fingerprint(type(graph)(**{**vars(graph), "edges": edges})) != before


def state(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def same(one, other):
    assert one.keys() == other.keys()
    return all(torch.equal(one[name], other[name]) for name in one)


def hooks(bridge):
    """Every hook on every module, transformer-lens's own lists included."""
    found = []
    for module in bridge.modules():
        for name in ("fwd_hooks", "bwd_hooks"):
            found += list(getattr(module, name, []))
        for name in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks"):
            found += list(getattr(module, name).values())
    return found


@pytest.mark.parametrize("kind", ["cross-skip", "neurons"])
@pytest.mark.parametrize("family", ["gpt2", "gemma2", "phi3", "olmoe"])
def test_the_host_is_left_as_it_was(family, kind):
    traced = model(family, kind)
    bridge = traced.host.bridge
    weights, before = state(bridge.original_model), traced.run(PROMPT).logits
    attached = len(hooks(bridge))
    circuits.trace(traced, PROMPT)
    circuits.trace(traced, PROMPT, budget=10)
    traced.replaced(PROMPT)
    assert same(weights, state(bridge.original_model))
    assert torch.equal(before, traced.run(PROMPT).logits)
    assert len(hooks(bridge)) == attached


@pytest.mark.parametrize("family", ["gpt2", "gemma3", "mixtral", "phi3"])
def test_a_model_object_is_left_as_it_was(family):
    mine = build(family)
    mine.set_attn_implementation("sdpa")
    weights, kinds = state(mine), [type(m) for m in mine.modules()]
    with torch.no_grad():
        before = mine(torch.tensor([PROMPT])).logits
    opened = Host.open(mine)
    circuits.trace(replacement.load(opened), PROMPT, budget=10)
    assert same(weights, state(mine))
    assert [type(m) for m in mine.modules()] == kinds
    assert mine.config._attn_implementation == "sdpa"
    assert not hooks(mine)
    with torch.no_grad():
        assert torch.equal(mine(torch.tensor([PROMPT])).logits, before)


def test_a_host_in_another_precision_leaves_the_object_in_its_own():
    mine = build("llama")
    opened = Host.open(mine, dtype=torch.float64)
    assert opened.dtype == torch.float64 and mine.dtype == torch.float32
    graph = circuits.trace(replacement.load(opened), PROMPT, budget=10)
    assert graph.edges.dtype == np.float64 and graph.discrepancy < 1e-9


class Interrupted(Exception):
    """What a host, a user or a full disk may raise in the middle."""


def interrupt(*args, **kwargs):
    raise Interrupted


@pytest.mark.parametrize("act", ["trace", "replaced", "run"])
def test_no_hook_is_left_after_an_exception(act):
    traced = ReplacementModel(Host.open(build("llama")), dictionary(3, TopK(5)))
    bridge = traced.host.bridge
    good = circuits.trace(traced, PROMPT)
    attached = len(hooks(bridge))
    handle = bridge.blocks[2].mlp.register_forward_pre_hook(interrupt)
    with pytest.raises(Interrupted):
        if act == "trace":
            circuits.trace(traced, PROMPT)
        elif act == "replaced":
            traced.replaced(PROMPT)
        else:
            traced.run(PROMPT)
    handle.remove()
    assert len(hooks(bridge)) == attached
    again = circuits.trace(traced, PROMPT)
    assert fingerprint(again) == fingerprint(good)


def test_an_interrupted_trace_can_be_made_again():
    traced = model("llama", "relu")
    good = circuits.trace(traced, PROMPT, budget=70)

    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        circuits.trace(traced, PROMPT, budget=70, progress=stop)
    assert fingerprint(circuits.trace(traced, PROMPT, budget=70)) == fingerprint(good)


def test_the_callers_settings_come_back():
    before = torch.get_float32_matmul_precision(), torch.is_grad_enabled()
    try:
        torch.set_float32_matmul_precision("high")
        circuits.trace(model("llama", "topk"), PROMPT, budget=5)
        with pytest.raises(ValueError, match="budget"):
            circuits.trace(model("llama", "topk"), PROMPT, budget=0)
        assert torch.get_float32_matmul_precision() == "high"
        assert torch.is_grad_enabled()
    finally:
        torch.set_float32_matmul_precision(before[0])


def test_a_dictionary_is_copied_and_its_owner_keeps_his():
    mine = dictionary(3, TopK(5))
    mine.layers[0].reader.requires_grad_(True)
    traced = ReplacementModel(host("llama", torch.float64), mine)
    graph = circuits.trace(traced, PROMPT)
    assert mine.layers[0].reader.requires_grad and mine.layers[0].reader.dtype == torch.float32
    pd.testing.assert_frame_equal(graph.nodes, circuits.trace(traced, PROMPT).nodes)
