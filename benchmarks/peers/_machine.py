"""What the machine's matrix products alone would take: the measure of how fast a sweep can be.

The ideal counts the products that no method which pulls readers down the stream can do without:

    pull     a reader at (L, p), per layer l <= L and position q <= p:
             2 * H*dh*d   through the output projection  (at l = L only the position p itself)
             2 * Hkv*dh*d through the value projection
    read-off per layer l < L and position q <= p: 2 * d * (what is written there + the error),
             and 2 * d for each token's embedding

The mixing by the attention pattern, the norms and all copying are left out: they are overhead.
"""

import platform
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from _case import Case

SQUARE = 2000
READERS = 1024


def ideal(case: Case, active: np.ndarray, layers: np.ndarray, positions: np.ndarray) -> dict:
    """Floating-point operations for readers at (layers[i], positions[i]); a logit's layer is the
    number of layers. `active` counts the features at each (layer, position)."""
    written = active.cumsum(0) if case.kind == "cross-layer" else active
    through_output = 2 * case.heads * case.head_width * case.width
    through_value = 2 * case.kv_heads * case.head_width * case.width
    logit = layers == case.layers
    below, cone = np.where(logit, case.layers - 1, layers), positions + 1
    pull = through_output * (below * cone + 1) + through_value * (below + 1) * cone
    # prefix[l, q]: columns read off below layer l at positions up to and including q
    prefix = np.zeros((case.layers + 1, case.tokens), int)
    prefix[1:] = (written + 1).cumsum(0).cumsum(1)
    readoff = 2 * case.width * (prefix[layers, positions] + cone)
    return {"pull": float(pull.sum()), "readoff": float(readoff.sum())}


def rates(case: Case, active: np.ndarray, device: str) -> dict[str, float]:
    """Operations a second in fp32: square products, and products of the sweep's own shapes."""
    written = active.cumsum(0) if case.kind == "cross-layer" else active
    rows, width = READERS * min(case.tokens, 16), case.width
    return {
        "square": _rate(SQUARE, SQUARE, SQUARE, device),
        "pull": min(
            _rate(rows, width, case.heads * case.head_width, device),
            _rate(rows, case.kv_heads * case.head_width, width, device),
        ),
        "readoff": _rate(READERS, width, round(written.mean()) + 1, device),
    }


def _rate(m: int, k: int, n: int, device: str) -> float:
    """The best of several timings of one (m, k) @ (k, n) product, 0.05 s each at the least."""
    a, b = torch.randn(m, k, device=device), torch.randn(k, n, device=device)
    out = torch.empty(m, n, device=device)
    once = _seconds(lambda: torch.mm(a, b, out=out), 3, device)
    repeats = max(1, int(0.05 / once))
    best = min(_seconds(lambda: torch.mm(a, b, out=out), repeats, device) for _ in range(7))
    return 2 * m * k * n / best


def _seconds(product: Callable[[], object], repeats: int, device: str) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        product()
    if device != "cpu":
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / repeats


def shares(ideal: dict[str, float], rates: dict[str, float], seconds: float) -> dict[str, float]:
    """The share of the machine's rate that a sweep of so many seconds reached."""
    square = (ideal["pull"] + ideal["readoff"]) / rates["square"]
    own = ideal["pull"] / rates["pull"] + ideal["readoff"] / rates["readoff"]
    return {"of_square_products": square / seconds, "of_own_products": own / seconds}


def describe(device: str) -> dict[str, str | int]:
    """The machine, for the table."""
    lines = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    models = [line.split(":")[1].strip() for line in lines.splitlines() if "model name" in line]
    return {
        "processor": models[0] if models else platform.processor() or platform.machine(),
        "device": torch.cuda.get_device_name() if device != "cpu" else "cpu",
        "threads": torch.get_num_threads(),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
