"""Sufficiency: what a circuit alone brings of the output, and what is left of it without.

The features are let through in the order of their influence, more and more of them, and everything
else of the dictionary is zero; what the dictionary missed stays, as constants (`replacement.only`).
With m the explained output, N all features and 0 none, the faithfulness of a circuit C is

    f(C) = (m(C) - m(0)) / (m(N) - m(0))

and as in MIB (Mueller et al. 2025), over circuits of all sizes, as shares of all active features,

    CPR = area under f            (1 for a circuit as good as the model; more is possible)
    CMD = area between f and 1    (0 where every circuit does what the model does)

MIB puts other prompts' activations in the place of what is left out; one prompt has no other, so
here it is zero, as for an ablation. All of it twice: with attention patterns and norms held, as
a graph assumes, and with patterns that recompute from what is left, of which it says nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from circuits.subject import Subject
from replacement.host import Run
from replacement.model import ReplacementModel
from replacement.only import among, run_only
from replacement.reading import Reading
from replacement.regimes import Clean

SHARES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)  # MIB's; none and all need no run
PATTERNS = ("held", "recomputed")


@dataclass(frozen=True, eq=False)
class Alone:
    """A prompt that can be run with some of its features alone, or without them."""

    model: ReplacementModel
    clean: Clean
    reading: Reading

    @classmethod
    def of(cls, model: ReplacementModel, clean: Clean) -> "Alone":
        """With what the dictionary missed on the clean run."""
        return cls(model, clean, model.read(clean.run))

    def run(self, features: pd.DataFrame, patterns: str, kept: bool = True) -> Run:
        """The prompt with these features alone; with `kept=False`, with all others."""
        table = features[["layer", "position", "feature"]].to_numpy(dtype=np.int64, copy=True)
        through = among(self.model, torch.from_numpy(table), kept)
        return run_only(self.model, self.clean, self.reading, through, patterns == "held")


def curve(subject: Subject, done: Callable[[], Any]) -> pd.DataFrame:
    """Faithfulness over circuit size, and of the circuit itself.

    One row each: patterns, circuit (whether it is the circuit; else the most influential), size,
    share, faithfulness and without (the faithfulness of all the rest), probability and
    probability_without (of what is explained), answer (whether the likeliest token is the model's).
    """
    alone, run = Alone.of(subject.model, subject.clean), subject.clean.run
    ranked = subject.features.sort_values("influence", ascending=False, kind="stable")
    active = int(subject.graph.settings["active"])
    sizes = sorted({round(share * active) for share in SHARES} - {0})
    circuit = ranked.loc[ranked.index.isin(subject.circuit.nodes["node"])]
    parts = [(False, ranked.head(size)) for size in sizes if size <= len(ranked)]
    parts.append((True, circuit))
    rows = []
    for patterns in PATTERNS:
        whole = subject.explained(run)
        none = subject.explained(alone.run(ranked.head(0), patterns))
        for own, part in parts:
            kept, rest = (alone.run(part, patterns, kept=kept) for kept in (True, False))
            done()
            values = [(subject.explained(r) - none) / (whole - none) for r in (kept, rest)]
            rows.append(
                {
                    "patterns": patterns,
                    "circuit": own,
                    "size": len(part),
                    "share": len(part) / active,
                    "faithfulness": values[0],
                    "without": values[1],
                    "probability": subject.probability(kept),
                    "probability_without": subject.probability(rest),
                    "answer": subject.answer(kept) == subject.answer(run),
                }
            )
    return pd.DataFrame(rows)


def areas(table: pd.DataFrame) -> tuple[float, float]:
    """CPR and CMD of one curve, over shares from none of the features (0) to all of them (1)."""
    part = table.query("not circuit").sort_values("share")
    x = np.array([0.0, *part["share"], 1.0])
    y = np.array([0.0, *part["faithfulness"], 1.0])
    return float(np.trapezoid(y, x)), float(np.trapezoid(np.abs(1 - y), x))
