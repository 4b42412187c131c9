"""Activation functions against loops over single entries."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracle import activate

from replacement import BatchTopK, JumpReLU, ReLU, TopK


@st.composite
def cases(draw):
    positions, features = draw(st.integers(1, 5)), draw(st.integers(1, 7))
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    values = torch.randn(positions, features, generator=generator, dtype=dtype)
    thresholds = torch.randn(features, generator=generator, dtype=torch.float32)
    k = draw(st.integers(1, 9))
    activation = draw(
        st.sampled_from(
            [
                ReLU(),
                TopK(k),
                BatchTopK(k),
                BatchTopK(k, 0.3),
                JumpReLU(0.5),
                JumpReLU(thresholds.abs()),
            ]
        )
    )
    return activation, values


@given(cases())
def test_as_a_loop_would(case):
    activation, values = case
    before = values.clone()
    out = activation(values)
    assert out.dtype == values.dtype and torch.equal(values, before)
    assert torch.equal(out, activate(activation, values))
    assert torch.equal(out[out != 0], values[out != 0])


def test_by_hand():
    values = torch.tensor([[1.0, -2.0, 3.0, 0.5], [-1.0, -1.0, 4.0, 2.0]])
    wanted = {
        ReLU(): [[1, 0, 3, 0.5], [0, 0, 4, 2]],
        TopK(1): [[0, 0, 3, 0], [0, 0, 4, 0]],
        TopK(3): [[1, 0, 3, 0.5], [0, 0, 4, 2]],
        BatchTopK(1): [[0, 0, 3, 0], [0, 0, 4, 0]],
        BatchTopK(2): [[1, 0, 3, 0], [0, 0, 4, 2]],
        BatchTopK(1, 0.7): [[1, 0, 3, 0], [0, 0, 4, 2]],
        BatchTopK(1, -5.0): [[1, 0, 3, 0.5], [0, 0, 4, 2]],
        JumpReLU(1.0): [[0, 0, 3, 0], [0, 0, 4, 2]],
        JumpReLU(torch.tensor([0.0, 0.0, 3.5, 2.0])): [[1, 0, 0, 0], [0, 0, 4, 0]],
    }
    for activation, out in wanted.items():
        assert torch.equal(activation(values), torch.tensor(out, dtype=torch.float32)), activation


@pytest.mark.parametrize("k", [0, -1])
@pytest.mark.parametrize("kind", [TopK, BatchTopK])
def test_k_below_one_is_refused(kind, k):
    with pytest.raises(ValueError, match=rf"k={k} must be at least 1.*kept per position"):
        kind(k)
