"""Operators: the dot-product test, naive attention, and readers cut off after their position."""

from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from circuits.operators import Attention, Norm, Skip, frozen_attention
from replacement.blocks import Block, NormWeights

CLOSE = {torch.float32: 2e-5, torch.float64: 1e-12}
dtypes = st.sampled_from([torch.float32, torch.float64])
sizes = st.integers(1, 6)


@st.composite
def norms(draw, positions, width, numbers):
    center, weighted, offset = draw(st.tuples(st.booleans(), st.booleans(), st.booleans()))
    return Norm(
        scale=0.5 + numbers(positions, 1).abs(),
        weight=numbers(width) if weighted else None,
        offset=numbers(width) if offset else None,
        center=center,
    )


@st.composite
def skips(draw):
    numbers, t, d = draw_numbers(draw), draw(sizes), draw(sizes)
    before = draw(st.none() | norms(t, d, numbers))
    after = draw(st.none() | norms(t, d, numbers))
    return Skip(numbers(d, d), before, after), t, d, numbers


def draw_numbers(draw):
    dtype = draw(dtypes)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))

    def numbers(*shape):
        return torch.randn(shape, generator=generator, dtype=dtype)

    return numbers


def linear_parts(draw, d, numbers):
    kv, repeat, head = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 4))
    norm = NormWeights(None, None, False, "unused")
    return Block(
        values=numbers(d, kv * head),
        values_bias=numbers(kv * head) if draw(st.booleans()) else None,
        outputs=numbers(kv * repeat * head, d),
        outputs_bias=numbers(d) if draw(st.booleans()) else None,
        heads=kv * repeat,
        kv_heads=kv,
        parallel=False,
        norm1=norm,
        norm2=norm,
        post1=None,
        post2=None,
    )


@st.composite
def attentions(draw):
    numbers, t, d = draw_numbers(draw), draw(sizes), draw(st.integers(2, 6))
    block = linear_parts(draw, d, numbers)
    scores = numbers(block.heads, t, t)
    future = torch.ones(t, t, dtype=torch.bool).triu(1)
    pattern = scores.masked_fill(future, float("-inf")).softmax(-1)
    before = draw(norms(t, d, numbers))
    after = draw(st.none() | norms(t, d, numbers))
    return block, pattern, before, after, numbers


def inner(a, b):
    return float((a.double() * b.double()).sum())


def passes_the_dot_product_test(operator, x, g):
    pushed, pulled = operator.push(x), operator.pull(g)
    assert pushed.shape == x.shape and pulled.shape == g.shape and pulled.dtype == x.dtype
    size = inner(pushed.abs(), g.abs()) + inner(x.abs(), pulled.abs()) + 1e-30
    assert abs(inner(pushed, g) - inner(x, pulled)) <= CLOSE[x.dtype] * size


def naive_norm(norm, x):
    if norm.center:
        x = x - x.mean(-1, keepdim=True)
    x = x / norm.scale
    x = x if norm.weight is None else x * norm.weight
    return x if norm.offset is None else x + norm.offset


def naive_attention(block, pattern, before, after, x):
    """Head by head, as it is defined, biases included; x is (positions, d_model)."""
    value = naive_norm(before, x) @ block.values
    if block.values_bias is not None:
        value = value + block.values_bias
    head = block.values.shape[1] // block.kv_heads
    out = torch.zeros_like(x) if block.outputs_bias is None else block.outputs_bias.expand_as(x)
    for h in range(block.heads):
        k = h // (block.heads // block.kv_heads)
        mixed = torch.einsum("qk,kd->qd", pattern[h], value[:, k * head : (k + 1) * head])
        out = out + mixed @ block.outputs[h * head : (h + 1) * head]
    return out if after is None else naive_norm(after, out)


@given(st.data(), st.integers(1, 3))
def test_norm_is_adjoint_and_is_the_norm(data, batch):
    numbers, t, d = draw_numbers(data.draw), data.draw(sizes), data.draw(sizes)
    norm = data.draw(norms(t, d, numbers))
    x, g = numbers(batch, t, d), numbers(batch, t, d)
    passes_the_dot_product_test(norm, x, g)
    bias = 0 if norm.bias is None else norm.bias
    torch.testing.assert_close(norm.push(x) + bias, naive_norm(norm, x))
    positions = torch.randint(t, (5,))
    vectors = numbers(5, d)
    spread = torch.zeros(5, t, d, dtype=vectors.dtype)
    spread[torch.arange(5), positions] = vectors
    for at, whole in ((norm.pull_at, norm.pull), (norm.push_at, norm.push)):
        alone = at(vectors, positions)
        torch.testing.assert_close(alone, whole(spread)[torch.arange(5), positions])


