"""Evidence as a file: nothing changes on the way, and what is not whole or not ours is refused."""

import json
import os
from dataclasses import fields, replace

import hosts
import numpy as np
import pytest
from evidences import drawn, gathered
from hypothesis import given
from safetensors.numpy import load_file, save_file

import replacement
from replacement import Host, TopK, evidence, formats
from replacement.evidence import FILE, Evidence
from replacement.evidence.evidence import Arrays
from replacement.evidence.gathering import _compact
from replacement.evidence.store import FORMAT


def same(one, other):
    assert (one.source, one.texts) == (other.source, other.texts)
    assert (dict(one.explained), dict(one.given)) == (dict(other.explained), dict(other.given))
    for field in fields(Arrays):
        mine, theirs = getattr(one.arrays, field.name), getattr(other.arrays, field.name)
        assert mine.dtype == theirs.dtype and np.array_equal(mine, theirs), field.name


@given(drawn())
def test_nothing_changes_on_the_way(tmp_path_factory, known):
    path = tmp_path_factory.mktemp("store") / "new" / "f.safetensors"
    evidence.save(known, path)
    back = evidence.load(path)
    same(known, back)
    assert os.listdir(path.parent) == ["f.safetensors"]
    for layer, size in enumerate(known.source.sizes):
        for feature in range(size):
            assert back.describe(layer, feature) == known.describe(layer, feature)


def test_gathered_evidence_round_trips(tmp_path):
    known = gathered().relabelled({(0, 3): "Texas"}).with_explanations({(1, 1): ("a city", 0.75)})
    evidence.save(known, tmp_path / FILE)
    same(known, evidence.load(tmp_path / FILE))


def test_the_same_evidence_is_the_same_file(tmp_path):
    contents = set()
    for _ in range(5):
        evidence.save(gathered(), tmp_path / FILE)
        contents.add((tmp_path / FILE).read_bytes())
    assert len(contents) == 1


def test_a_header_that_is_not_json_is_refused(saved):
    save_file(load_file(saved), saved, {FORMAT: "{"})
    refused(saved, "is damaged")


def test_numbers_are_kept_in_few_bytes():
    for values, wanted in [
        (np.array([0, 5]), np.int8), (np.array([-1, 127]), np.int8), (np.array([0, 200]), np.uint8),
        (np.array([-1, 200]), np.int16), (np.array([0, 2**17]), np.int32),
        (np.array([2**40]), np.int64), (np.array([0.5]), np.float16), (np.array([1e6]), np.float32),
    ]:  # fmt: skip
        kept = _compact(values)
        assert kept.dtype == wanted and np.array_equal(kept, values)


def test_a_file_is_as_open_as_the_users_own(tmp_path):
    before = os.umask(0o027)
    try:
        evidence.save(gathered(), tmp_path / FILE)
    finally:
        os.umask(before)
    assert (tmp_path / FILE).stat().st_mode & 0o777 == 0o640


def test_a_save_that_is_stopped_leaves_what_was_there(tmp_path, monkeypatch):
    (tmp_path / FILE).write_text("before")

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        evidence.save(gathered(), tmp_path / FILE)
    assert os.listdir(tmp_path) == [FILE] and (tmp_path / FILE).read_text() == "before"


def test_labels_alone_are_not_saved(tmp_path):
    with pytest.raises(ValueError, match="no evidence to save"):
        evidence.save(Evidence().relabelled({(0, 0): "a"}), tmp_path / FILE)
    assert not list(tmp_path.iterdir())


# Files that are not whole, or not ours.


@pytest.fixture
def saved(tmp_path):
    evidence.save(gathered(), tmp_path / FILE)
    return tmp_path / FILE


def refused(path, says):
    with pytest.raises(ValueError, match=says) as error:
        evidence.load(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.999])
def test_a_truncated_file_is_refused(saved, share):
    content = saved.read_bytes()
    saved.write_bytes(content[: int(share * len(content))])
    refused(saved, "truncated or not a safetensors file")


def test_what_is_no_evidence_is_refused(saved, tmp_path):
    refused(tmp_path / "nowhere", "there is no file.*circuits features")
    save_file({"a": np.zeros(3)}, tmp_path / "other.safetensors")
    refused(tmp_path / "other.safetensors", "is not evidence of features; build it again")
    (tmp_path / "p.safetensors").write_bytes(b"\x80\x04\x95rubbish")
    refused(tmp_path / "p.safetensors", "is a pickle, which can run code")


def header(path):
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    return json.loads(json.loads(content[8 : 8 + size])["__metadata__"][FORMAT])


def rewritten(path, arrays, head):
    save_file(arrays, path, {FORMAT: json.dumps(head)})


