"""What a trace yields: nodes, edges, influence, pruning, circuits. No model needed.

Top functions: `load` reads a saved graph; `AttributionGraph.prune` makes a `Circuit` of it.
"""

from graphs.circuit import Circuit
from graphs.graph import AttributionGraph, assemble
from graphs.paths import Path
from graphs.scores import Scores
from graphs.store import load

__all__ = ["AttributionGraph", "Circuit", "Path", "Scores", "assemble", "load"]
