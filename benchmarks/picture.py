"""How big a page is, how long it takes to open, and how smoothly it moves.

    python benchmarks/picture.py --out picture.json
    python benchmarks/picture.py --nodes 3000 --edges 20000

A random circuit is written as a page and opened in the system's Chromium, with no network and no
GPU. What it shows is counted in the drawn figure, at opening and with all edges asked for, or one
line says so and there are no figures. Exit status 1 if the file, its opening or its frames miss
what the page promises.
"""

import argparse
import json
import platform
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from graphs import Circuit, Scores

MEGABYTES, SECONDS, FRAME = 12.0, 3.0, 50.0  # a file's size, its opening, and 95% of the frames, ms
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
SWITCHES = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
LAYERS, WORDS, OUTPUTS = 18, 24, 10
COUNT = """() => {
  const drawn = document.getElementById("picture").data;
  const lines = drawn.filter((t) => t.mode === "lines" && t.meta.role !== "stack");
  const of = (kind) => lines.filter((t) => t.meta.of === kind);
  const pieces = (traces) => traces.reduce((n, t) => n + t.x.filter((x) => x === null).length, 0);
  return { nodes: pieces(of("nodes")), edges: pieces(of("edges")) };
}"""
PAINTED = "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
PAN = """() => new Promise((done) => {
  const frame = document.getElementById("frame");
  const times = [];
  let last = 0, step = 0;
  const next = (now) => {
    if (last) times.push(now - last);
    last = now;
    frame.scrollLeft = frame.scrollWidth * (0.5 + 0.4 * Math.sin(step / 15));
    frame.scrollTop = frame.scrollHeight * (0.3 + 0.3 * Math.cos(step / 20));
    if (++step < 150) requestAnimationFrame(next);
    else done(times);
  };
  requestAnimationFrame(next);
})"""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, metavar="FILE", help="where the figures go, as JSON")
    parser.add_argument("--nodes", type=int, default=3000, help="nodes of the circuit (3000)")
    parser.add_argument("--edges", type=int, default=20_000, help="edges of the circuit (20000)")
    return parser.parse_args()


def case(count: int, edges: int, seed: int = 0) -> Circuit:
    """A random circuit of so many nodes and edges, with evidence for every feature."""
    draw = np.random.default_rng(seed)
    words = [f" word{n}" for n in range(WORDS)]
    rows = [("token", -1, p, -1, words[p]) for p in range(WORDS)]
    rows += [("error", layer, WORDS - 1, -1, words[-1]) for layer in range(LAYERS)]
    for n in range(count - len(rows) - OUTPUTS):
        p = int(draw.integers(WORDS))
        rows.append(("feature", int(draw.integers(LAYERS)), p, n, words[p]))
    rows += [("logit", LAYERS, WORDS - 1, n, f" out{n}") for n in range(OUTPUTS)]
    nodes = pd.DataFrame(rows, columns=["kind", "layer", "position", "feature", "token"])
    weight = np.where(nodes["kind"] == "logit", 1 / OUTPUTS, 0.0)
    influence = np.where(weight > 0, weight, draw.lognormal(sigma=1.6, size=count) / 100)
    nodes = nodes.assign(label="", activation=1.0, influence=influence, node=np.arange(count))
    nodes = nodes.assign(weight=weight, value=1.0, rest=0.0)
    settings = {"prompt": "".join(words), "tokens": words, "model": "random"}
    known = {f"L{r[1]}/F{r[3]}": _evidence(draw, words) for r in rows if r[0] == "feature"}
    table = _edges(nodes, edges, draw)
    return Circuit(nodes, table, Scores(0.4, 0.7), settings, evidence=known)


def _edges(nodes: pd.DataFrame, count: int, draw: np.random.Generator) -> pd.DataFrame:
    layer, position = nodes["layer"].to_numpy(), nodes["position"].to_numpy()
    upward = (layer[:, None] < layer) & (position[:, None] <= position)
    upward &= nodes["kind"].isin(["feature", "logit"]).to_numpy()
    source, target = np.nonzero(upward)
    chosen = draw.choice(len(source), count, replace=False)
    weight = draw.normal(0.3, 1, count) * draw.lognormal(sigma=1.2, size=count)
    table = pd.DataFrame({"source": source[chosen], "target": target[chosen], "weight": weight})
    size = table["weight"].abs()
    direct = size / size.groupby(table["target"]).transform("sum")
    return table.assign(share=size / size.sum(), direct=direct)


