"""Trace one random host with circuit-tracer 0.5.0 and with ours, compare, then time.

    python benchmarks/peers/circuit_tracer.py --out peer.json
    python benchmarks/peers/circuit_tracer.py --out peer.json --peer-batch 32
    python benchmarks/peers/circuit_tracer.py --out peer.json --budget 4096
    python benchmarks/peers/circuit_tracer.py --out peer.json --kind cross-layer
    python benchmarks/peers/circuit_tracer.py --out peer.json --tokens 128 --budget 1024
    python benchmarks/peers/circuit_tracer.py --out peer.json --quick

The peer runs first, in an environment of its own that the first call makes; then ours, in this
process, on the same folder and the same number of threads. When the two disagree, one line says
so, the exit status is 1 and no timing is reported.
"""

import argparse
import json
import os
import subprocess
import tempfile
from dataclasses import asdict
from pathlib import Path

import _case
import _compare
import _environment
import _machine
import _ours
import torch
from safetensors.numpy import load_file

COMPLETE = 16_384  # active features up to which --budget all is the default
WORKER = Path(__file__).with_name("_circuit_tracer_worker.py")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--out", type=Path, required=True, metavar="FILE.json", help="where the figures go")
    add("--quick", action="store_true", help="a small host: checks the script, measures nothing")
    add("--tokens", type=int, default=11, help="length of the prompt (11)")
    add("--kind", choices=_case.KINDS, default="per-layer", help="the dictionary (per-layer)")
    add("--budget", help="features to expand: N or all (all up to 16,384 active, else 2048)")
    add("--venv", type=Path, default=_environment.default_folder(), help="the peer's environment")
    add("--peer-batch", type=int, metavar="N", help="the peer's batch_size (512, its default)")
    add("--device", choices=("cpu", "cuda"), default="cpu", help="where both run (cpu)")
    options = parser.parse_args()
    if options.tokens < 2:
        parser.error(f"--tokens {options.tokens} must be at least 2: the peer drops position 0.")
    if options.budget not in (None, "all") and not options.budget.isdecimal():
        parser.error(f"--budget {options.budget} must be a number or all.")
    return options


def budget_of(asked: str | None, case: _case.Case) -> int | None:
    """Features to expand, None for all of them."""
    if asked is None:
        asked = "all" if case.layers * case.tokens * case.active <= COMPLETE else "2048"
    return None if asked == "all" else int(asked)


