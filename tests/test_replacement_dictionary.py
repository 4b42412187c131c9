"""Dictionaries: what is refused when one is made, before any model is touched."""

import jaxtyping
import pytest
import torch
from hosts import FEATURES, WIDTH, dictionary

from replacement import Dictionary, JumpReLU, ReLU, Transcoder


@pytest.fixture
def unchecked():
    """As in production, where nobody checks the annotated shapes before we do."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


READER = torch.ones(FEATURES, WIDTH)


def transcoder(**changes):
    parts = {"reader": READER, "writers": {0: READER}, "activation": ReLU(), **changes}
    return Transcoder(**parts)


def spoiled(value, *shape):
    out = torch.zeros(shape)
    out.view(-1)[-1] = value
    return out


WRONG_SHAPES = {
    "writers": ({"writers": {0: torch.ones(WIDTH, FEATURES)}}, "writers[0]", (WIDTH, FEATURES)),
    "writer-1": ({"writers": {0: READER, 1: READER[:5]}}, "writers[1]", (5, WIDTH)),
    "bias": ({"reader_bias": torch.ones(WIDTH)}, "reader_bias", (WIDTH,)),
    "writer-bias": ({"writer_biases": {0: torch.ones(FEATURES)}}, "writer_biases[0]", (FEATURES,)),
    "skip": ({"skip": torch.ones(WIDTH, 3)}, "skip", (WIDTH, 3)),
}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("wrong", WRONG_SHAPES)
def test_shapes_that_do_not_fit_are_named(wrong):
    changes, name, shape = WRONG_SHAPES[wrong]
    with pytest.raises(ValueError) as caught:
        transcoder(**changes)
    assert f"{name} has shape {shape}; it must be" in str(caught.value)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("name", ["reader", "writers", "reader_bias", "writer_biases", "skip"])
def test_nan_and_infinite_weights_are_named(name, value):
    whole = spoiled(value, FEATURES, WIDTH)
    changes = {
        "reader": whole,
        "writers": {0: whole},
        "reader_bias": spoiled(value, FEATURES),
        "writer_biases": {0: spoiled(value, WIDTH)},
        "skip": spoiled(value, WIDTH, WIDTH),
    }
    with pytest.raises(ValueError, match=rf"{name}.* holds NaN or infinite.*re-export"):
        transcoder(**{name: changes[name]})


def test_no_writers_are_refused():
    with pytest.raises(ValueError, match=r"writers is empty; give at least"):
        transcoder(writers={})


@pytest.mark.parametrize("threshold", [torch.ones(5), torch.tensor([torch.nan] * FEATURES)])
def test_a_threshold_that_does_not_fit_is_refused(threshold):
    with pytest.raises(ValueError, match="threshold"):
        transcoder(activation=JumpReLU(threshold))


@pytest.mark.parametrize("below", [0, 1])
def test_writers_to_lower_layers_are_refused(below):
    layers = list(dictionary(3, ReLU()).layers)
    layers[2] = transcoder(writers={below: READER, 2: READER})
    with pytest.raises(ValueError, match=rf"layer 2 writes to layers \[{below}\].*only to its own"):
        Dictionary(layers)


def test_writers_beyond_the_last_layer_are_refused():
    layers = list(dictionary(3, ReLU()).layers)
    layers[1] = transcoder(writers={1: READER, 3: READER})
    with pytest.raises(ValueError, match=r"layer 1 writes to layers \[3\].*up to 2"):
        Dictionary(layers)


def test_a_bias_without_a_writer_below_its_layer_is_refused():
    """A bias written to a lower layer would never be added."""
    layers = list(dictionary(3, ReLU()).layers)
    layers[2] = transcoder(writers={2: READER}, writer_biases={0: torch.ones(WIDTH)})
    with pytest.raises(ValueError, match=r"layer 2 writes to layers \[0\]"):
        Dictionary(layers)


@pytest.mark.parametrize("site", ["read", "write"])
def test_an_unknown_site_is_refused_with_those_that_are_known(site):
    layers = dictionary(2, ReLU()).layers
    with pytest.raises(ValueError, match=r"site 'mlp.hook_pre' is not known; use one of .*mlp"):
        Dictionary(layers, **{site: "mlp.hook_pre"})


def test_no_layers_are_refused():
    with pytest.raises(ValueError, match="at least one layer"):
        Dictionary([])
