"""A long prompt on a small machine: 2,048 tokens, 12 layers of 256, 8,192 chosen features.

    python benchmarks/length.py --out length.json
    python benchmarks/length.py --tokens 512 --budget 2048

Trace, scores and pruning run in a process of their own, whose peak memory is reported. The books
must balance and some rows agree with autograd, or one line says so and there are no figures.
Exit status 1 if the peak is not below the limit.
"""

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path

import measure
import numpy as np

LIMIT = 4.0  # GB
CHECKED = 4  # rows compared with autograd, beside the likeliest token's


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, metavar="FILE", help="where the figures go, as JSON")
    parser.add_argument("--tokens", type=int, default=2048, help="length of the prompt (2048)")
    parser.add_argument("--budget", type=int, default=8192, help="chosen features (8192)")
    return parser.parse_args()


def run(case: measure.Case, budget: int) -> dict:
    """Trace, score and prune; then, with time and memory taken, verify."""
    import circuits

    model = case.model()
    seconds, peaks = {}, {"opened": measure.peak_memory()}

    def timed(name, call):
        start = time.perf_counter()
        result = call()
        seconds[name] = time.perf_counter() - start
        peaks[name] = measure.peak_memory()
        return result

    graph = timed("trace", lambda: circuits.trace(model, case.ids, budget=budget))
    scores = timed("scores", graph.scores)
    circuit = timed("prune", graph.prune)
    chosen = np.random.default_rng(0).choice(len(graph.targets), CHECKED, replace=False)
    return {
        "checks": measure.verify(case, graph, [0, *chosen.tolist()]),
        "active": graph.settings["active"],
        "rows": len(graph.targets),
        "columns": len(graph.sources),
        "edges_gb": measure.edges(graph).nbytes / 1e9,
        "scores": scores._asdict(),
        "circuit": {"nodes": len(circuit.nodes), "edges": len(circuit.edges)},
        "seconds": seconds,
        "peak_gb": {name: peak / 1e9 for name, peak in peaks.items()},
        "machine": measure.describe(),
    }


def show(result: dict) -> None:
    print(
        f"{result['case']['tokens']} tokens, {result['active']} active features, edges "
        f"{result['rows']} x {result['columns']} ({result['edges_gb']:.2f} GB)\n"
        f"books to {result['checks']['discrepancy']:.0e}, "
        f"edges equal to autograd's to {result['checks']['autograd']:.0e}"
    )
    print(f"{'':10}{'seconds':>10}{'peak GB':>10}")
    for name, peak in result["peak_gb"].items():
        seconds = result["seconds"].get(name)
        print(f"{name:10}{'' if seconds is None else f'{seconds:.1f}':>10}{peak:>10.2f}")


def main() -> None:
    options = arguments()
    case = measure.Case("per-layer", options.tokens)
    result = {"case": asdict(case), **measure.isolated(run, case, options.budget)}
    if options.out is not None:
        options.out.write_text(json.dumps(result, indent=2) + "\n")
    show(result)
    peak = max(result["peak_gb"].values())
    if peak >= LIMIT:
        raise SystemExit(f"the peak is {peak:.2f} GB; it must be below {LIMIT:g} GB.")


if __name__ == "__main__":
    main()