def _evidence(draw: np.random.Generator, words: list[str]) -> dict[str, Any]:
    """As much as a real dictionary's evidence file holds."""
    tokens = [[str(word), 1.5] for word in draw.choice(words, 10)]
    contexts = [
        {"tokens": draw.choice(words, 25).tolist(), "at": 12, "activation": 3.25} for _ in range(10)
    ]
    bins = {"edges": np.linspace(0, 9, 17).tolist(), "counts": list(range(16, 0, -1))}
    promoted = {"promotes": tokens, "suppresses": tokens, "promotes_through_attention": tokens}
    return {**promoted, "contexts": contexts, "density": 0.0123, "histogram": bins, "max": 9.0}


def opened(path: Path) -> dict[str, Any]:
    """Open the page, count what it draws, move it about, and ask for all edges."""
    from playwright.sync_api import sync_playwright

    browser_path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser_path is None:
        raise SystemExit("no Chromium is installed; on Debian: apt-get install chromium.")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=browser_path, args=SWITCHES)
        page = browser.new_context(viewport={"width": 1280, "height": 800}, offline=True).new_page()
        start = time.perf_counter()
        page.goto(path.as_uri())
        page.wait_for_selector("html[data-ready]", state="attached")
        page.evaluate(PAINTED)
        seconds = time.perf_counter() - start
        found = {"open_seconds": seconds, "shown": page.evaluate(COUNT), "pan": _frames(page)}
        start = time.perf_counter()
        page.locator("#edges").fill("100")
        page.evaluate(PAINTED)
        found["all_edges_seconds"] = time.perf_counter() - start
        found["all"] = {"shown": page.evaluate(COUNT), "pan": _frames(page)}
        found["browser"] = browser.version
        browser.close()
    return found


def _frames(page: Any) -> dict[str, float]:
    """How long frames took while the picture moved, in milliseconds."""
    times = sorted(page.evaluate(PAN))
    return {
        "median_ms": statistics.median(times),
        "p95_ms": times[int(0.95 * len(times))],
        "worst_ms": times[-1],
    }


def run(options: argparse.Namespace) -> dict[str, Any]:
    circuit = case(options.nodes, options.edges)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        path = circuit.save_html(Path(folder) / "page.html")
        wrote, size = time.perf_counter() - start, path.stat().st_size / 1e6
        found = opened(path)
    # Among concepts, a position's errors are one mark.
    nodes = options.nodes - LAYERS + 1
    if found["shown"]["nodes"] != nodes or found["all"]["shown"]["nodes"] != nodes:
        raise SystemExit(f"the page shows {found['shown']['nodes']} boxes; it must show {nodes}.")
    edges = _merged_edges(circuit)
    if found["all"]["shown"]["edges"] != edges:
        raise SystemExit(f"the page draws {found['all']['shown']['edges']} of {edges} edges.")
    case_of = {"nodes": options.nodes, "edges": options.edges}
    machine = {"machine": platform.machine(), "python": platform.python_version()}
    return {"case": case_of, "megabytes": size, "save_seconds": wrote, **found, **machine}


def _merged_edges(circuit: Circuit) -> int:
    """Edges between different boxes, when a position's errors are one."""
    error = circuit.nodes["kind"].to_numpy() == "error"
    first = int(np.flatnonzero(error)[0])
    source = circuit.edges["source"].to_numpy()
    source = np.where(error[source], first, source)
    return len(set(zip(source.tolist(), circuit.edges["target"].tolist(), strict=True)))


def show(result: dict[str, Any]) -> None:
    print(
        f"{result['case']['nodes']} nodes, {result['case']['edges']} edges: "
        f"{result['megabytes']:.1f} MB, written in {result['save_seconds']:.1f} s, "
        f"drawn {result['open_seconds']:.2f} s after navigation"
    )
    for name, part in (("at opening", result), ("all edges", result["all"])):
        shown, pan = part["shown"], part["pan"]
        frames = ", ".join(f"{key.removesuffix('_ms')} {ms:.0f}" for key, ms in pan.items())
        print(f"{name:11} {shown['nodes']} boxes, {shown['edges']} edges; ms a frame: {frames}")
    print(f"all edges drawn {result['all_edges_seconds']:.1f} s after they were asked for")


def main() -> None:
    options = arguments()
    result = run(options)
    if options.out is not None:
        options.out.write_text(json.dumps(result, indent=2) + "\n")
    show(result)
    missed = [
        f"{name} is {value:.1f}; it must be below {limit:g}"
        for name, value, limit in (
            ("the file in MB", result["megabytes"], MEGABYTES),
            ("the opening in seconds", result["open_seconds"], SECONDS),
            ("95% of frames in ms", result["pan"]["p95_ms"], FRAME),
        )
        if value >= limit
    ]
    if missed:
        raise SystemExit("; ".join(missed) + ".")


if __name__ == "__main__":
    main()
