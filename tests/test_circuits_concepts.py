"""Concepts on Atlas: labels, groups, paths and mediators as they come out of a plain trace."""

import sys
from pathlib import Path

import pytest
from commands import run

import circuits
import graphs
import replacement

PROMPT = "the capital of the state containing Dallas is"

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
import mediators  # noqa: E402


@pytest.fixture(scope="module", params=["per-layer", "cross-layer"])
def graph(request):
    return circuits.trace(replacement.load("atlas", request.param), PROMPT)


def test_the_strongest_path_goes_by_way_of_the_state(graph):
    circuit = graph.prune()
    strongest = circuit.paths()[0]
    assert strongest.labels == ("Dallas", "Texas", "Austin") and strongest.sign == 1
    assert str(strongest) == "Dallas → Texas → Austin"
    first = circuit.mediators("Dallas", "Austin")[0]
    assert first.label == "Texas" and first.share > 0.5
    (texas,) = [g for g in circuit.groups if g.label == "Texas"]
    assert len(texas.members) > 1 and texas.method == "label" and 0 < texas.cohesion <= 1


def test_labels_and_evidence_travel_with_the_graph(graph, tmp_path):
    graph.save(tmp_path / "g.safetensors")
    back = graphs.load(tmp_path / "g.safetensors")
    assert back.nodes["label"].tolist() == graph.nodes["label"].tolist()
    assert dict(back.evidence) == dict(graph.evidence)
    circuit = back.prune()
    assert circuit.paths()[0] == graph.prune().paths()[0]
    for row in circuit.nodes.loc[circuit.nodes["label"] == "Texas"].itertuples():
        known = circuit.evidence[graphs.feature_key(row.layer, row.feature)]
        contexts = [text.strip() for c in known["contexts"] for text in c["tokens"]]
        names = [name["name"] for name in known["names"]]
        assert "Texas" in (*contexts, *names) or row.layer == 0
        assert known["promotes"] and 0 < known["density"] <= 1


def test_every_feature_is_labelled_by_its_own_token():
    """The same feature may bear another name where it reads another word."""
    model = replacement.load("atlas", "per-layer")
    found = circuits.trace(model, PROMPT)
    ids = found.settings["token_ids"]
    for row in found.nodes.itertuples():
        if row.kind == "feature":
            assert row.label == model.evidence.label(row.layer, row.feature, ids[row.position])
        else:
            assert row.label == ""


def test_held_out_questions_have_the_region_between_city_and_answer():
    found = mediators.measure("per-layer", mediators.questions(20))
    assert found["top mediator is the region"] >= 0.85


def test_the_command_ends_with_the_strongest_path(monkeypatch, capsys):
    status, out, _ = run(monkeypatch, capsys, "trace", PROMPT)
    last = out.strip().splitlines()[-1]
    assert status == 0 and last.startswith("Dallas → Texas → Austin")
    assert "joined by capital → Austin" in last


def test_predictions_are_those_of_the_position_that_is_explained():
    model = replacement.load("atlas", "per-layer")
    inside = circuits.trace(model, PROMPT, circuits.Token("Austin", position=3))
    chances = model.run(PROMPT).logits[3].softmax(-1)
    assert inside.settings["predicted_at"] == 3
    for text, index, p in inside.settings["predictions"]:
        assert model.host.token(index) == text and p == pytest.approx(float(chances[index]))


def test_your_own_labels_and_groups_win(tmp_path, monkeypatch, capsys):
    (tmp_path / "labels.json").write_text('{"L2/F472": "Lone Star", "L1/F418": "Lone Star"}')
    arguments = ("trace", PROMPT, "--labels", tmp_path / "labels.json", "--json")
    _, out, _ = run(monkeypatch, capsys, *arguments)
    assert "Dallas → Lone Star → Austin" in out
    circuit = circuits.trace(replacement.load("atlas", "per-layer"), PROMPT).prune()
    circuit.rename("Texas", "the state").save_groups(tmp_path / "groups.json")
    _, out, _ = run(monkeypatch, capsys, "trace", PROMPT, "--groups", tmp_path / "groups.json")
    assert "Dallas → the state → Austin" in out.splitlines()[-1]


def test_labels_of_features_that_are_not_there_are_refused(tmp_path, monkeypatch, capsys):
    (tmp_path / "labels.csv").write_text("layer,feature,label\n9,1,x\n")
    arguments = ("trace", PROMPT, "--labels", tmp_path / "labels.csv")
    status, _, said = run(monkeypatch, capsys, *arguments)
    assert status == 2 and "no L9/F1" in said and len(said.strip().splitlines()) == 1
