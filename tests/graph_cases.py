"""Random attribution graphs that are valid, and small enough for the naive way of doing things."""

import numpy as np
import pandas as pd
from scipy import sparse

import graphs

AWKWARD = ["\n", ",", '"', "<script>", " Texas", "a\r\nb", "=1+1", "\u00e9\u4e2d"]


def parts(seed=0, layers=3, positions=2, features=3, tokens=None, dtype=np.float64, density=0.7):
    """What `graphs.assemble` takes: tokens, errors, features, remainders, the bias, two outputs."""
    rng = np.random.default_rng(seed)
    tokens = tokens or [f" t{p}" for p in range(positions)]
    rows = [("token", -1, p, -1, tokens[p], np.nan) for p in range(positions)]
    for layer in range(layers):
        rows += [("error", layer, p, -1, tokens[p], np.nan) for p in range(positions)]
        rows += [("remainder", layer, -1, -1, "", np.nan)]
        for feature in range(features):
            p = int(rng.integers(positions))
            rows.append(("feature", layer, p, 10 + feature, tokens[p], float(rng.uniform(0.1, 2))))
    rows += [("bias", -1, -1, -1, "", np.nan)]
    rows += [("logit", layers, positions - 1, 7 + i, f" out{i}", 1.0) for i in range(2)]
    names = ["kind", "layer", "position", "feature", "token", "activation"]
    nodes = pd.DataFrame(rows, columns=names)
    kind, layer = nodes["kind"].to_numpy(), nodes["layer"].to_numpy()
    targets = np.flatnonzero(np.isin(kind, ("feature", "logit")))
    sources = np.flatnonzero(kind != "logit")
    shape = (len(targets), len(sources))
    edges = rng.normal(size=shape) * rng.lognormal(size=shape)
    edges *= layer[sources][None] < layer[targets][:, None]
    edges *= (rng.random(shape) < density) | (kind[sources] == "bias")
    edges = edges.astype(dtype)
    return {
        "nodes": nodes,
        "edges": edges,
        "targets": targets,
        "sources": sources,
        "values": edges.sum(1, dtype=np.float64),
        "weights": np.where(kind[targets] == "logit", [0.0] * (shape[0] - 2) + [0.75, 0.25], 0.0),
        "scale": np.abs(edges).sum(1, dtype=np.float64),
        "settings": {"prompt": "".join(tokens), "tokens": tokens, "n_layers": layers},
    }


def graph(seed=0, csr=False, **options):
    case = parts(seed, **options)
    if csr:
        case["edges"] = sparse.csr_array(case["edges"])
    return graphs.assemble(**case)


def square(graph):
    """The same edges as an N x N matrix, row target and column source, bias left out."""
    edges = graph.edges.toarray() if sparse.issparse(graph.edges) else graph.edges
    full = np.zeros((len(graph.nodes),) * 2)
    full[np.ix_(graph.targets, graph.sources)] = edges
    full[:, (graph.nodes["kind"] == "bias").to_numpy()] = 0.0
    return full


def shares(matrix):
    """|matrix|, each row divided by its sum; rows of zeros stay."""
    size = np.abs(matrix)
    total = size.sum(1, keepdims=True)
    return size / np.where(total > 0, total, 1.0)


def seeds(graph):
    out = np.zeros(len(graph.nodes))
    out[graph.targets] = graph.weights
    return out


def reached(matrix, seed):
    """Seed plus inflow of every node, in closed form: seed (I - S)^-1."""
    return np.linalg.solve((np.eye(len(matrix)) - shares(matrix)).T, seed)


def concepts(circuit, seed, labels):
    """The circuit with its features under a few labels drawn at random, whatever their place."""
    draw = np.random.default_rng(seed)
    names = circuit.nodes.assign(name=list(circuit.names().values()))
    features = names.loc[names["kind"] == "feature", "name"].tolist()
    chosen = draw.integers(0, labels + 1, len(features))  # the last is left alone
    for number in range(labels):
        members = [name for name, own in zip(features, chosen, strict=True) if own == number]
        if members:
            circuit = circuit.group(members, f"concept {number}")
    return circuit