def test_another_version_is_refused(saved):
    rewritten(saved, load_file(saved), {**header(saved), "version": "2"})
    refused(saved, "format version 2 and this version reads 1; build it again")


DAMAGE = {
    "lacks-an-array": lambda a: a.pop("histogram"),
    "holds-another": lambda a: a.update(extra=np.zeros(2)),
    "token-outside": lambda a: a.update(promotes=a["promotes"] + 100),
    "token-below": lambda a: a.update(name_tokens=np.full_like(a["name_tokens"], -5, np.int16)),
    "window-outside": lambda a: a.update(context=np.full_like(a["context"], 99)),
    "rows-missing": lambda a: a.update(fired=a["fired"][:-1]),
    "columns-missing": lambda a: a.update(context_at=a["context_at"][:, :1]),
    "values-missing": lambda a: a.update(through_values=a["through_values"][:-1]),
    "scores-missing": lambda a: a.update(name_scores=a["name_scores"][:-1]),
    "cut-backwards": lambda a: a.update(name_ends=a["name_ends"][::-1].copy()),
    "cut-short": lambda a: a.update(window_tokens=a["window_tokens"][:-1]),
    "texts-missing": lambda a: a.update(tokens=a["tokens"][:-1]),
    "fractions-for-numbers": lambda a: a.update(promotes=a["promotes"].astype(np.float32)),
    "at-outside": lambda a: a.update(context_at=a["context_at"] + 50),
    "not-a-number": lambda a: a.update(largest=np.full_like(a["largest"], np.nan)),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_arrays_that_do_not_fit_together_are_refused(saved, name):
    arrays = load_file(saved)
    DAMAGE[name](arrays)
    rewritten(saved, arrays, header(saved))
    refused(saved, "is damaged .*; build it again with `circuits features`")


@pytest.mark.parametrize(
    ("key", "value"),
    [("source", 7), ("source", []), ("source", {"sizes": [1]}), ("texts", 7), ("texts", ["a"]),
     ("explained", [[1]]), ("given", 7), ("texts", None), ("version", None)],
)  # fmt: skip
def test_a_header_that_does_not_fit_is_refused(saved, key, value):
    head = header(saved)
    del head[key]
    head |= {} if value is None else {key: value}
    rewritten(saved, load_file(saved), head)
    refused(saved, "is damaged")


# In a dictionary's folder.


@pytest.fixture(scope="module")
def host():
    return Host.open(hosts.build("llama"), tokenizer=hosts.words())


def test_a_models_evidence_is_the_file_in_the_dictionarys_folder(tmp_path, host):
    formats.save(hosts.dictionary(3, TopK(5)), tmp_path / "d")
    assert replacement.load(host, tmp_path / "d").evidence is None
    evidence.save(gathered(), tmp_path / "d" / FILE)
    model = replacement.load(host, tmp_path / "d")
    assert model.evidence is not None
    same(model.evidence, gathered())
    assert replacement.load(host, formats.load(tmp_path / "d")).evidence is None
    assert replacement.load(host, "neurons").evidence is None


def test_evidence_may_lie_elsewhere(tmp_path, host):
    known = gathered()
    evidence.save(known, tmp_path / "mine.safetensors")
    made = hosts.dictionary(3, TopK(5))
    same(replacement.load(host, made, tmp_path / "mine.safetensors").evidence, known)
    formats.save(made, tmp_path / "d")
    evidence.save(known.relabelled({(0, 0): "beside"}), tmp_path / "d" / FILE)
    chosen = replacement.load(host, tmp_path / "d", features=tmp_path / "mine.safetensors")
    same(chosen.evidence, known)
    with pytest.raises(ValueError, match="there is no file"):
        replacement.load(host, made, features=tmp_path / "nowhere")


def test_evidence_of_another_dictionary_is_refused(tmp_path, host):
    evidence.save(gathered(), tmp_path / FILE)
    with pytest.raises(ValueError, match=r"of the dictionary 'random'.*circuits features"):
        replacement.load(host, "neurons", tmp_path / FILE)
    other = replace(gathered().source, sizes=(24, 24, 12, 12))
    evidence.save(replace(gathered(), source=other), tmp_path / FILE)
    with pytest.raises(ValueError, match=r"\[24, 24, 12, 12\] features, not of 'random' with"):
        replacement.load(host, hosts.dictionary(3, TopK(5)), tmp_path / FILE)


def test_saving_a_dictionary_anew_removes_the_evidence_of_the_old_one(tmp_path):
    formats.save(hosts.dictionary(3, TopK(5)), tmp_path / "d")
    evidence.save(gathered(), tmp_path / "d" / FILE)
    formats.save(hosts.dictionary(3, TopK(5), seed=1), tmp_path / "d")
    assert not (tmp_path / "d" / FILE).exists()
    assert len(formats.load(tmp_path / "d").layers) == 3
