"""Do interventions do what a graph says? Atlas's concepts swapped, ablated and kept alone.

    python benchmarks/interventions.py --out interventions.json     # minutes on two cores

On questions of two hops that Atlas was never trained on, 200 of them, for each dictionary:

swap        the region's concept is exchanged for another region's, both found by name alone; how
            often the answer becomes the other region's, and with as many random features exchanged
influence   25 features of each prompt, drawn at random, ablated one at a time in the
            constrained regime: Spearman of influence and effect on what is explained, mean
kept alone  the largest pruned circuit of at most 40 concepts, everything else of the dictionary
            zero, what it missed constant: how often the answer stays. With attention patterns as
            they were, as a graph assumes, and with patterns that recompute. And of the circuit
            that pruning gives unless told otherwise.

And SmolLM2's neurons on 20 facts that it knows: by how much the log probability of the answer
falls when the ten most influential are ablated, anywhere and after the first token, beside ten
random active ones of the same layers, with bootstrap intervals of 95%.

Before anything counts: books must balance, ablating nothing must change nothing, all features let
through must give the model, and the direct regime must move what edges say. Exit status 1 if an aim
is missed; whether patterns that recompute reach it too is reported, not required, as a graph says
nothing of what patterns come from.
"""

import argparse
import json
import random
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import measure
import numpy as np
import pandas as pd
import smollm2

import circuits
import replacement
from circuits.agreement import concepts, correlation, singly
from circuits.rates import rate
from circuits.subject import Subject, subject
from circuits.sufficiency import PATTERNS, Alone
from replacement.atlas import facts
from replacement.atlas.sentences import Sentence, sentences

KINDS = ("per-layer", "cross-layer")
PROMPTS, SINGLE, CONCEPTS, SEED = 200, 25, 40, 0
SHARES = (0.999, 0.995, 0.99, 0.98, 0.95, 0.9, 0.8)  # of the influence, the largest circuit first
CHECKED = 5  # prompts whose edges are compared with the direct regime
CLOSE = 1e-5
# Figure -> at least, or where it is negative at most that without its sign.
AIMS = {"swap": 0.90, "random swap": -0.02, "influence": 0.72, "kept alone, patterns held": 0.90}
FACTS, DRAWS, RESAMPLES, BUDGET = 20, 20, 10_000, 1024
KNOWN = {
    " Paris": "The capital of France is", " Madrid": "The capital of Spain is",
    " Berlin": "The capital of Germany is", " Rome": "The capital of Italy is",
    " Tokyo": "The capital of Japan is", " Moscow": "The capital of Russia is",
    " Beijing": "The capital of China is", " Cairo": "The capital of Egypt is",
    " Athens": "The capital of Greece is", " London": "The capital of England is",
    " Lisbon": "The capital of Portugal is", " Dublin": "The capital of Ireland is",
    " Vienna": "The capital of Austria is", " Delhi": "The capital of India is the city of New",
    " France": "The Eiffel Tower is in Paris,", " York": "The Statue of Liberty is in New",
    " Shakespeare": "Romeo and Juliet was written by William", " Sun": "The Earth orbits the",
    " Einstein": "The theory of relativity was developed by Albert",
    " Newton": "The law of gravity was discovered by Isaac",
    " Pacific": "The largest ocean on Earth is the", " Africa": "Kenya is a country in East",
    " Texas": "Dallas is in the state of", " California": "Los Angeles is in the state of",
    " Darwin": "The theory of evolution was proposed by Charles",
    " States": "Washington is the capital of the United",
    " Armstrong": "The first man on the Moon was Neil", " Dick": "Herman Melville wrote Moby",
    " Sea": "Jordan and Israel share the Dead", " Kingdom": "London is the capital of the United",
    " oxygen": "Water is made of hydrogen and", " Europe": "France is a country in Western",
}  # fmt: skip

Say = Callable[[str], Any]


def held_out(world: Any) -> list[Sentence]:
    """Questions of two hops that are no training prompts, in an order drawn by seed."""
    kept = [s for s in sentences(world) if s.family == "two-hop" and s.held_out]
    random.Random(SEED).shuffle(kept)
    return kept[:PROMPTS]


