"""Atlas as it ships: offline, small, read by transformers too, and its words are known."""

import itertools
import json
import os
import shutil
import subprocess
import sys
import zipfile
from functools import cache
from pathlib import Path

import pytest
import torch

import circuits
import replacement
from replacement import Host, bundled, evidence, formats
from replacement.atlas import facts
from replacement.evidence.promoted import promoted

ROOT = Path(__file__).resolve().parents[1]
FOLDER = bundled.SHIPPED["atlas"]
PROMPT = "the capital of the state containing Dallas is"
KINDS = ["per-layer", "cross-layer"]
SHIPPED = ["*.json", "MODEL_CARD.md", "model/*", "per-layer/*", "cross-layer/*"]


@cache
def atlas():
    return Host.open()


def shipped():
    return sorted(file for glob in SHIPPED for file in FOLDER.glob(glob))


# Any socket at all is refused, before the first import can hold on to the real one.
GUARD = """
import socket, sys
def refused(*arguments, **options):
    print("the network was asked for", file=sys.stderr)
    raise OSError("no network")
socket.getaddrinfo = socket.create_connection = refused
socket.socket.connect = socket.socket.connect_ex = refused
from circuits import cli
cli.main()
"""


def in_a_fresh_process(home, *arguments):
    """The command without network, with caches of its own and nothing that says offline."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "CIRCUITS_", "XDG_"))}
    places = {"HOME": str(home), "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-c", GUARD, *arguments],
        cwd=home, env=kept | places, capture_output=True, text=True, timeout=300,
    )  # fmt: skip


def test_the_first_command_needs_no_network_no_options_and_no_cache(tmp_path):
    done = in_a_fresh_process(tmp_path, "trace", PROMPT, "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert (said["model"], said["prompt"]) == ("atlas", PROMPT)
    assert said["tokens"] == PROMPT.split()
    assert said["dictionary"] == formats.describe(FOLDER / KINDS[0])["name"]
    assert said["discrepancy"] < 1e-4 and said["paths"]
    assert "the network" not in done.stderr
    assert not list(tmp_path.rglob("*"))


def test_the_guard_refuses_a_download(tmp_path):
    """Or the test above would pass with the network open."""
    done = in_a_fresh_process(tmp_path, "trace", "a", "--model", "nobody/nothing")
    assert done.returncode == 2 and "the network was asked for" in done.stderr


def test_atlas_is_the_default():
    assert replacement.load().host.name == atlas().name == "atlas"
    assert atlas().dtype == torch.float32


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("opened", [False, True])
def test_its_dictionaries_are_loaded_by_name(kind, opened):
    model = replacement.load(atlas() if opened else "atlas", kind)
    saved = formats.load(FOLDER / kind)
    for mine, theirs in zip(model.dictionary.layers, saved.layers, strict=True):
        assert torch.equal(mine.reader, theirs.reader)
    crossing = any(len(layer.writers) > 1 for layer in saved.layers)
    assert crossing == (kind == "cross-layer")


def test_the_default_dictionary_is_the_hosts_own():
    assert list(atlas().dictionaries) == KINDS
    first = formats.load(FOLDER / KINDS[0])
    for source in ("atlas", atlas()):
        mine = replacement.load(source).dictionary
        assert torch.equal(mine.layers[0].reader, first.layers[0].reader)
    assert replacement.load("atlas", "neurons").dictionary.exact
    # The same weights as a folder are a host like any other.
    assert replacement.load(FOLDER / "model").dictionary.exact


def test_a_dictionary_it_does_not_have_is_refused_with_those_it_has():
    with pytest.raises(ValueError) as error:
        replacement.load(atlas(), "cros-layer")
    said = str(error.value)
    assert "did you mean 'cross-layer'?" in said
    assert all(name in said for name in ("'cross-layer'", "'per-layer'", "'neurons'"))
    with pytest.raises(ValueError, match=r"no dictionary 'cross-layer'; known here: 'neurons'\."):
        replacement.load(FOLDER / "model", "cross-layer")


UNKNOWN = {
    "misspelt": ("the capital of the state containing Dalas is", "Dalas", ["Dallas"]),
    "lower-case": ("the capital of the state containing dallas is", "dallas", ["Dallas"]),
    "part-of-a-name": ("the capital of Antonio is", "Antonio", ["San Antonio"]),
    "punctuated": ("the capital of Texas, is", "Texas,", ["Texas"]),
    "beside-a-name": ("the capital of New York City, is", ",", []),
    "far-from-all": ("the xqzzqx is", "xqzzqx", []),
    "doubled-spaces": ("the  capital   of Txas", "Txas", ["Texas"]),
}


@pytest.mark.parametrize("case", UNKNOWN)
def test_an_unknown_word_is_named_with_the_nearest(case):
    prompt, word, near = UNKNOWN[case]
    with pytest.raises(ValueError) as error:
        atlas().tokenize(prompt)
    said = str(error.value)
    assert f"atlas does not know the word {word!r}" in said and "\n" not in said
    listed = said.rpartition("knows: ")[2].removesuffix(".").split(", ")
    assert len(listed) <= 3 and listed[: len(near)] == near


def test_the_first_unknown_word_is_the_one_named():
    with pytest.raises(ValueError, match="the word 'Zork'"):
        atlas().tokenize("the Zork of Blorb")


def test_the_unknown_token_spelt_out_is_meant():
    assert atlas().tokenizer.unk_token_id in atlas().tokenize("the capital of <unk> is")


NAMES = ["San Antonio", "New York City", "New York", "Austin"]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_of_several_words_is_one_token(name):
    ids = atlas().tokenize(f"the capital of {name} is")
    assert len(ids) == 5 and atlas().token(ids[3]) == name
    assert atlas().text(ids) == f"the capital of {name} is"


@pytest.mark.parametrize("name", NAMES)
def test_a_name_of_several_words_is_a_target(name):
    graph = circuits.trace(replacement.load(atlas()), PROMPT, name)
    assert graph.nodes.iloc[graph.explained]["token"].tolist() == [name]


@pytest.mark.parametrize(
    ("target", "near"),
    [("austin", "'Austin'"), ("San Antonia", "'San Antonio'"), ("Texs", "Texas")],
)
def test_an_unknown_target_is_answered_with_the_nearest(target, near):
    with pytest.raises(ValueError, match=rf"{target!r} is not one token of atlas.*{near}"):
        circuits.trace(replacement.load(atlas()), PROMPT, target)


def test_a_graph_of_ids_reads_like_the_text():
    graph = circuits.trace(replacement.load(atlas()), atlas().tokenize(PROMPT))
    assert graph.settings["prompt"] == PROMPT


@torch.no_grad()
def test_transformers_reads_the_folder_and_computes_the_same():
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(FOLDER / "model")
    model = AutoModelForCausalLM.from_pretrained(FOLDER / "model", dtype=torch.float32)
    for prompt in (PROMPT, "the capital of New York City is"):
        ids = tokenizer(prompt).input_ids
        assert ids == atlas().tokenize(prompt)
        wanted = model(torch.tensor([ids])).logits[0]
        torch.testing.assert_close(atlas().run(ids).logits, wanted, rtol=0, atol=2e-5)
    assert sum(p.numel() for p in model.parameters()) <= 3_000_000


def test_a_feature_of_the_second_layer_is_texas():
    """Of all places it fires on Texas and its cities, and elsewhere less than half as strongly."""
    world, model = facts.load(), replacement.load("atlas", "per-layer")
    fired = {}
    for region in (*world.states, *world.countries):
        for place in (region.name, *region.cities):
            found = model.read(model.run(place)).layers[2]
            for value in found.activations[found.features == 472].tolist():
                fired[place] = value
    (texas,) = [state for state in world.states if state.name == "Texas"]
    own = [fired.pop(place) for place in (texas.name, *texas.cities)]
    assert len(own) == 9 and len(fired) == 5 and max(fired.values()) < min(own) / 2


@pytest.mark.parametrize("kind", KINDS)
def test_the_evidence_that_ships_is_of_the_dictionary_beside_it(kind):
    model = replacement.load(atlas(), kind)
    assert model.evidence is not None and (FOLDER / kind / evidence.FILE).stat().st_size < 1.5e6
    arrays = model.evidence.arrays
    for key, part in zip(("promotes", "suppresses", "through"), promoted(model), strict=True):
        values = getattr(arrays, f"{key}_values").astype(float)
        assert values == pytest.approx(part.values.numpy(), rel=2e-3, abs=1e-3)
    checked = 0
    for layer, feature in itertools.product(range(4), range(0, 500, 50)):
        for context in model.evidence.describe(layer, feature)["contexts"][:1]:
            found = model.read(model.run(" ".join(context["tokens"]))).layers[layer]
            here = (found.features == feature) & (found.positions == context["at"])
            assert found.activations[here].tolist() == [
                pytest.approx(context["activation"], rel=2e-3)
            ]
            checked += 1
    assert checked > 20


def test_the_features_of_texas_are_called_so():
    known = replacement.load("atlas", "per-layer").evidence
    (dallas, texas) = atlas().tokenize("Dallas Texas")
    assert (
        known.label(2, 472) == known.label(2, 472, dallas) == known.label(2, 472, texas) == "Texas"
    )


def test_what_ships_is_small_and_whole():
    names = {file.relative_to(FOLDER).as_posix() for file in shipped()}
    assert {
        "world.json",
        "tables.json",
        "MODEL_CARD.md",
        "model/config.json",
        "model/tokenizer.json",
    } <= names
    assert {f"{kind}/dictionary.safetensors" for kind in KINDS} <= names
    assert {f"{kind}/features.safetensors" for kind in KINDS} <= names
    assert sum(file.stat().st_size for file in shipped()) < 25e6
    others = {p for p in FOLDER.rglob("*") if p.is_file() and p.suffix not in (".py", ".pyc")}
    assert others == set(shipped())  # nothing lies there that a wheel would leave out


def test_the_wheel_holds_what_ships(tmp_path):
    """Built from a copy: a build leaves folders beside what it builds."""
    setuptools = pytest.importorskip("setuptools")
    if int(setuptools.__version__.partition(".")[0]) < 77:
        pytest.skip("this setuptools is older than the one that builds the package")
    source = tmp_path / "source"
    for room in ("replacement", "graphs", "circuits"):
        shutil.copytree(ROOT / room, source / room, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, source)
    build = [sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation"]
    done = subprocess.run(
        [*build, "--no-index", "-w", str(tmp_path)], cwd=source, capture_output=True, text=True,
        timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
    assert {file.relative_to(ROOT).as_posix() for file in shipped()} <= held
