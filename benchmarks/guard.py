"""The regression guard: ratios that do not depend on the machine, against a checked-in baseline.

    python benchmarks/guard.py --check      exit 1, a line for each ratio that got 25% worse
    python benchmarks/guard.py --update     measure again and write guard.json

Times are divided by those of the matrix products that no method of this kind can do without (or
by one pass over the edges), run in turns with what is measured, and the best of several turns
counts. All on one thread and in processor time, so that neither the number of cores nor what else
runs on them matters much. Peaks of memory are divided by the size of the edges. Every answer is
verified before it is timed. A ratio that looks worse is measured again before it fails the check.
"""

import argparse
import gc
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import measure
import numpy as np
import torch
from measure import Case

import circuits
from circuits.expand import expand
from circuits.local import freeze
from circuits.targets import resolve

BASELINE = Path(__file__).with_name("guard.json")
WORSE = 1.25
TURNS = 5  # of what is measured and what it is divided by
PASSES = 20  # over the edges in a turn: one alone is too short to time
AGAIN = 2  # times that a ratio is measured anew before it counts as worse

PER_LAYER = Case("per-layer", tokens=12, active=32)
CROSS_LAYER = Case("cross-layer", tokens=8, active=32, features=512)
NEURONS = Case("neurons", tokens=8, layers=6, mlp=128)
MANY = Case("neurons", tokens=8)  # 49,152 active, far more than are chosen
LONG = Case("per-layer", tokens=64, active=32)
ALL = 1 << 20


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--check", action="store_true", help="exit 1 if a ratio got 25%% worse")
    what.add_argument("--update", action="store_true", help="write what was measured to guard.json")
    parser.add_argument("--out", type=Path, metavar="FILE", help="where the figures go, as JSON")
    return parser.parse_args(given)


def turns(measured: Callable[[], object], reference: Callable[[], object]) -> float:
    """The best time of one over the best time of the other, taken in turns."""
    best = [float("inf"), float("inf")]
    for _ in range(TURNS):
        for index, call in enumerate((measured, reference)):
            start = time.process_time()
            call()
            best[index] = min(best[index], time.process_time() - start)
    return best[0] / best[1]


