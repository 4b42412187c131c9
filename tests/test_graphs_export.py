import csv
import json
import os

import networkx as nx
import numpy as np
import pytest
from graph_cases import AWKWARD, graph

from graphs.export import write_graphml, write_neuronpedia, write_tables

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
    assert sorted(os.listdir(tmp_path)) == ["edges.csv", "nodes.csv"]


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
