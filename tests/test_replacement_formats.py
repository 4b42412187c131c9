"""Saved dictionaries: bit for bit what was saved, whole or not at all, and what is refused."""

import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from hosts import FEATURES, KINDS, PROMPT, WIDTH, dictionary, host, model, options
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import replacement
from replacement import BatchTopK, Dictionary, JumpReLU, ReLU, TopK, Transcoder, formats
from replacement.formats.folder import whole_folder

FILES = ["dictionary.json", "dictionary.safetensors"]
NUMBERS = st.floats(-1e30, 1e30)
DTYPES = st.sampled_from([torch.float32, torch.float64])
COUNTS = st.integers(1, 10**6)


def bits(tensor):
    """As integers, so that -0 is not 0 and nothing is merely close."""
    whole = {2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    return tensor.contiguous().view(whole)


def same(one, other):
    if one is None or other is None:
        return one is other
    return (
        one.dtype == other.dtype
        and one.shape == other.shape
        and torch.equal(bits(one), bits(other))
    )


def same_activation(one, other):
    if type(one) is not type(other):
        return False
    if isinstance(one, JumpReLU) and isinstance(one.threshold, torch.Tensor):
        return same(one.threshold, other.threshold)
    return vars(one) == vars(other) and all(
        type(vars(one)[name]) is type(value) for name, value in vars(other).items()
    )


@st.composite
def activations(draw, features, generator):
    kind = draw(st.integers(0, 6))
    if kind < 3:
        shape = ((features,), (), (features,))[kind]
        return JumpReLU(torch.randn(shape, generator=generator, dtype=draw(DTYPES)))
    return (
        ReLU(),
        TopK(draw(COUNTS)),
        JumpReLU(draw(NUMBERS)),
        BatchTopK(draw(COUNTS), draw(st.none() | NUMBERS)),
    )[kind - 3]


@st.composite
def dictionaries(draw):
    """Of one to three layers, all different in all that a transcoder can differ in."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    count, width, dtype = draw(st.integers(1, 3)), draw(st.integers(1, 4)), draw(DTYPES)

    def noise(*shape):
        # A transpose is not contiguous, and a file must hold it in its own order.
        return torch.randn(shape[::-1], generator=generator, dtype=dtype).T

    layers = []
    for index in range(count):
        features = draw(st.integers(1, 4))
        inside = st.integers(index, count - 1)
        reader = noise(features, width)
        writers = {m: noise(features, width) for m in draw(st.sets(inside, min_size=1))}
        if draw(st.booleans()):
            writers[index] = reader  # tied: the same memory twice
        biases = {m: noise(width).contiguous() for m in draw(st.sets(inside))}
        layers.append(
            Transcoder(
                reader=reader,
                writers=writers,
                activation=draw(activations(features, generator)),
                reader_bias=noise(features) if draw(st.booleans()) else None,
                writer_biases=draw(st.sampled_from([None, biases])),
                skip=noise(width, width) if draw(st.booleans()) else None,
            )
        )
    sites = {"read": "hook_resid_mid", "write": "mlp.hook_out"} if draw(st.booleans()) else {}
    return Dictionary(layers, name=draw(st.text(max_size=5)), **sites)


@given(dictionaries())
@pytest.mark.filterwarnings("ignore:The use of `x.T`")
def test_round_trip(tmp_path_factory, made):
    folder = tmp_path_factory.mktemp("round") / "saved"
    formats.save(made, folder)
    back = formats.load(folder)
    assert (back.name, back.read, back.write) == (made.name, made.read, made.write)
    assert len(back.layers) == len(made.layers)
    for one, other in zip(made.layers, back.layers, strict=True):
        for name in ("reader", "reader_bias", "skip"):
            assert same(getattr(one, name), getattr(other, name)), name
        for name in ("writers", "biases"):
            assert {*getattr(one, name)} == {*getattr(other, name)}
            assert all(same(t, getattr(other, name)[m]) for m, t in getattr(one, name).items())
        assert same_activation(one.activation, other.activation)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_half_the_size_and_loads_as_float32(tmp_path, dtype):
    made = dictionary(3, KINDS["skip-normalized"]["activation"], skip=True, cross=True)
    formats.save(made, tmp_path / "whole")
    formats.save(made, tmp_path / "half", dtype=dtype)
    stored = load_file(tmp_path / "half" / FILES[1])
    assert {t.dtype for t in stored.values() if t.ndim == 2} == {dtype}
    whole, half = ((tmp_path / name / FILES[1]).stat().st_size for name in ("whole", "half"))
    assert half < 0.65 * whole
    back = formats.load(tmp_path / "half")
    for one, other in zip(made.layers, back.layers, strict=True):
        assert same(other.reader, one.reader.to(dtype).float())
        assert same(other.skip, one.skip.to(dtype).float())
        assert all(same(other.writers[m], w.to(dtype).float()) for m, w in one.writers.items())
        assert same(other.reader_bias, one.reader_bias)  # vectors keep their precision,
        assert same_activation(one.activation, other.activation)  # thresholds among them


def test_numbers_too_large_for_the_precision_are_refused(tmp_path):
    layer = Transcoder(
        reader=torch.full((2, 3), 1e6), writers={0: torch.ones(2, 3)}, activation=ReLU()
    )
    with pytest.raises(ValueError, match=r"0\.reader does not fit float16.*bfloat16"):
        formats.save(Dictionary([layer]), tmp_path / "half", dtype=torch.float16)
    with pytest.raises(ValueError, match="float8_e4m3fn cannot be loaded again; use one of float1"):
        formats.save(Dictionary([layer]), tmp_path / "half", dtype=torch.float8_e4m3fn)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "neurons"])
def test_a_saved_dictionary_computes_what_the_one_in_memory_does(tmp_path, kind):
    formats.save(model("gpt2", kind).dictionary, tmp_path / "saved")
    back = replacement.load(host("gpt2"), tmp_path / "saved")
    assert torch.equal(back.replaced(PROMPT), model("gpt2", kind).replaced(PROMPT))


def test_the_files_are_as_documented(tmp_path):
    made = dictionary(3, **options("gpt2", "cross-skip"))
    formats.save(made, tmp_path / "saved", {"host": "gpt2", "steps": 7, "rates": [0.5]})
    told = json.loads((tmp_path / "saved" / FILES[0]).read_text())
    assert told == formats.describe(tmp_path / "saved")
    assert told["format"] == "transcoder-dictionary" and told["version"] == "1"
    assert (told["name"], told["host"]) == ("random", "gpt2")
    assert (told["read"], told["write"]) == ("hook_resid_mid", "mlp.hook_out")
    assert told["about"] == {"steps": 7, "rates": [0.5]}
    assert told["layers"][1] == {
        "features": FEATURES,
        "width": WIDTH,
        "writes": [1, 2],
        "biases": [1, 2],
        "others": ["reader_bias", "skip"],
        "activation": {"kind": "relu"},
    }
    names = {f"1.{name}" for name in ("reader", "reader_bias", "skip", "writer.1", "writer.2")}
    stored = load_file(tmp_path / "saved" / FILES[1])
    assert {n for n in stored if n[0] == "1"} == names | {"1.writer_bias.1", "1.writer_bias.2"}


def test_saving_twice_gives_the_same_bytes(tmp_path):
    for name in ("one", "other"):
        formats.save(dictionary(2, TopK(3)), tmp_path / name, {"b": 1, "a": 2})
    for file in FILES:
        one, other = (tmp_path / name / file for name in ("one", "other"))
        assert one.read_bytes() == other.read_bytes()


def test_neurons_are_not_saved(tmp_path):
    with pytest.raises(ValueError, match=r"layer 0 of 'neurons'.*not saved.*'neurons'"):
        formats.save(model("gpt2", "neurons").dictionary, tmp_path / "saved")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("about", [{"loss": float("nan")}, {"model": torch.ones(2)}, {"s": {1}}])
def test_an_about_that_json_cannot_hold_is_refused(tmp_path, about):
    with pytest.raises(ValueError, match=r"cannot be described in JSON.*finite"):
        formats.save(dictionary(1, ReLU()), tmp_path / "saved", about)
    assert os.listdir(tmp_path) == []


# Whole or not at all.


def contents(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


@pytest.mark.parametrize("kind", [KeyboardInterrupt, OSError])
@pytest.mark.parametrize("nth", [1, 2])
def test_an_interrupted_save_leaves_the_old_dictionary_and_nothing_else(
    tmp_path, monkeypatch, kind, nth
):
    """Stopped at the first rename (the old one away) or at the second (the new one in)."""
    formats.save(dictionary(2, ReLU()), tmp_path / "saved")
    before, replace, calls = contents(tmp_path / "saved"), os.replace, []

    def stop(*paths):
        calls.append(paths)
        if len(calls) == nth:
            raise kind("stopped")
        replace(*paths)

    monkeypatch.setattr(os, "replace", stop)
    with pytest.raises(kind):
        formats.save(dictionary(2, TopK(3), seed=1), tmp_path / "saved")
    assert contents(tmp_path / "saved") == before and os.listdir(tmp_path) == ["saved"]


def test_a_save_stopped_while_writing_leaves_nothing(tmp_path, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("safetensors.torch.save", stop)
    with pytest.raises(KeyboardInterrupt):
        formats.save(dictionary(2, ReLU()), tmp_path / "saved")
    assert os.listdir(tmp_path) == []


def test_a_saved_dictionary_is_replaced(tmp_path):
    formats.save(dictionary(3, ReLU()), tmp_path / "saved")
    formats.save(dictionary(2, TopK(3), seed=1), tmp_path / "saved")
    assert len(formats.load(tmp_path / "saved").layers) == 2
    assert sorted(os.listdir(tmp_path / "saved")) == FILES and os.listdir(tmp_path) == ["saved"]


def test_an_empty_folder_is_filled_and_missing_parents_are_made(tmp_path):
    (tmp_path / "empty").mkdir()
    for name in ("empty", "a/b/c"):
        formats.save(dictionary(1, ReLU()), tmp_path / name)
        assert len(formats.load(tmp_path / name).layers) == 1


def test_a_folder_is_as_open_as_the_users_own(tmp_path):
    before = os.umask(0o027)
    try:
        formats.save(dictionary(1, ReLU()), tmp_path / "saved")
    finally:
        os.umask(before)
    assert (tmp_path / "saved").stat().st_mode & 0o777 == 0o750


def test_a_folder_with_other_things_is_refused_by_name(tmp_path):
    formats.save(dictionary(1, ReLU()), tmp_path / "saved")
    (tmp_path / "saved" / "thesis.tex").write_text("years")
    before = contents(tmp_path / "saved")
    with pytest.raises(ValueError, match=r"saved holds other things \(thesis.tex\).*name a new"):
        formats.save(dictionary(1, TopK(2)), tmp_path / "saved")
    assert contents(tmp_path / "saved") == before and os.listdir(tmp_path) == ["saved"]


def test_a_file_in_the_folders_place_is_refused(tmp_path):
    (tmp_path / "saved").write_text("mine")
    with pytest.raises(ValueError, match="saved is a file; name a folder"):
        formats.save(dictionary(1, ReLU()), tmp_path / "saved")
    assert (tmp_path / "saved").read_text() == "mine"


def test_what_came_meanwhile_is_not_overwritten(tmp_path):
    with (
        pytest.raises(ValueError, match=r"other things \(notes\)"),
        whole_folder(tmp_path / "saved", FILES),
    ):
        (tmp_path / "saved").mkdir()
        (tmp_path / "saved" / "notes").write_text("mine")
    assert (tmp_path / "saved" / "notes").read_text() == "mine"


# Reading what is not there, or not whole.


@pytest.fixture
def saved(tmp_path):
    jumping, top = dictionary(2, KINDS["jumprelu"]["activation"]), dictionary(2, TopK(5))
    formats.save(Dictionary([jumping.layers[0], top.layers[1]]), tmp_path / "texas")
    return tmp_path / "texas"


def refused(folder, match):
    with pytest.raises(ValueError, match=match) as caught:
        formats.load(folder)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_folder_is_answered_with_the_nearest(saved):
    refused(saved.parent / "texa", rf"no dictionary.*did you mean '{saved}'\?")
    refused(saved.parent / "zzz", rf"no dictionary.*known here: '{saved}'\.")
    refused(saved / "nowhere" / "zzz", "no dictionary.*known here: none")
    with pytest.raises(ValueError, match=rf"no dictionary.*did you mean '{saved}'\?"):
        replacement.load(host("gpt2"), str(saved.parent / "texas2"))


def test_an_unknown_name_lists_what_there_is(saved, monkeypatch):
    monkeypatch.chdir(saved.parent)
    with pytest.raises(ValueError, match=r"no dictionary 'zzz'; known here: 'neurons', 'texas'"):
        replacement.load(host("gpt2"), "zzz")
    assert replacement.load(host("gpt2", torch.float32), "neurons").dictionary.exact


def test_a_folder_of_dictionaries_names_those_inside(saved):
    refused(saved.parent, "holds no dictionary.json; did you mean one of those inside it: texas")


def test_a_file_is_answered_with_its_folder(saved):
    refused(saved / FILES[1], "is a file; name the folder")


@pytest.mark.parametrize("share", [0, 0.001, 0.5, 0.99])
@pytest.mark.parametrize("file", FILES)
def test_truncated_files_are_refused(saved, file, share):
    whole = (saved / file).read_bytes()
    (saved / file).write_bytes(whole[: int(share * len(whole))])
    refused(saved, "truncated")


def test_missing_tensors_files_are_refused(saved):
    (saved / FILES[1]).unlink()
    refused(saved, r"lacks dictionary\.safetensors")


def test_another_format_version_is_refused(saved):
    told = json.loads((saved / FILES[0]).read_text())
    (saved / FILES[0]).write_text(json.dumps({**told, "version": "2"}))
    refused(saved, "has format version 2 and this version reads 1")
    (saved / FILES[0]).write_text('{"format": "attribution-graph"}')
    refused(saved, "does not describe a dictionary")
    (saved / FILES[0]).write_text("[1]")
    refused(saved, "does not describe a dictionary")


TENSORS = {
    "missing": (lambda t: t.pop("1.writer.1"), r"lacks 1\.writer\.1"),
    "strange": (lambda t: t.update(extra=torch.ones(2)), "holds extra"),
    "nan": (lambda t: t["1.reader"][2].fill_(torch.nan), r"1\.reader .*holds NaN"),
    "infinite": (
        lambda t: t["0.threshold"][2].fill_(torch.inf),
        r"0\.threshold .*holds NaN or inf",
    ),
    "shape": (lambda t: t.update({"0.reader": torch.ones(5, 5)}), r"0\.reader .*shape \(5, 5\)"),
    "whole": (lambda t: t.update({"0.reader": t["0.reader"].int()}), r"0\.reader .*torch\.int32"),
}


@pytest.mark.parametrize("damage", TENSORS)
def test_damaged_tensors_are_named(saved, damage):
    change, said = TENSORS[damage]
    tensors = load_file(saved / FILES[1])
    change(tensors)
    save_file(tensors, saved / FILES[1])
    refused(saved, said)


def without(key):
    return lambda told: told["layers"][1].pop(key)


def activation(**values):
    return lambda told: told["layers"][1].update(activation=values)


JSONS = {
    "features": (without("features"), "garbled.*'features'"),
    "others": (without("others"), "garbled.*'others'"),
    "layers": (lambda told: told.pop("layers"), "garbled.*'layers'"),
    "no-layers": (lambda told: told.update(layers=3), "garbled"),
    "kind": (activation(kind="swish"), "garbled.*'swish'"),
    "k": (activation(kind="topk", k=0), "k=0 must be at least 1"),
    "unknown-number": (activation(kind="topk", q=1), "garbled"),
    "site": (lambda told: told.update(read="nowhere"), "site 'nowhere' is not known"),
    "not-a-number": (activation(kind="jumprelu", threshold=float("nan")), "holds NaN"),
}


@pytest.mark.parametrize("damage", JSONS)
def test_a_damaged_description_is_named(saved, damage):
    change, said = JSONS[damage]
    told = json.loads((saved / FILES[0]).read_text())
    change(told)
    (saved / FILES[0]).write_text(json.dumps(told))
    refused(saved, said)


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


@pytest.mark.parametrize("name", ["model.pt", "model.bin", "model.ckpt", FILES[1]])
def test_a_pickle_is_refused_unread_with_the_way_to_convert_it(saved, monkeypatch, name):
    monkeypatch.chdir(saved.parent)
    if name != FILES[1]:  # a folder of weights as others publish them
        for file in FILES:
            (saved / file).unlink()
    (saved / name).write_bytes(pickle.dumps(Bomb()))
    refused(saved, r"is a pickle.*refused.*weights_only=True.*formats\.save")
    if name != FILES[1]:
        refused(saved / name, r"is a pickle.*refused.*formats\.save")
    assert not Path("exploded").exists()
    torch.save({"W_enc": torch.ones(2)}, saved / name)
    refused(saved, "is a pickle")