def sweep(case: Case, budget: int) -> float:
    """Time of all rows of a graph over the time of their matrix products alone."""
    torch.set_num_threads(1)
    model = case.model()
    graph = circuits.trace(model, case.ids, budget=budget)
    measure.verify(case, graph, [0, len(graph.targets) // 2])
    run = model.run(case.ids)
    reading = model.read(run)

    @torch.no_grad()
    def rows() -> None:
        local = freeze(model, run, reading)  # anew: what it keeps between sweeps is part of them
        expand(local, resolve(None, model.host, run, local), budget, lambda done, total: None)

    written = np.zeros((case.layers, case.tokens), int)
    for layer in reading.layers:
        for m in layer.writers:
            written[m] += np.bincount(layer.positions.numpy(), minlength=case.tokens)
    table = graph.nodes.loc[graph.targets]
    layers, positions = table["layer"].to_numpy(), table["position"].to_numpy()
    return turns(rows, products(case, written, layers, positions))


def products(
    case: Case, written: np.ndarray, layers: np.ndarray, positions: np.ndarray
) -> Callable[[], None]:
    """The matrix products for readers at these layers and positions; a logit's layer is the last
    plus one. `written` counts what features write at each (layer, position).

    All readers of a position go together, and down a layer at each position up to theirs they are
    read off and pulled through the output and value projections (at their own layer they are not
    read off, and pulled through the output projection at their own position only). Attention's
    mixing, the norms and all copying are left out: they are overhead.
    """
    shapes: list[tuple[int, int, int]] = []
    wide = case.width
    narrow = wide // case.heads * case.kv_heads
    for p in np.unique(positions).tolist():
        here = layers[positions == p]
        for m in reversed(range(case.layers)):
            above, live = int((here > m).sum()), int((here >= m).sum())
            shapes += [(above, wide, int(written[m, q]) + 1) for q in range(p + 1)]
            shapes.append((above * (p + 1) + live - above, wide, wide))
            shapes.append((live * (p + 1), narrow, wide))
        shapes += [(len(here), wide, 1)] * (p + 1)
    shapes = [shape for shape in shapes if shape[0]]

    def room(i: int, j: int) -> torch.Tensor:
        return torch.randn(max(shape[i] * shape[j] for shape in shapes))

    a, b, out = room(0, 1), room(1, 2), room(0, 2)

    def run() -> None:
        for m, k, n in shapes:
            left, right = a[: m * k].view(m, k), b[: k * n].view(k, n)
            torch.mm(left, right, out=out[: m * n].view(m, n))

    return run


def pruning() -> float:
    """Time of scoring and pruning over that of one pass over the edges."""
    torch.set_num_threads(1)
    graph = circuits.trace(PER_LAYER.model(), PER_LAYER.ids, budget=ALL)
    measure.verify(PER_LAYER, graph, [0])
    edges = measure.edges(graph)
    room = np.empty_like(edges)  # allotting it anew would take as long as the pass

    def passes() -> None:
        for _ in range(PASSES):
            np.abs(edges, out=room).sum()

    return turns(lambda: (graph.scores(), graph.prune()), passes) * PASSES


def peak(case: Case, budget: int) -> float:
    """Memory that a trace takes at its peak over the size of the graph's edges."""
    return measure.isolated(_peak, case, budget)


def _peak(case: Case, budget: int) -> float:
    model = case.model()
    circuits.trace(model, case.ids[:2], budget=16)  # what loads on first use is no part of it
    gc.collect()
    before = measure.memory()
    graph = circuits.trace(model, case.ids, budget=budget)
    taken = measure.peak_memory() - before
    measure.verify(case, graph, [0])
    return taken / measure.edges(graph).nbytes


RATIOS: dict[str, Callable[[], float]] = {
    "time per-layer / products": lambda: sweep(PER_LAYER, ALL),
    "time cross-layer / products": lambda: sweep(CROSS_LAYER, ALL),
    "time neurons / products": lambda: sweep(NEURONS, ALL),
    "time chosen neurons / products": lambda: sweep(MANY, 1024),
    "time scores and pruning / pass": pruning,
    "memory complete / edges": lambda: peak(PER_LAYER, ALL),
    "memory chosen / edges": lambda: peak(LONG, 4096),
}


def worse(baseline: dict[str, float], found: dict[str, float]) -> list[str]:
    """A line for each ratio that got worse, or that is not in both."""
    lines = [
        f"{name}: measured but not in guard.json; run --update."
        for name in found
        if name not in baseline
    ]
    for name, before in baseline.items():
        now = found.get(name)
        if now is None:
            lines.append(f"{name}: in guard.json but not measured; run --update.")
        elif not now <= before * WORSE:  # and not `now > ...`: that would let nan pass
            lines.append(f"{name}: {now:.2f}, {now / before - 1:+.0%} against {before:.2f}.")
    return lines


def measured(baseline: dict[str, float]) -> dict[str, float]:
    """All ratios; noise only makes them larger, so one that looks worse gets another chance."""
    found = {}
    for name, ratio in RATIOS.items():
        found[name] = ratio()
        for _ in range(AGAIN):
            if found[name] > WORSE * baseline.get(name, float("inf")):
                found[name] = min(found[name], ratio())
    return found


def show(baseline: dict[str, float], found: dict[str, float]) -> None:
    print(f"{'':34}{'baseline':>10}{'now':>10}")
    for name, value in found.items():
        before = f"{baseline[name]:.2f}" if name in baseline else ""
        print(f"{name:34}{before:>10}{value:>10.2f}")


def main(given: Sequence[str] | None = None) -> None:
    options = arguments(given)
    known = json.loads(BASELINE.read_text())["ratios"] if options.check else {}
    found = measured(known)
    text = json.dumps({"ratios": found, "machine": measure.describe()}, indent=2) + "\n"
    for path in (options.out, BASELINE if options.update else None):
        if path is not None:
            path.write_text(text)
    show(known, found)
    if options.check and (lines := worse(known, found)):
        raise SystemExit("\n".join(lines))


if __name__ == "__main__":
    main()
