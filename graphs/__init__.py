"""What a trace yields: nodes, edges, influence, pruning, circuits. No model needed.

Top functions: `load` reads a saved graph; `AttributionGraph.prune` makes a `Circuit` of it, whose
features are grouped into concepts; `Circuit.plot`, `save_html` and `paths` show it.
"""

from graphs.circuit import Circuit
from graphs.concepts import Concepts
from graphs.graph import AttributionGraph, assemble, feature_key
from graphs.groups import Group
from graphs.interchange import from_networkx
from graphs.mediators import Mediator
from graphs.paths import Path
from graphs.scores import Scores
from graphs.store import load

__all__ = [
    "AttributionGraph",
    "Circuit",
    "Concepts",
    "Group",
    "Mediator",
    "Path",
    "Scores",
    "assemble",
    "feature_key",
    "from_networkx",
    "load",
]
