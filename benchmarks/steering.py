"""What do interventions and a monitor cost while a model generates?

    python benchmarks/steering.py --out steering.json

Continues a prompt on two hosts, Atlas with its own dictionary and SmolLM2 with its neurons: as it
is, with ten features changed everywhere, with ten watched, and with both. The ten are active on
the prompt, from ten layers or as many as there are. Before anything is timed, the steered tokens
must be those of uncached runs, and the watched ones those of the unwatched run. Times are medians
over repeats that take turns, as one machine is not equally fast throughout.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import measure
import numpy as np

import replacement
from replacement import Monitor, Rule, Scale

CASES = {
    "atlas": ("the capital of the state containing Dallas is", None, 40),
    "smollm2": ("The capital of Texas is", "neurons", 40),
}
TEN, REPEATS, CHECKED = 10, 7, 8


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, metavar="FILE", help="where the figures go, as JSON")
    parser.add_argument("--only", choices=list(CASES), help="one host instead of both")
    return parser.parse_args()


def ten(model: Any, prompt: str) -> list[tuple[int, int]]:
    """Features active on the prompt, from different layers as far as there are."""
    draw = np.random.default_rng(0)
    readings = model.features(model.run(prompt))
    layers = [i * len(readings) // TEN for i in range(TEN)]
    found = []
    for layer in sorted(set(layers)):
        active = sorted(set(readings[layer].features.tolist()))
        chosen = draw.choice(active, layers.count(layer), replace=False)
        found += [(layer, int(feature)) for feature in chosen]
    return found


def uncached(model: Any, prompt: str, interventions: Any) -> list[int]:
    """Greedy, each token from a run of the whole text so far."""
    ids = model.host.tokenize(prompt)
    for _ in range(CHECKED):
        ids = [*ids, int(model.run(ids, interventions).logits[-1].argmax())]
    return ids


def case(name: str) -> dict[str, Any]:
    prompt, dictionary, new = CASES[name]
    model = replacement.load(name, dictionary=dictionary, device="cpu")
    chosen = ten(model, prompt)
    changed = [Scale(chosen, 1.5)]
    monitor = Monitor(model, [Rule(feature, 0.0) for feature in chosen])
    ways: dict[str, Callable[[], Any]] = {
        "plain": lambda: model.generate(prompt, max_new_tokens=new, stop=()),
        "steered": lambda: model.generate(prompt, changed, max_new_tokens=new, stop=()),
        "watched": lambda: monitor.generate(prompt, max_new_tokens=new, stop=()),
        "both": lambda: monitor.generate(
            prompt, interventions=changed, max_new_tokens=new, stop=()
        ),
    }
    texts = {way: generate() for way, generate in ways.items()}
    ids = {way: text.ids for way, text in texts.items()}
    length = texts["plain"].prompt_length + CHECKED
    if ids["steered"][:length] != uncached(model, prompt, changed):
        raise SystemExit(f"wrong answer: {name}'s cached tokens are not those of uncached runs.")
    if ids["plain"] != ids["watched"] or ids["steered"] != ids["both"]:
        raise SystemExit(f"wrong answer: {name} writes otherwise when it is watched.")
    seconds = timed(ways)
    milliseconds = {way: 1000 * spent / new for way, spent in seconds.items()}
    return {
        "tokens": new,
        "features": chosen,
        "firings": len(texts["watched"].firings),
        "ms_a_token": milliseconds,
        "ratio": {way: spent / milliseconds["plain"] for way, spent in milliseconds.items()},
    }


def timed(ways: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """The median time of each, in turns."""
    spent: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(REPEATS):
        for way, generate in ways.items():
            start = time.perf_counter()
            generate()
            spent[way].append(time.perf_counter() - start)
    return {way: statistics.median(times) for way, times in spent.items()}


def show(result: dict[str, Any]) -> None:
    for name, found in result["cases"].items():
        print(f"{name}, {TEN} features, {found['tokens']} tokens, {found['firings']} firings")
        for way, milliseconds in found["ms_a_token"].items():
            print(f"    {way:8} {milliseconds:6.2f} ms a token  {found['ratio'][way]:.2f}x")


def main() -> None:
    options = arguments()
    names = [options.only] if options.only else list(CASES)
    result = {"cases": {name: case(name) for name in names}, "machine": measure.describe()}
    if options.out is not None:
        options.out.write_text(json.dumps(result, indent=2) + "\n")
    show(result)


if __name__ == "__main__":
    main()
