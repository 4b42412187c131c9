"""Circuits to draw, made by hand, and the browser that pages are opened in."""

import os
import shutil

import numpy as np
import pandas as pd
import pytest

import graphs
from graphs.circuit import Circuit

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
SWITCHES = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
HOSTILE = [
    "<script>alert(1)</script>",
    "</script><script>window.hit=1</script>",
    "<b>bold</b>",
    "<img src=x onerror=window.hit=1>",
    "&amp;",
    "$x^2$",
    "\u2028",
    "مرحبا",
    "東京都の首都",
    "a\nb",
    "supercalifragilistic" * 4,
]


def circuit(words=None, seed=0, layers=4, features=12, outputs=2, edges=60, labels=(), errors=3):
    """A random circuit: words, features labelled at random, errors, outputs, edges upward."""
    draw = np.random.default_rng(seed)
    words = list(words or ["the", "capital", "of", "Dallas", "is"])
    last = len(words) - 1
    rows = [("token", -1, p, -1, word, "") for p, word in enumerate(words)]
    for n in range(features):
        p = int(draw.integers(len(words)))
        label = str(draw.choice(labels)) if len(labels) else ""
        rows.append(("feature", int(draw.integers(layers)), p, n, words[p], label))
    for layer in range(min(errors, layers)):
        rows.append(("error", layer, last, -1, words[last], ""))
    rows += [("logit", layers, last, n, f" out{n}", "") for n in range(outputs)]
    nodes = pd.DataFrame(rows, columns=["kind", "layer", "position", "feature", "token", "label"])
    count = len(nodes)
    weight = np.where(nodes["kind"] == "logit", 1 / outputs, 0.0)
    influence = np.where(weight > 0, weight, draw.lognormal(size=count) / 20)
    nodes = nodes.assign(activation=1.0, influence=influence, node=np.arange(count), weight=weight)
    nodes = nodes.assign(value=1.0, rest=0.0)
    return Circuit(nodes, _edges(nodes, edges, draw), graphs.Scores(0.41, 0.71), settings(words))


def settings(words):
    return {
        "prompt": " ".join(words),
        "tokens": words,
        "model": "hand-made",
        "dictionary": "random",
        "predictions": [[" out0", 0, 0.5], [" out1", 1, 0.001]],
        "pruned": {"nodes": 0.8, "edges": 0.98},
    }


def _edges(nodes, count, draw):
    layer, position = nodes["layer"].to_numpy(), nodes["position"].to_numpy()
    upward = (layer[:, None] < layer) & (position[:, None] <= position)
    upward &= nodes["kind"].isin(["feature", "logit"]).to_numpy()
    source, target = np.nonzero(upward)
    chosen = np.sort(draw.permutation(len(source))[:count])
    weight = draw.normal(0.5, 1, len(chosen))
    edges = pd.DataFrame({"source": source[chosen], "target": target[chosen], "weight": weight})
    size = np.abs(weight)
    share = size / max(size.sum(), 1e-9)
    return edges.assign(share=share, direct=size / size.sum() if len(size) else share)


def evidence(label="Texas", word="Dallas"):
    return {
        "label": label,
        "names": [{"name": label, "score": 0.9, "share": 0.81, "tokens": [word]}],
        "promotes": [[" Texas", 3.1], [" Austin", 2.0]],
        "suppresses": [[" Ohio", -1.2]],
        "promotes_through_attention": [[" Houston", 0.5]],
        "contexts": [{"tokens": ["the", "city", word, "lies"], "at": 2, "activation": 9.5}],
        "density": 0.004,
        "histogram": {"edges": [0.0, 1.0, 2.0, 4.0, 8.0, 16.0], "counts": [0, 90, 9, 1, 0]},
        "max": 9.5,
    }


def browser_path():
    """The system's Chromium or Chrome. In CI there must be one."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None and os.environ.get("CI"):
        pytest.fail("no Chromium is installed; .ci/run installs one (apt-get install chromium).")
    if found is None:
        pytest.skip("needs Chromium (Debian: apt-get install chromium)")
    return found
