"""A real model: why does SmolLM2-135M say " Austin" after "The capital of Texas is"?

    python benchmarks/smollm2.py --out smollm2.json

Times the command line from a warm cache, in a process of its own. Then asks whether what the graph
points at matters: the ten neurons with the largest influence on " Austin" are set to zero, and the
fall of log p(" Austin") is compared with that of ten active neurons drawn at random from the same
layers, 50 times. Everything downstream of them recomputes; nothing is frozen. The books must
balance, and ablating nothing must change nothing, before any figure is given. Exit status 1 if
the command takes too long, does not report the token, or the neurons matter too little.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import measure
import numpy as np
import torch

import circuits
import replacement

PROMPT, TOKEN = "The capital of Texas is", " Austin"
TEN, DRAWS = 10, 50
SECONDS, RATIO = 60, 10  # the limits


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, metavar="FILE", help="where the figures go, as JSON")
    return parser.parse_args()


def command() -> dict[str, Any]:
    """`circuits trace` as a user runs it: its wall time and what it reports."""
    call = [sys.executable, "-m", "circuits.cli", "trace", PROMPT, "--model", "smollm2", "--json"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    start = time.perf_counter()
    done = subprocess.run(call, env=environment, stdout=subprocess.PIPE, text=True)
    seconds = time.perf_counter() - start
    if done.returncode:
        raise SystemExit(f"circuits trace failed with status {done.returncode}; see above.")
    report = json.loads(done.stdout)
    keys = ("predictions", "scores", "circuit_scores", "discrepancy", "active", "expanded")
    return {"seconds": seconds, **{key: report[key] for key in (*keys, "graph", "circuit")}}


Neuron = tuple[int, int, int]  # layer, position, number


def most_influential(graph: Any, first: int) -> list[Neuron]:
    """The ten neurons, at positions from `first` on, with the largest influence."""
    table = graph.nodes[(graph.nodes["kind"] == "feature") & (graph.nodes["position"] >= first)]
    table = table.nlargest(TEN, "influence")
    return list(table[["layer", "position", "feature"]].itertuples(index=False, name=None))


def draw(reading: Any, layers: list[int], generator: np.random.Generator) -> list[Neuron]:
    """Different active neurons of these layers, at random positions."""
    drawn = []
    for layer in sorted(set(layers)):
        part = reading.layers[layer]
        chosen = generator.choice(len(part.features), layers.count(layer), replace=False)
        drawn += [(layer, int(part.positions[i]), int(part.features[i])) for i in chosen]
    return drawn


def log_probabilities(model: Any, ids: list[int], token: int, groups: list[list[Neuron]]) -> Any:
    """log p(token) after the prompt, with each group of neurons in turn set to zero."""

    def ablate(layer: int) -> Any:
        mine = [(g, p, n) for g, group in enumerate(groups) for m, p, n in group if m == layer]
        where = torch.tensor(mine).T

        def hook(activations: torch.Tensor, hook: Any) -> torch.Tensor:
            activations = activations.clone()
            activations[tuple(where)] = 0
            return activations

        return f"blocks.{layer}.mlp.hook_post", hook

    hooks = [ablate(layer) for layer in sorted({m for group in groups for m, _, _ in group})]
    batch = torch.tensor([ids] * len(groups))
    with torch.no_grad():
        logits = model.host.bridge.run_with_hooks(batch, fwd_hooks=hooks)
    return logits[:, -1].double().log_softmax(-1)[:, token].numpy()


def ablation(model: Any) -> dict[str, Any]:
    """The fall of log p under the ten neurons' ablation, and under random ones'.

    Once for neurons anywhere, and once for those after the first token: what is computed there
    holds the attention sink, without which the model predicts nothing well.
    """
    graph = circuits.trace(model, PROMPT, targets=[TOKEN])
    if not graph.discrepancy <= measure.TOLERANCE:
        raise SystemExit(f"wrong answer: the books are off by {graph.discrepancy:.1e}.")
    run = model.run(PROMPT)
    return {
        "anywhere": fall(model, graph, run, 0, DRAWS),
        "after_first_token": fall(model, graph, run, 1, DRAWS),
    }


def fall(model: Any, graph: Any, run: Any, first: int, draws: int) -> dict[str, Any]:
    """The fall of log p of what a graph explains, of its ten neurons and of random ones."""
    token = int(graph.nodes.loc[graph.explained, "feature"].iloc[0])
    chosen, reading = most_influential(graph, first), model.read(run)
    generator = np.random.default_rng(0)
    random = [draw(reading, [m for m, _, _ in chosen], generator) for _ in range(draws)]
    found = log_probabilities(model, run.ids, token, [[], chosen, *random])
    if abs(found[0] - run.logits[-1].double().log_softmax(-1)[token]) > 1e-4:
        raise SystemExit("wrong answer: ablating nothing changed the prediction.")
    own, falls = float(found[0] - found[1]), found[0] - found[2:]
    size = float(np.abs(falls).mean())
    return {
        "neurons": [
            {"layer": m, "position": p, "token": run.tokens[p], "neuron": n} for m, p, n in chosen
        ],
        "log_p": float(found[0]),
        "fall": own,
        "random": {
            "mean": float(falls.mean()),
            "mean_size": size,
            "median_size": float(np.median(np.abs(falls))),
            "largest": float(falls.max()),
        },
        # Over the mean size: never larger than over the mean, where falls and rises cancel.
        "ratio": own / size,
    }


def show(result: dict[str, Any]) -> None:
    command = result["command"]
    likely = "  ".join(f"{p['token']!r} {p['probability']:.3f}" for p in command["predictions"][:5])
    print(f"command  {command['seconds']:.1f} s, books to {command['discrepancy']:.0e}")
    print(f"likely   {likely}")
    for name, found in result["ablation"].items():
        random = found["random"]
        print(
            f"{name.replace('_', ' ')}: log p({TOKEN!r}) = {found['log_p']:.2f} falls by "
            f"{found['fall']:.2f}, {found['ratio']:.0f} times as much as it changes for random "
            f"neurons (mean {random['mean_size']:.4f}, median {random['median_size']:.4f})"
        )
        names = (f"L{n['layer']}/{n['neuron']}@{n['token'].strip()}" for n in found["neurons"])
        print("    " + "  ".join(names))


def failures(result: dict[str, Any]) -> list[str]:
    """What is not as it should be, one line each."""
    command, ratio = result["command"], result["ablation"]["anywhere"]["ratio"]
    lines = []
    if command["seconds"] >= SECONDS:
        lines.append(f"the command took {command['seconds']:.0f} s; the limit is {SECONDS} s.")
    if TOKEN not in [p["token"] for p in command["predictions"]]:
        lines.append(f"{TOKEN!r} is not among the likely tokens.")
    if ratio < RATIO:
        lines.append(f"the ten neurons matter {ratio:.1f} times as much; at least {RATIO} wanted.")
    return lines


def main() -> None:
    options = arguments()
    model = replacement.load("smollm2", dictionary="neurons", device="cpu")  # fills the cache
    result = {"command": command(), "ablation": ablation(model), "machine": measure.describe()}
    if options.out is not None:
        options.out.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    show(result)
    if lines := failures(result):
        raise SystemExit("\n".join(lines))


if __name__ == "__main__":
    main()
