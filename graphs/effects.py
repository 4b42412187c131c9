"""Effects: what a graph predicts when sources are changed. Linear, and nothing but its edges.

A source that changes by the fraction f of itself changes every row t by f * edges[t, s]. A feature
so changed passes it on: it changes by the fraction (change of its row) / (value of its row), as
its activation is proportional to what it reads. Layers order the nodes, so one pass from the
lowest layer up gives the exact total over all paths.
"""

import numpy as np
from jaxtyping import Float, Int

from graphs.graph import BLOCK, AttributionGraph


def effects(
    graph: AttributionGraph,
    fractions: Float[np.ndarray, "nodes causes"],
    passing: Int[np.ndarray, " causes"],
) -> Float[np.ndarray, "targets causes"]:
    """The change of every row's value, for many causes at once.

    `fractions` is what each cause changes of each node: -1 takes it away. Nodes that a cause
    changes stay as changed; of the others those of layers from `passing` on (one number a cause)
    pass on what reaches them. With `passing` above all layers only direct edges count.
    """
    moved = fractions[graph.sources].astype(np.float64)
    column = np.full(len(graph.nodes), -1)
    column[graph.sources] = np.arange(len(graph.sources))
    layers = graph.nodes["layer"].to_numpy()[graph.targets]
    changes = np.zeros((len(graph.targets), fractions.shape[1]))
    for layer in np.unique(layers):
        rows = np.flatnonzero(layers == layer)
        for start in range(0, len(rows), BLOCK):
            part = rows[start : start + BLOCK]
            changes[part] = graph.edges[part] @ moved
        inner = rows[column[graph.targets[rows]] >= 0]
        nodes, values = graph.targets[inner], graph.values[inner]
        share = changes[inner] / np.where(values == 0, np.inf, values)[:, None]
        free = (fractions[nodes] == 0) & (layer >= passing)
        moved[column[nodes]] += np.where(free, share, 0)
    return changes