def table(world: Any, said: Sequence[Sentence]) -> pd.DataFrame:
    """For each question another region of its kind, and what the answer would be there."""
    regions = {r.name: r for r in (*world.states, *world.countries)}
    draw, rows = random.Random(SEED), []
    for s in said:
        others = [
            r
            for r in regions.values()
            if type(r) is type(regions[s.topic]) and getattr(r, s.relation) != s.answer
        ]
        other = draw.choice(others)
        rows.append((s.prompt, s.topic, other.name, getattr(other, s.relation)))
    return pd.DataFrame(rows, columns=["prompt", "source", "target", "answer"])


def verify(found: Subject, alone: Alone) -> None:
    """Stop if the books, the direct regime or the model let through whole are off."""
    everything = found.features
    for patterns in PATTERNS:
        run = alone.run(everything, patterns)
        if float((run.logits - found.clean.run.logits).abs().max()) > 1e-3:
            raise SystemExit(f"wrong answer: all features, patterns {patterns}, are not the model.")
    if not found.graph.discrepancy <= measure.TOLERANCE:
        raise SystemExit(f"wrong answer: the books are off by {found.graph.discrepancy:.1e}.")
    for node in everything.nlargest(3, "influence").index:
        moved = found.change(np.array([node]), 0.0, "direct")
        column = int(np.flatnonzero(found.graph.sources == node)[0])
        gap = np.abs(moved + measure.edges(found.graph)[:, column]) / found.graph.scale
        if not gap.max() <= CLOSE:
            raise SystemExit(f"wrong answer: the direct regime is off by {gap.max():.1e}.")


def kept_alone(found: Subject, alone: Alone) -> dict[str, Any]:
    """Whether the answer stays with the largest circuit of at most so many concepts alone."""
    answer, row = found.answer(found.clean.run), {}
    pruned = (found.graph.prune(share) for share in SHARES)
    sized = ((len(c.concepts().nodes.query("kind == 'feature'")), c) for c in pruned)
    largest = next((size, c) for size, c in sized if size <= CONCEPTS)
    default = (len(concepts(found, CONCEPTS)), found.circuit)
    for name, (size, circuit) in (("kept alone", largest), ("default", default)):
        part = found.features.loc[found.features.index.isin(circuit.nodes["node"])]
        row |= {f"{name}: concepts": size, f"{name}: features": len(part)}
        for patterns in PATTERNS:
            kept, rest = (alone.run(part, patterns, kept=keep) for keep in (True, False))
            row[f"{name}, patterns {patterns}"] = found.answer(kept) == answer
            row[f"{name}, patterns {patterns}, without"] = found.answer(rest) == answer
    return row


def atlas(kind: str, say: Say) -> dict[str, Any]:
    """All figures of one dictionary of Atlas."""
    model = replacement.load("atlas", dictionary=kind, device="cpu")
    world = facts.load()
    said = held_out(world)
    swapped = circuits.swaps(model, table(world, said), SEED)
    say(f"{kind}: swap {swapped.success}; random {swapped.control}")
    rows, ranks, draw = [], [], np.random.default_rng(SEED)
    for number, s in enumerate(said):
        found = subject(model, circuits.trace(model, s.prompt), None)
        alone = Alone.of(model, found.clean)
        if number < CHECKED:
            verify(found, alone)
        single = singly(found, SINGLE, draw)
        ranks.append(correlation(single["influence"], single["effect"], "spearman"))
        right = model.host.token(found.answer(found.clean.run)).strip() == s.answer
        rows.append({"answered rightly": right, **kept_alone(found, alone)})
    rows = pd.DataFrame(rows)
    shares = [name for name in rows if rows[name].dtype == bool]
    sizes = [name for name in rows if rows[name].dtype != bool]
    return {
        "swap": swapped.success._asdict(),
        "random swap": swapped.control._asdict(),
        "influence": {"share": float(np.mean(ranks)), "prompts": len(ranks), **_bootstrap(ranks)},
        **{name: rate(int(rows[name].sum()), len(rows))._asdict() for name in shares},
        "sizes": {
            name: {"mean": rows[name].mean(), "most": int(rows[name].max())} for name in sizes
        },
    }


def _bootstrap(values: Any) -> dict[str, float]:
    """The interval of 95% confidence of a mean."""
    draw, values = np.random.default_rng(SEED), np.asarray(values)
    means = values[draw.integers(len(values), size=(RESAMPLES, len(values)))].mean(1)
    return {"low": float(np.quantile(means, 0.025)), "high": float(np.quantile(means, 0.975))}


