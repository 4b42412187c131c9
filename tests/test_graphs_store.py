import os
import pickle

import numpy as np
import pytest
from graph_cases import AWKWARD, graph
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from scipy import sparse

import graphs

TEXT = st.text(max_size=5) | st.sampled_from([*AWKWARD, "\x00"])


@given(
    st.lists(TEXT, min_size=2, max_size=3),
    st.integers(0, 10**6),
    st.booleans(),
    st.sampled_from([np.float32, np.float64]),
)
def test_round_trip(tmp_path_factory, tokens, seed, csr, dtype):
    g = graph(seed, csr=csr, dtype=dtype, positions=len(tokens), tokens=tokens)
    path = tmp_path_factory.mktemp("round") / "graph.safetensors"
    g.save(path)
    back = graphs.load(path)
    assert back.nodes.astype({"kind": object, "token": object}).equals(
        g.nodes.astype({"kind": object, "token": object})
    )
    assert sparse.issparse(back.edges) == csr and back.edges.dtype == dtype
    assert (back.edges != g.edges).sum() == 0
    for name in ("targets", "sources", "values", "weights", "scale"):
        np.testing.assert_array_equal(getattr(back, name), getattr(g, name))
    assert dict(back.settings) == dict(g.settings)
    assert back.prune().nodes["node"].tolist() == g.prune().nodes["node"].tolist()


@pytest.mark.parametrize("kind", [KeyboardInterrupt, OSError])
def test_an_interrupted_save_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, kind):
    path = tmp_path / "graph.safetensors"
    graph(0).save(path)
    before = path.read_bytes()

    def stop(*_):
        raise kind("stopped")

    monkeypatch.setattr(os, "replace", stop)
    with pytest.raises(kind):
        graph(1).save(path)
    with pytest.raises(kind):
        graph(1).save(tmp_path / "new.safetensors")
    assert os.listdir(tmp_path) == ["graph.safetensors"] and path.read_bytes() == before


def refused(path, match):
    with pytest.raises(ValueError, match=match) as caught:
        graphs.load(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("keep", [0, 4, 9, 200, -1])
def test_a_truncated_file_is_refused(tmp_path, keep):
    path = tmp_path / "graph.safetensors"
    graph().save(path)
    path.write_bytes(path.read_bytes()[:keep])
    refused(path, "truncated")


def test_a_pickle_is_refused_and_not_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "ran"),))

    path = tmp_path / "graph.pt"
    path.write_bytes(pickle.dumps(Trap()))
    refused(path, "pickle")
    path.write_bytes(b"PK\x03\x04" + bytes(60))
    refused(path, "pickle")
    assert not (tmp_path / "ran").exists()


def test_other_versions_and_other_files_are_refused(tmp_path):
    path = tmp_path / "graph.safetensors"
    graph().save(path)
    arrays = load_file(path)
    save_file(arrays, path, {"format": "attribution-graph", "version": "2"})
    refused(path, "version")
    save_file(arrays, path, {"format": "pt"})
    refused(path, "not an attribution graph|no attribution graph")
    save_file(arrays, path)
    refused(path, "not an attribution graph|no attribution graph")
    path.write_text("hello, this is only text")
    refused(path, "safetensors")