@given(skips(), st.integers(1, 3))
def test_skip_is_adjoint_and_is_the_path(made, batch):
    skip, t, d, numbers = made
    x, g = numbers(batch, t, d), numbers(batch, t, d)
    passes_the_dot_product_test(skip, x, g)
    inside = x if skip.before is None else naive_norm(skip.before, x)
    wanted = inside @ skip.weight.T
    if skip.after is not None:  # the post-norm's own offset belongs to the writers
        wanted = naive_norm(
            Norm(skip.after.scale, skip.after.weight, None, skip.after.center), wanted
        )
    bias = 0 if skip.bias is None else skip.bias
    torch.testing.assert_close(skip.push(x) + bias, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("strip", "block"), [(256, 1 << 22), (2, 1), (1, 64)])
@settings(max_examples=60)
@given(made=attentions(), batch=st.integers(1, 4))
def test_attention_is_adjoint_and_is_attention(strip, block, made, batch):
    parts, pattern, before, after, numbers = made
    t, d = pattern.shape[1], parts.values.shape[0]
    x, g = numbers(batch, t, d), numbers(batch, t, d)
    with patch.object(Attention, "STRIP", strip), patch.object(Attention, "BLOCK", block):
        attention = frozen_attention(parts, pattern, before, after)
        passes_the_dot_product_test(attention, x, g)
        bias = 0 if attention.bias is None else attention.bias
        close = {"rtol": 1e-4, "atol": 1e-4} if x.dtype == torch.float32 else {}
        for one, pushed in zip(x, attention.push(x), strict=True):
            wanted = naive_attention(parts, pattern, before, after, one)
            torch.testing.assert_close(pushed + bias, wanted, **close)
        into = g.clone()
        attention.pull_into(into, into)
        torch.testing.assert_close(into, g + attention.pull(g), **close)


@given(made=attentions(), batch=st.integers(1, 4), data=st.data())
def test_a_cut_reader_is_pulled_as_the_whole_one(made, batch, data):
    parts, pattern, before, after, numbers = made
    t, d = pattern.shape[1], parts.values.shape[0]
    cut = data.draw(st.integers(1, t))
    attention = frozen_attention(parts, pattern, before, after)
    g = numbers(batch, t, d)
    g[:, cut:] = 0
    whole = attention.pull(g)
    assert not whole[:, cut:].any()
    torch.testing.assert_close(attention.pull(g[:, :cut]), whole[:, :cut])


@given(skips(), st.integers(1, 3), st.data())
def test_a_cut_reader_passes_norms_and_skips_as_the_whole_one(made, batch, data):
    skip, t, d, numbers = made
    cut = data.draw(st.integers(1, t))
    g = numbers(batch, t, d)
    g[:, cut:] = 0
    torch.testing.assert_close(skip.pull(g[:, :cut]), skip.pull(g)[:, :cut])
    norm = data.draw(norms(t, d, numbers))
    torch.testing.assert_close(norm.pull(g[:, :cut]), norm.pull(g)[:, :cut])


def test_no_bias_is_said_so():
    block = Block(
        values=torch.ones(4, 2),
        values_bias=None,
        outputs=torch.ones(2, 4),
        outputs_bias=None,
        heads=1,
        kv_heads=1,
        parallel=False,
        norm1=NormWeights(None, None, False, "unused"),
        norm2=NormWeights(None, None, False, "unused"),
        post1=None,
        post2=None,
    )
    norm = Norm(torch.ones(3, 1))
    assert frozen_attention(block, torch.ones(1, 3, 3).tril(), norm, None).bias is None
    assert norm.bias is None and Skip(torch.ones(4, 4), norm, None).bias is None


@pytest.mark.parametrize(("heads", "kv_heads"), [(3, 2), (2, 0)])
def test_heads_that_cannot_be_grouped_are_refused(heads, kv_heads):
    block = Block(
        values=torch.ones(4, max(kv_heads, 1)),
        values_bias=None,
        outputs=torch.ones(heads, 4),
        outputs_bias=None,
        heads=heads,
        kv_heads=kv_heads,
        parallel=False,
        norm1=NormWeights(None, None, False, "unused"),
        norm2=NormWeights(None, None, False, "unused"),
        post1=None,
        post2=None,
    )
    with pytest.raises(ValueError, match=rf"{heads} heads cannot share {kv_heads}"):
        frozen_attention(block, torch.ones(heads, 3, 3).tril(), Norm(torch.ones(3, 1)), None)