def neurons(say: Say) -> dict[str, Any]:
    """The ten most influential neurons against ten random ones, on facts that SmolLM2 knows."""
    model = replacement.load("smollm2", dictionary="neurons", device="cpu")
    rows = []
    for answer, prompt in KNOWN.items():
        run = model.run(prompt)
        if len(rows) == FACTS or model.host.token(int(run.logits[-1].argmax())) != answer:
            continue
        graph = circuits.trace(model, prompt, [answer], budget=BUDGET)
        if not graph.discrepancy <= measure.TOLERANCE:
            raise SystemExit(f"wrong answer: the books are off by {graph.discrepancy:.1e}.")
        row: dict[str, Any] = {"prompt": prompt, "answer": answer}
        for name, first in (("anywhere", 0), ("after_first_token", 1)):
            found = smollm2.fall(model, graph, run, first, DRAWS)
            row[name] = {key: found[key] for key in ("log_p", "fall", "random")}
        rows.append(row)
        say(f"{prompt}{answer}: falls by {row['after_first_token']['fall']:.2f}")
    if len(rows) < FACTS:
        raise SystemExit(f"SmolLM2 answers only {len(rows)} of the facts rightly.")
    return {"prompts": rows, **{n: _falls(rows, n) for n in ("anywhere", "after_first_token")}}


def _falls(rows: Sequence[dict[str, Any]], name: str) -> dict[str, Any]:
    """Means over prompts, with their intervals."""
    falls = [row[name]["fall"] for row in rows]
    sizes = [row[name]["random"]["mean_size"] for row in rows]
    more = sum(row[name]["fall"] > row[name]["random"]["largest"] for row in rows)
    logs = np.log([fall / size for fall, size in zip(falls, sizes, strict=True) if fall > 0])
    ratio = {key: float(np.exp(value)) for key, value in _bootstrap(logs).items()}
    return {
        "fall": {"mean": float(np.mean(falls)), **_bootstrap(falls)},
        "random": {"mean_size": float(np.mean(sizes)), **_bootstrap(sizes)},
        "ratio": {"mean": float(np.exp(logs.mean())), **ratio, "prompts": len(logs)},
        "more than any random draw": rate(more, len(rows))._asdict(),
    }


def short(figures: dict[str, Any]) -> list[str]:
    """The aims that are missed, as sentences."""
    missed = []
    for kind in KINDS:
        for name, aim in AIMS.items():
            value = figures[kind][name]["share"]
            if value > -aim if aim < 0 else value < aim:
                missed.append(f"{kind}: {name} is {value:.3f}; the aim is {abs(aim)}")
    return missed


def show(figures: dict[str, Any]) -> None:
    for kind in KINDS:
        print(kind)
        for name, found in figures[kind].items():
            if name != "sizes":
                aim = f"  aim {abs(AIMS[name])}" if name in AIMS else ""
                span = f"({found['low']:.3f} to {found['high']:.3f})"
                print(f"    {name:40} {found['share']:.3f} {span}{aim}")
        for name, found in figures[kind]["sizes"].items():
            print(f"    {name:40} mean {found['mean']:.1f}, at most {found['most']}")
    for name in ("anywhere", "after_first_token"):
        found = figures["smollm2"][name]
        fall, ratio = found["fall"], found["ratio"]
        print(f"SmolLM2, ten neurons {name.replace('_', ' ')}, {FACTS} facts")
        print(f"    log p falls by {fall['mean']:.2f} ({fall['low']:.2f} to {fall['high']:.2f})")
        print(f"    random ones change it by {found['random']['mean_size']:.3f}")
        print(f"    ratio {ratio['mean']:.0f} ({ratio['low']:.0f} to {ratio['high']:.0f})")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, metavar="FILE", help="where the figures go, as JSON")
    asked = parser.parse_args()
    start = time.perf_counter()

    def say(line: str) -> None:
        print(f"{time.perf_counter() - start:5.0f} s  {line}", file=sys.stderr, flush=True)

    figures: dict[str, Any] = {kind: atlas(kind, say) for kind in KINDS}
    figures["smollm2"] = neurons(say)
    figures |= {"seconds": time.perf_counter() - start, "machine": measure.describe()}
    if asked.out is not None:
        asked.out.write_text(json.dumps(figures, indent=2, ensure_ascii=False) + "\n")
    show(figures)
    if missed := short(figures):
        raise SystemExit("\n".join(missed))


if __name__ == "__main__":
    main()
