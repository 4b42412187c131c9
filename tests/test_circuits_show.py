import json
import subprocess
import sys

import pytest
from commands import run
from graph_cases import graph


@pytest.fixture
def saved(tmp_path):
    g = graph(3, tokens=[" Dallas", " is"])
    rows = g.nodes.loc[g.nodes["kind"] == "feature"]
    g = g.labelled({(int(r.layer), int(r.feature)): f"c{r.layer}" for r in rows.itertuples()})
    g.save(tmp_path / "graph.safetensors")
    return tmp_path / "graph.safetensors"


def test_a_saved_graph_is_shown_as_a_tree(saved, monkeypatch, capsys):
    status, out, _ = run(monkeypatch, capsys, "show", saved)
    assert status == 0 and "out0" in out and "c2" in out and "Dallas" in out


def test_it_needs_no_torch(saved):
    code = "import sys; from circuits import cli; sys.argv = ['circuits', 'show', sys.argv[1]]\n"
    code += "try: cli.main()\nexcept SystemExit: pass\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code, str(saved)], check=True, capture_output=True)


def test_json_holds_concepts_edges_and_paths(saved, monkeypatch, capsys):
    status, out, _ = run(monkeypatch, capsys, "show", saved, "--json", "--nodes", "1")
    said = json.loads(out)
    assert status == 0 and {c["label"] for c in said["concepts"]} >= {"Dallas", "c0", "out0"}
    names = {c["name"] for c in said["concepts"]}
    assert all({e["source"], e["target"]} <= names for e in said["edges"])
    assert said["paths"][0]["text"].count("→") == len(said["paths"][0]["labels"]) - 1


def test_labels_and_groups_by_hand(saved, tmp_path, monkeypatch, capsys):
    labels = tmp_path / "labels.csv"
    labels.write_text("layer,feature,label\n2,10,mine\n")
    _, out, _ = run(monkeypatch, capsys, "show", saved, "--nodes", 1, "--labels", labels, "--json")
    assert "mine" in {c["label"] for c in json.loads(out)["concepts"]}
    circuit = graph(3, tokens=[" Dallas", " is"]).prune(1.0, 1.0)
    members = [n for n in circuit.names().values() if n.startswith("feature")][:2]
    groups = circuit.group(members, "pair").save_groups(tmp_path / "groups.json")
    _, out, _ = run(monkeypatch, capsys, "show", saved, "--nodes", 1, "--groups", groups, "--json")
    (pair,) = [c for c in json.loads(out)["concepts"] if c["label"] == "pair"]
    assert pair["members"] == members and pair["method"] == "hand"


def test_mistakes_end_with_one_line_and_status_2(saved, tmp_path, monkeypatch, capsys):
    for arguments, match in (
        ([tmp_path / "none.safetensors"], "there is no file"),
        ([saved, "--nodes", "2"], "nodes=2.0 must lie in"),
        ([saved, "--out", tmp_path / "a.jpg"], "must end in one of .html"),
        ([saved, "--labels", tmp_path / "none.csv"], "there is no file of labels"),
        ([saved, "--groups", tmp_path / "none.json"], "there is no file of groups"),
    ):
        status, _, said = run(monkeypatch, capsys, "show", *arguments)
        assert status == 2 and match in said and len(said.strip().splitlines()) == 1
    (tmp_path / "far.csv").write_text("layer,feature,label\n99,1,x\n")
    status, _, said = run(monkeypatch, capsys, "show", saved, "--labels", tmp_path / "far.csv")
    assert status == 2 and "no label of a feature in this graph" in said
    assert not (tmp_path / "a.jpg").exists()
