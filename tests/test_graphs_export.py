import csv
import json
import os

import networkx as nx
import numpy as np
import pytest
from graph_cases import AWKWARD, graph

from graphs.export import write_gexf, write_graphml, write_tables
from graphs.neuronpedia import neuronpedia, write_neuronpedia

TOKENS = [*AWKWARD, "\x00", "\x1b[31m"]


def awkward(seed=0, tokens=TOKENS):
    g = graph(seed, positions=len(tokens), tokens=tokens, features=12)
    return g, g.prune(1.0, 1.0)


def test_tables_keep_every_token(tmp_path):
    _, circuit = awkward(tokens=AWKWARD)
    write_tables(circuit, tmp_path)
    with open(tmp_path / "nodes.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["token"] for row in rows] == circuit.nodes["token"].tolist()
    with open(tmp_path / "edges.csv", newline="", encoding="utf-8") as file:
        edges = list(csv.DictReader(file))
    assert len(edges) == len(circuit.edges)
    np.testing.assert_allclose([float(e["weight"]) for e in edges], circuit.edges["weight"])
    with open(tmp_path / "concepts.csv", newline="", encoding="utf-8") as file:
        concepts = list(csv.DictReader(file))
    members = [name for row in concepts for name in row["members"].split(" ")]
    assert sorted(members) == sorted(row["node"] for row in rows)
    files = ["concept_edges.csv", "concepts.csv", "edges.csv", "nodes.csv"]
    assert sorted(os.listdir(tmp_path)) == files


def test_graphml_reads_back(tmp_path):
    _, circuit = awkward()
    write_graphml(circuit, tmp_path / "circuit.graphml")
    back = nx.read_graphml(tmp_path / "circuit.graphml")
    expected = circuit.to_networkx()
    assert set(back) == set(expected) and set(back.edges) == set(expected.edges)
    for *edge, data in expected.edges(data=True):
        assert back.edges[edge]["weight"] == pytest.approx(data["weight"])
    texts = [data.get("token") for _, data in back.nodes(data=True)]
    assert "<script>" in texts and "," in texts


def test_gexf_reads_back(tmp_path):
    _, circuit = awkward()
    write_gexf(circuit, tmp_path / "circuit.gexf")
    back = nx.read_gexf(tmp_path / "circuit.gexf")
    expected = circuit.to_networkx()
    assert len(back) == len(expected) and len(back.edges) == len(expected.edges)
    labels = sorted(data["label"] for _, data in expected.nodes(data=True))
    assert len(labels) == len([data["label"] for _, data in back.nodes(data=True)])
    for *edge, data in expected.edges(data=True):
        assert back.edges[edge]["weight"] == pytest.approx(data["weight"])


# Required fields and their types in the schema that Neuronpedia publishes (graph-schema.json).
STRING, NUMBER, WHOLE = (str,), (int, float), (int,)
REQUIRED = {
    "metadata": {"slug": STRING, "scan": STRING, "prompt_tokens": (list,), "prompt": STRING},
    "nodes": {
        "node_id": STRING,
        "feature": (int, type(None)),
        "layer": (str, int),
        "ctx_idx": WHOLE,
        "feature_type": STRING,
        "jsNodeId": STRING,
        "clerp": STRING,
    },
    "links": {"source": STRING, "target": STRING, "weight": NUMBER},
}
OPTIONAL = {
    "metadata": {"node_threshold": NUMBER, "info": (dict,), "pruning_settings": (dict,)},
    "nodes": {"influence": (*NUMBER, type(None)), "activation": (*NUMBER, type(None))},
    "links": {},
}


def fits(part, found):
    required, optional = REQUIRED[part], OPTIONAL[part]
    assert set(required) <= set(found)
    assert all(isinstance(found[k], kind) for k, kind in required.items())
    assert all(isinstance(found[k], kind) for k, kind in optional.items() if k in found)


def test_neuronpedia_json_fits_the_published_schema_with_its_groups():
    _, circuit = awkward()
    features = [n for n in circuit.names().values() if n.startswith("feature")]
    circuit = circuit.group(features[:2], "Texas")
    data = neuronpedia(circuit)
    assert {"metadata", "qParams", "nodes", "links"} <= set(data)
    fits("metadata", data["metadata"])
    for part in ("nodes", "links"):
        for found in data[part]:
            fits(part, found)
    view = data["qParams"]
    assert all(isinstance(view[k], list) for k in ("pinnedIds", "supernodes"))
    assert all(isinstance(view[k], str) for k in ("linkType", "clickedId", "sg_pos"))
    (group,) = view["supernodes"]
    ids = {node["node_id"] for node in data["nodes"]}
    assert group[0] == "Texas" and len(group) == 3 and set(group[1:]) <= set(view["pinnedIds"])
    assert set(view["pinnedIds"]) <= ids
    strongest = circuit.paths(top=1)[0]
    assert len(view["pinnedIds"]) >= len(strongest.nodes)


def test_neuronpedia_json_is_complete_and_consistent(tmp_path):
    _, circuit = awkward()
    write_neuronpedia(circuit, tmp_path / "graph.json")
    data = json.loads((tmp_path / "graph.json").read_text(encoding="utf-8"))
    assert data["metadata"]["prompt_tokens"] == TOKENS
    assert {"slug", "scan", "prompt"} <= set(data["metadata"])
    assert {"pinnedIds", "supernodes", "linkType", "clickedId", "sg_pos"} == set(data["qParams"])
    ids = [node["node_id"] for node in data["nodes"]]
    assert len(ids) == len(set(ids)) == len(circuit.nodes)
    assert all({link["source"], link["target"]} <= set(ids) for link in data["links"])
    assert sum(link["weight"] for link in data["links"]) == pytest.approx(
        circuit.edges["weight"].sum()
    )
    fields = "node_id feature layer ctx_idx feature_type token_prob is_target_logit run_idx"
    fields += " reverse_ctx_idx jsNodeId clerp influence activation"
    assert all(set(fields.split()) <= set(node) for node in data["nodes"])


@pytest.mark.parametrize(
    "write, name", [(write_graphml, "a.graphml"), (write_neuronpedia, "a.json")]
)
def test_an_interrupted_export_leaves_no_file(tmp_path, monkeypatch, write, name):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        write(graph().prune(), tmp_path / name)
    assert os.listdir(tmp_path) == []