def batch_of(asked: int | None, tokens: int) -> int:
    """Copies of the prompt in the peer's backward pass. Its default is 512; with that, a prompt of
    128 tokens would need 100 GB, so longer prompts get as many as keep batch * tokens the same."""
    return asked or max(16, min(512, 512 * 11 // tokens))


def run_peer(case: _case.Case, python: Path, folder: Path, options: argparse.Namespace):
    """The peer's arrays and report."""
    batch = batch_of(options.peer_batch, case.tokens)
    request = {
        "case": {**asdict(case), "ids": case.ids},
        "budget": budget_of(options.budget, case),
        "batch": batch,
        "interval": max(1, 2048 // batch),  # features between rankings: the default, 4 * 512
        "threads": torch.get_num_threads(),
        "device": options.device,
    }
    (folder / "request.json").write_text(json.dumps(request))
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    worker = subprocess.run([str(python), "-I", str(WORKER)], cwd=folder, env=environment)
    if worker.returncode:
        raise SystemExit(f"the peer failed with status {worker.returncode}; see above.")
    report = json.loads((folder / "peer.json").read_text())
    return load_file(folder / "peer.safetensors"), report


def compare(case, reading, graph, arrays, complete: bool) -> dict:
    """Same host, same features, same targets, same edges; or stop."""
    peer = _compare.peer_table(arrays, case.layers, case.tokens)
    ours = _compare.our_table(graph)
    active = _compare.names("feature", *arrays["active"].T)
    _compare.same("active features", _compare.shared(reading.table()), active)
    values = reading.activations[reading.table().get_indexer(active)]
    logit = _compare.KINDS.index("logit")
    targets = [t.rows[t.rows.get_level_values(0) == logit] for t in (ours, peer)]
    _compare.same("logits to explain", *targets)
    rows = _compare.shared(ours.rows)
    if complete:
        _compare.same("selected nodes", rows, peer.rows)
        _compare.same("sources", _compare.shared(ours.columns), _compare.shared(peer.columns))
    return {
        "logits": _compare.close("logits", _compare.relative(reading.logits, arrays["output"])),
        "activations": _compare.close(
            "activations", _compare.relative(values, arrays["activations"])
        ),
        "rows": {"ours_shared": len(rows), "peer": len(peer.rows)},
        "edges": _compare.edge_differences(ours, peer),
    }


def summary(rows: int, seconds: dict[str, float]) -> dict:
    return {"rows": rows, "seconds": seconds, "rows_per_second": rows / seconds["attribution"]}


def figures(case, reading, graph, seconds: dict[str, float], peer: dict, device: str) -> dict:
    """Both speeds, their ratios, and what the machine's own products would allow."""
    targets = graph.nodes.iloc[graph.targets]
    layers, positions = targets["layer"].to_numpy(), targets["position"].to_numpy()
    first = int(((positions == 0) & (layers < case.layers)).sum())
    counts = reading.counts(case)
    ideal, rates = (
        _machine.ideal(case, counts, layers, positions),
        _machine.rates(case, counts, device),
    )
    ours = summary(len(targets), seconds) | {"rows_at_position_0": first}
    theirs = summary(peer["rows"], peer["seconds"]) | {k: peer[k] for k in ("batch", "versions")}
    without_first = (len(targets) - first) / seconds["attribution"]
    return {
        "ours": ours,
        "peer": theirs,
        "ratio": {
            "rows_per_second": ours["rows_per_second"] / theirs["rows_per_second"],
            "rows_per_second_without_position_0": without_first / theirs["rows_per_second"],
            "wall": theirs["seconds"]["wall"] / seconds["wall"],
        },
        "products": {
            "gflop": {k: v / 1e9 for k, v in ideal.items()},
            "gflop_per_second": {k: v / 1e9 for k, v in rates.items()},
            "share": _machine.shares(ideal, rates, seconds["attribution"]),
        },
    }


def benchmark(options: argparse.Namespace) -> dict:
    """Write the case, trace it with both, compare, time."""
    case = (_case.quick if options.quick else _case.full)(options.tokens, options.kind)
    budget = budget_of(options.budget, case)
    python = _environment.ensure(options.venv)
    load = [os.getloadavg()[0]] if hasattr(os, "getloadavg") else []
    with tempfile.TemporaryDirectory(prefix="peer-") as temporary:
        folder = Path(temporary) / "case"
        _case.write(case, folder)
        arrays, peer = run_peer(case, python, folder, options)
        model = _ours.load(case, folder, options.device)
        reading = _ours.reading(case, model)
        graph, seconds = _ours.trace(case, model, budget or len(reading.features))
        agreement = compare(case, reading, graph, arrays, budget is None)
    load += [os.getloadavg()[0]] if load else []
    return {
        "case": {**asdict(case), "budget": budget or "all", "active": len(reading.features)},
        # above the number of threads, something else was running and the timings are worthless
        "machine": _machine.describe(options.device) | {"load_before_and_after": load},
        "agreement": agreement,
        **figures(case, reading, graph, seconds, peer, options.device),
    }


def main() -> None:
    options = arguments()
    result = benchmark(options)
    options.out.write_text(json.dumps(result, indent=2) + "\n")
    ratio, share = result["ratio"], result["products"]["share"]
    print(
        f"edges equal to {result['agreement']['edges']['largest']:.1e}; "
        f"{result['ours']['rows_per_second']:.0f} rows/s against "
        f"{result['peer']['rows_per_second']:.0f}: {ratio['rows_per_second']:.1f} times, "
        f"{ratio['wall']:.1f} times in wall time; "
        f"{share['of_square_products']:.0%} of the machine's square products"
    )


if __name__ == "__main__":
    main()
