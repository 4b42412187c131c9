"""The sweep: readers start where they read and are pulled down the chain; on the way, the inner
product of each with everything written at each layer is its edge.

Going down a layer: (1) read off what was written here, (2) let this layer's features join as
readers, (3) pull all of them through the attention. At the bottom, read off the embeddings. All
readers travel together, as (readers, positions, d_model), in large matrix products; positions
after the last reader's are never carried. No autograd graph, no copies of the prompt.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from circuits.local import Group, Layer, Local


def sweep(local: Local, groups: Sequence[Group], rows: Float[Tensor, "readers columns"]) -> None:
    """Fill `rows` (zeros, one per reader in the order of the groups) with all direct effects.

    The groups come highest layer first. Columns: all active features, errors by layer and
    position, tokens, remainders (left at zero), bias (see `Local`).
    """
    cone = int(max(group.positions.max() for group in groups)) + 1
    count = sum(len(group.positions) for group in groups)
    x = local.embeddings.new_zeros(count, cone, local.embeddings.shape[1])
    waiting, live = list(groups), 0
    rows[:, -1] = torch.cat([group.constants for group in groups])
    for m in reversed(range(len(local.layers))):
        layer = local.layers[m]
        if waiting and waiting[0].layer > m:
            live = _join(x, live, waiting.pop(0))
        if live:
            _read_off(local, m, x[:live], rows[:live])
        if layer.parallel:
            _descend(layer, x[:live])
        if waiting and waiting[0].layer == m:
            live = _join(x, live, waiting.pop(0))
        _add_constant(layer.at_mid, x[:live], rows[:live])
        if not layer.parallel:
            layer.attention.pull_into(x[:live], x[:live])
    first = local.width - 1 - len(local.layers) - local.positions
    rows[:, first : first + cone] = _dot(x, local.embeddings[:cone])


def _join(x: Tensor, live: int, group: Group) -> int:
    """Let a group's readers in, each at its own position."""
    end = live + len(group.positions)
    x[torch.arange(live, end, device=x.device), group.positions] = group.vectors
    return end


def _descend(layer: Layer, x: Tensor) -> None:
    """From `post` to `pre` of a parallel block."""
    beside = None if layer.skip is None else layer.skip.pull(x)
    layer.attention.pull_into(x, x)
    if beside is not None:
        x += beside


def _read_off(local: Local, m: int, x: Tensor, rows: Tensor) -> None:
    """Edges from everything written at layer m; then, in sequential blocks, the skip path."""
    layer, cone = local.layers[m], x.shape[1]
    for source, reading in enumerate(local.reading.layers[: m + 1]):
        if m in reading.writers:
            _read_off_layer(local, source, m, x, rows)
    if local.errors is not None:
        first = local.active + m * local.positions
        rows[:, first : first + cone] = _dot(x, local.errors[m, :cone])
    _add_constant(layer.at_post, x, rows)
    if layer.skip is not None and not layer.parallel:
        x += layer.skip.pull(x)


def _read_off_layer(local: Local, source: int, m: int, x: Tensor, rows: Tensor) -> None:
    """Edges from what one layer's features write at layer m."""
    reading, write, cone = local.reading.layers[source], local.layers[m].write, x.shape[1]
    starts, offset = local.starts[source], local.offsets[source]
    weight = reading.writers[m]
    if starts[cone] == cone * len(weight):
        # Every feature is active at every position (neurons): one product, then the activations.
        pulled = x if write is None else write.pull(x)
        block = (pulled.flatten(0, 1) @ weight.T).view(len(x), -1)
        block *= reading.activations[: starts[cone]]
        rows[:, offset : offset + starts[cone]] += block
        return
    written = local.written(source, m, cone)
    counts = {b - a for a, b in pairwise(starts[: cone + 1])}
    if len(counts) == 1:
        # As many active features at every position (TopK): one batched product.
        block = torch.bmm(x.transpose(0, 1), written.view(cone, -1, written.shape[1]).mT)
        rows[:, offset : offset + starts[cone]] += block.transpose(0, 1).flatten(1)
        return
    for p, (a, b) in enumerate(pairwise(starts[: cone + 1])):
        if a < b:
            rows[:, offset + a : offset + b].addmm_(x[:, p], written[a:b].T)


def _dot(x: Tensor, vectors: Tensor) -> Float[Tensor, "readers positions"]:
    """Inner products position by position."""
    return torch.bmm(x.transpose(0, 1), vectors[:, :, None])[:, :, 0].T


def _add_constant(constant: Tensor | None, x: Tensor, rows: Tensor) -> None:
    if constant is not None and len(x):
        rows[:, -1] += x.flatten(1) @ constant[: x.shape[1]].flatten()
