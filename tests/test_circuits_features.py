"""`circuits features`: what it writes, what it says, and what it refuses."""

import json
import os
import subprocess
import sys

import hosts
import pytest
from commands import run
from evidences import LINES
from stub_server import serving

import replacement
from replacement import TopK, evidence, formats
from replacement.evidence import FILE


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A model folder and a corpus as text and as JSON lines."""
    path = tmp_path_factory.mktemp("features")
    hosts.save(path / "host", chat=False)
    (path / "corpus.txt").write_text("\n".join(LINES) + "\n")
    (path / "corpus.jsonl").write_text("\n".join(json.dumps({"text": line}) for line in LINES))
    return path


@pytest.fixture
def folder(tmp_path):
    """A folder with a saved dictionary."""
    formats.save(hosts.dictionary(3, TopK(5)), tmp_path / "d")
    return tmp_path / "d"


def reported(monkeypatch, capsys, made, dictionary, *arguments, corpus="corpus.txt"):
    names = (made / "host", dictionary, made / corpus)
    status, printed, said = run(monkeypatch, capsys, "features", *names, *arguments, "--json")
    assert status == 0, said
    return json.loads(printed)


def test_it_writes_what_the_function_gathers(made, folder, monkeypatch, capsys):
    said = reported(monkeypatch, capsys, made, folder)
    model = replacement.load(made / "host", folder)
    known = evidence.gather(replacement.load(made / "host", formats.load(folder)), LINES)
    for layer in range(3):
        for feature in range(hosts.FEATURES):
            assert model.evidence.describe(layer, feature) == known.describe(layer, feature)
    assert said["file"] == str(folder / FILE) and said["prompts"] == len(LINES)
    assert said["positions"] == known.source.positions
    assert sum(layer["alive"] for layer in said["layers"]) == known.alive
    for index, layer in enumerate(said["layers"]):
        described = [known.describe(index, f) for f in range(hosts.FEATURES)]
        assert layer["features"] == hosts.FEATURES
        assert layer["alive"] == sum(d["density"] > 0 for d in described)
        assert layer["labelled"] == sum(bool(d["label"]) and d["density"] > 0 for d in described)
    for one in said["examples"]:
        place = one.pop("layer"), one.pop("feature")
        assert one == known.describe(*place) and one["density"] > 0


def test_corpora_and_limits(made, folder, monkeypatch, capsys):
    text = reported(monkeypatch, capsys, made, folder)
    lines = reported(monkeypatch, capsys, made, folder, corpus="corpus.jsonl")
    assert text.pop("corpus") != lines.pop("corpus") and text == lines
    assert reported(monkeypatch, capsys, made, folder, "--prompts", 3)["prompts"] == 3
    cut = reported(monkeypatch, capsys, made, folder, "--tokens", 4)
    assert cut["positions"] == text["positions"] and cut["prompts"] > text["prompts"]
    less = reported(monkeypatch, capsys, made, folder, "--skip-first", 1)
    assert less["positions"] == text["positions"] - len(LINES)


def test_neurons_and_other_places_take_a_file(made, folder, tmp_path, monkeypatch, capsys):
    out = tmp_path / "new" / "n.safetensors"
    said = reported(monkeypatch, capsys, made, "neurons", "--out", out)
    assert said["file"] == str(out) and os.listdir(out.parent) == [out.name]
    model = replacement.load(made / "host", "neurons", out)
    assert model.evidence is not None and model.evidence.source.dictionary == "neurons"
    reported(monkeypatch, capsys, made, folder, "--out", out)
    assert not (folder / FILE).exists()
    assert evidence.load(out).source.dictionary == "random"


def test_a_users_labels_are_kept(made, folder, tmp_path, monkeypatch, capsys):
    (tmp_path / "mine.csv").write_text("layer,feature,label\n0,3,Texas\n")
    reported(monkeypatch, capsys, made, folder, "--labels", tmp_path / "mine.csv")
    assert replacement.load(made / "host", folder).evidence.label(0, 3, 5) == "Texas"


def test_a_damaged_file_is_built_anew(made, folder, monkeypatch, capsys):
    (folder / FILE).write_bytes(b"rubbish")
    with pytest.raises(ValueError, match="build it again with `circuits features`"):
        replacement.load(made / "host", folder)
    reported(monkeypatch, capsys, made, folder)
    assert replacement.load(made / "host", folder).evidence is not None


def test_an_explainers_labels_are_kept_with_their_scores(made, folder, monkeypatch, capsys):
    chosen = ("--explain-feature", "L0/F3", "--explain-feature", "L1/F7")
    with serving(lambda question: "a place") as stub:
        options = ("--explain", stub.base, "--explain-model", "tiny")
        said = reported(monkeypatch, capsys, made, folder, *options, *chosen)
        few = len(stub.asked)
        everything = reported(monkeypatch, capsys, made, folder, *options, "--prompts", 4)
    assert said["explained"] and set(said["explained"]) <= {"L0/F3", "L1/F7"}
    assert few == 2 * len(said["explained"])
    assert all(label == "a place" and score == 0.5 for label, score in said["explained"].values())
    assert len(everything["explained"]) > 10
    known = replacement.load(made / "host", folder).evidence
    assert all(known.label(*place) == "a place" for place in known.explained)


def test_a_failing_explainer_leaves_the_evidence(made, folder, monkeypatch, capsys):
    names = (made / "host", folder, made / "corpus.txt")
    with serving(lambda question: 500) as stub:
        options = ("--explain", stub.base, "--explain-model", "tiny")
        status, printed, said = run(monkeypatch, capsys, "features", *names, *options)
    assert (status, printed) == (2, "") and "answered 500" in said and "Traceback" not in said
    assert replacement.load(made / "host", folder).evidence is not None


def test_a_local_model_explains(made, folder, tmp_path, monkeypatch, capsys):
    speaker = hosts.save(tmp_path / "speaker", chat=False, max_position_embeddings=512)
    chosen = ("--explain", speaker, "--explain-feature", "L0/F3")
    said = reported(monkeypatch, capsys, made, folder, *chosen)
    assert set(said["explained"]) <= {"L0/F3"}


def test_a_second_process_prints_tables(made, folder):
    command = [sys.executable, "-m", "circuits.cli", "features"]
    command += map(str, (made / "host", folder, made / "corpus.txt"))
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    known = replacement.load(made / "host", folder).evidence
    dead = 3 * hosts.FEATURES - known.alive
    (total,) = [line for line in done.stdout.splitlines() if line.startswith("  all")]
    assert total.split()[1:4] == [str(3 * hosts.FEATURES), str(known.alive), str(dead)]
    assert f"wrote {folder / FILE}" in done.stdout and "«" in done.stdout
    assert sorted(os.listdir(folder)) == ["dictionary.json", "dictionary.safetensors", FILE]


BAD = [
    (["--prompts", "0"], "--prompts=0 must be at least 1"),
    (["--tokens", "0"], "--tokens=0 must be at least 1"),
    (["--skip-first", "-1"], "--skip-first=-1 must be at least 0"),
    (["--skip-first", "50"], "no position to count"),
    (["--device", "gpu"], "--device=gpu"),
    (["--explain-model", "tiny"], "need --explain"),
    (["--explain-feature", "L0/F1"], "need --explain"),
    (["--explain", "http://localhost:1/v1"], "needs --explain-model"),
    (["--explain", "host", "--explain-model", "tiny"], "'host' is none"),
    (["--explain", "atlas", "--explain-feature", "F1"], "'F1' names no feature"),
    (["--explain", "atlas", "--explain-feature", "L7/F1"], "no L7/F1 in the dictionary"),
    (["--labels", "nowhere.csv"], "no file of labels nowhere.csv"),
    (["--out", "/"], "is a folder; name a file"),
]


@pytest.mark.parametrize(("arguments", "says"), BAD)
def test_bad_options_are_one_line(made, folder, monkeypatch, capsys, arguments, says):
    names = (made / "host", folder, made / "corpus.txt")
    status, printed, said = run(monkeypatch, capsys, "features", *names, *arguments)
    assert (status, printed) == (2, "") and says in said and len(said.strip().splitlines()) == 1
    assert not (folder / FILE).exists()


def test_labels_beyond_the_dictionary_are_refused(made, folder, tmp_path, monkeypatch, capsys):
    (tmp_path / "far.json").write_text('{"L0/F99": "Texas"}')
    names = (made / "host", folder, made / "corpus.txt", "--labels", tmp_path / "far.json")
    status, _, said = run(monkeypatch, capsys, "features", *names)
    assert status == 2 and "no L0/F99 in the dictionary 'random'" in said
    assert not (folder / FILE).exists()


@pytest.mark.parametrize("arguments", [("host", "neurons"), (None, "per-layer")])
def test_what_is_in_no_folder_of_the_users_needs_a_file(made, monkeypatch, capsys, arguments):
    host = "atlas" if arguments[0] is None else made / arguments[0]
    names = (host, arguments[1], made / "corpus.txt")
    status, _, said = run(monkeypatch, capsys, "features", *names)
    assert status == 2 and f"{arguments[1]} is not in a folder of yours" in said and "--out" in said


@pytest.mark.parametrize("corpus", ["nowhere.txt", "empty.txt"])
def test_a_corpus_that_cannot_be_read_is_one_line(made, folder, monkeypatch, capsys, corpus):
    (made / "empty.txt").write_text("\n\n")
    names = (made / "host", folder, made / corpus)
    status, _, said = run(monkeypatch, capsys, "features", *names)
    assert status == 2 and len(said.strip().splitlines()) == 1 and not (folder / FILE).exists()
