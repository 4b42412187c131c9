"""`circuits evaluate` at the command line, and `circuits trace` with a saved dictionary."""

import json
import os
import subprocess
import sys

import pytest
import torch
from commands import run
from hosts import TEXT, dictionary, save

import circuits
import replacement
from circuits.evaluation import mean_scores, spread
from replacement import ReLU, TopK, formats

LINES = [TEXT, "The capital of France is Paris", "The word21 in word22", "Austin Texas is in"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A model folder, the folder of a saved dictionary and two corpora with the same prompts."""
    path = tmp_path_factory.mktemp("evaluate")
    save(path / "host")
    formats.save(dictionary(3, TopK(5)), path / "features")
    formats.save(dictionary(2, ReLU()), path / "shallow")
    (path / "prompts.txt").write_text("\n\n".join(LINES) + "\n")
    records = (json.dumps({"id": i, "text": line}) for i, line in enumerate(LINES))
    (path / "prompts.jsonl").write_text("\n".join(records))
    return path


def reported(monkeypatch, capsys, made, *arguments, corpus="prompts.txt"):
    arguments = (made / "host", made / "features", made / corpus, *arguments, "--json")
    status, printed, said = run(monkeypatch, capsys, "evaluate", *arguments)
    assert status == 0, said
    return json.loads(printed)


def test_it_reports_what_the_functions_return(made, monkeypatch, capsys):
    said = reported(monkeypatch, capsys, made, "--traces", 2)
    model = replacement.load(made / "host", made / "features")
    measured = replacement.evaluate(model, LINES)
    for name in ("fvu", "l0", "dead", "kl", "top1", "prompts", "positions"):
        assert said[name] == pytest.approx(getattr(measured, name)), name
    assert said["layers"] == [pytest.approx(layer._asdict()) for layer in measured.layers]
    assert (said["prompts"], said["host"], said["counted"]) == (4, "host", "all")
    one, other = (circuits.trace(model, line) for line in (LINES[0], LINES[-1]))
    for name in ("replacement", "completeness"):
        mean = (getattr(one.scores(), name) + getattr(other.scores(), name)) / 2
        assert said["scores"][name] == pytest.approx(mean, rel=1e-6), name
    assert one.scores() != other.scores()
    assert said["scores"]["traces"] == said["scores"]["complete"] == 2
    assert said["scores"]["discrepancy"] == pytest.approx(max(one.discrepancy, other.discrepancy))


def test_options_choose_what_counts(made, monkeypatch, capsys):
    model = replacement.load(made / "host", made / "features")
    common = ("--traces", 0)

    def said(*arguments):
        return reported(monkeypatch, capsys, made, *common, *arguments)

    def fvu(*arguments, **options):
        return pytest.approx(replacement.evaluate(model, *arguments, **options).fvu)

    cut = [model.host.tokenize(line)[:3] for line in LINES]
    assert said("--positions", "last")["fvu"] == fvu(LINES, last=True)
    assert said("--skip-first", 1)["fvu"] == fvu(LINES, skip_first=1)
    assert said("--prompts", 2)["fvu"] == fvu(LINES[:2])
    assert said("--tokens", 3)["fvu"] == fvu(cut)
    assert said()["scores"] is None


def test_a_jsonl_corpus_is_the_same_corpus(made, monkeypatch, capsys):
    one = reported(monkeypatch, capsys, made, "--traces", 1)
    other = reported(monkeypatch, capsys, made, "--traces", 1, corpus="prompts.jsonl")
    assert one.pop("corpus") != other.pop("corpus")
    assert one == other


def test_a_long_prompt_is_cut_to_the_context(made, tmp_path, monkeypatch, capsys):
    (tmp_path / "long.txt").write_text("The " + " ".join(["word20 word21"] * 20))
    said = reported(monkeypatch, capsys, made, "--traces", 0, corpus=tmp_path / "long.txt")
    assert said["positions"] == 16


def test_a_second_process_prints_tables_and_writes_json(made, tmp_path):
    command = [sys.executable, "-m", "circuits.cli", "evaluate", *map(str, (
        made / "host", made / "features", made / "prompts.txt", "--traces", 1,
        "--out", tmp_path / "new" / "report.json",
    ))]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    said = json.loads((tmp_path / "new" / "report.json").read_text())
    assert f"{said['fvu']:.4f}" in done.stdout and f"{said['top1']:.1%}" in done.stdout
    assert f"KL from the host      {said['kl']:.4f}" in done.stdout
    assert f"{said['scores']['replacement']:.3f}" in done.stdout
    for layer in said["layers"]:
        assert f"{layer['fvu']:.4f}" in done.stdout
    assert os.listdir(tmp_path / "new") == ["report.json"]


def test_neurons_are_faithful(made, monkeypatch, capsys):
    arguments = ("evaluate", made / "host", "neurons", made / "prompts.txt", "--json")
    _, printed, _ = run(monkeypatch, capsys, *arguments, "--traces", 0)
    said = json.loads(printed)
    assert (said["kl"], said["top1"], said["fvu"]) == (0, 1, 0)


def test_the_traced_prompts_are_spread_over_the_corpus():
    prompts = [[i] for i in range(10)]
    assert spread(prompts, 3) == [[0], [4], [9]]
    assert spread(prompts, 1) == [[0]]
    assert spread(prompts, 0) == []
    assert spread(prompts, 99) == prompts


def test_progress_ends_where_the_prompts_do(made):
    told = []
    model = replacement.load(made / "host", made / "features")
    prompts = [model.host.tokenize(line) for line in LINES[:2]]
    mean_scores(model, prompts, told.append)
    assert told == sorted(told) and told[-1] == 2 and any(0 < done < 1 for done in told)


def refused(monkeypatch, capsys, tmp_path, *arguments):
    """The one line on stderr of a refused command, which must leave nothing behind."""
    out = tmp_path / "report.json"
    status, printed, said = run(monkeypatch, capsys, *arguments, "--out", out)
    assert status == 2 and printed == "" and not out.exists()
    assert "Traceback" not in said
    lines = said.strip().splitlines()
    assert len(lines) == 1
    return lines[0]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--prompts", "0"], "--prompts=0 must be at least 1"),
        (["--tokens", "0"], "--tokens=0 must be at least 1"),
        (["--traces", "-1"], "--traces=-1 must be at least 0"),
        (["--skip-first", "-1"], "--skip-first=-1 must be at least 0"),
        (["--skip-first", "50"], "has 0 positions to count"),
        (["--positions", "first"], "--positions=first is neither all nor last"),
        (["--device", "gpu"], "--device=gpu"),
    ],
)
def test_bad_options_are_one_line(made, tmp_path, monkeypatch, capsys, arguments, says):
    names = (made / "host", made / "features", made / "prompts.txt")
    assert says in refused(monkeypatch, capsys, tmp_path, "evaluate", *names, *arguments)


CORPORA = {
    "missing.txt": (None, "no corpus file"),
    "empty.txt": ("\n \n", "holds no text; give one prompt a line"),
    "broken.jsonl": ('{"text": "The capital"}\n{"text": ', "broken.jsonl, line 2"),
    "fields.jsonl": ('{"title": "The capital"}\n', 'field "text"'),
}


@pytest.mark.parametrize("name", CORPORA)
def test_a_corpus_that_cannot_be_read_is_one_line(made, tmp_path, monkeypatch, capsys, name):
    content, says = CORPORA[name]
    if content is not None:
        (tmp_path / name).write_text(content)
    names = (made / "host", made / "features", tmp_path / name)
    assert says in refused(monkeypatch, capsys, tmp_path, "evaluate", *names)


def test_a_folder_in_the_reports_place_is_refused(made, tmp_path, monkeypatch, capsys):
    names = (made / "host", made / "features", made / "prompts.txt", "--out", tmp_path)
    status, printed, said = run(monkeypatch, capsys, "evaluate", *names)
    assert (status, printed) == (2, "") and "is a folder; name a JSON file" in said


DICTIONARIES = {
    "feature": ("did you mean", "features'"),
    "shallow": ("2 layers", "has 3"),
    "host": ("holds no dictionary.json", "save one there"),
}


@pytest.mark.parametrize("command", ["evaluate", "trace"])
@pytest.mark.parametrize("name", DICTIONARIES)
def test_a_dictionary_that_does_not_fit_is_one_line(
    made, tmp_path, monkeypatch, capsys, command, name
):
    arguments = {
        "evaluate": (made / "host", made / name, made / "prompts.txt"),
        "trace": (TEXT, "--model", made / "host", "--dictionary", made / name),
    }[command]
    line = refused(monkeypatch, capsys, tmp_path, command, *arguments)
    assert all(part in line for part in DICTIONARIES[name]), line


def test_trace_takes_the_folder_of_a_saved_dictionary(made, monkeypatch, capsys):
    arguments = (TEXT, "--model", made / "host", "--dictionary", made / "features", "--json")
    status, printed, _ = run(monkeypatch, capsys, "trace", *arguments)
    assert status == 0
    said = json.loads(printed)
    graph = circuits.trace(
        replacement.load(made / "host", dictionary(3, TopK(5)), device="auto"), TEXT
    )
    assert said["dictionary"] == "random"
    assert said["active"] == graph.settings["active"]
    assert said["scores"] == pytest.approx(graph.scores()._asdict())
    assert torch.isfinite(torch.tensor(said["discrepancy"])) and said["discrepancy"] < 1e-4
