"""Expand: which targets get a row, and their rows.

If every active feature fits the budget, all are expanded and the graph is complete. If not, they
are expanded in rounds, each round taking those of the largest influence so far. Since a node's
influence can only grow as others are expanded, this approaches the sets that no order of expansion
can change: all nodes with at least some influence over the chosen paths. What is not chosen is
summed into the remainders, one a layer.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.local import Group, Local
from circuits.rows import Rows, plan, sweep_order
from circuits.sweep import sweep
from circuits.targets import Explained

Report = Callable[[int, int], None]

HELD = 1 << 28  # numbers kept while choosing; beyond that only likely candidates' columns are
ROUNDS = 16  # rankings while choosing
BLOCK = 256  # rows looked at together


@dataclass(frozen=True, eq=False)
class Expansion:
    """Rows of the explained outputs, then of `expanded` features, in that order.

    The columns are: `kept` features, errors, tokens, a remainder for each layer, bias.
    """

    rows: Float[Tensor, "targets columns"]
    scale: Float[Tensor, " targets"]  # sum of |edge| over every single source but the bias
    expanded: Int[Tensor, " features"]
    kept: Int[Tensor, " features"]


def expand(local: Local, explained: Explained, budget: int, report: Report) -> Expansion:
    """The rows of the graph: of all features if they fit the budget, else of the chosen ones."""
    if local.active <= budget:
        rows = _all(local, explained, report)
    else:
        rows = _chosen(local, explained, budget, report)
    expanded = torch.tensor(rows.expanded, dtype=torch.long)
    return Expansion(*rows.narrow(), expanded, expanded.sort().values)


def _all(local: Local, explained: Explained, report: Report) -> Rows:
    """Every active feature's row."""
    numbers = torch.arange(local.active)
    rows = _outputs(local, explained, numbers, len(numbers))
    rows.add_features(numbers, lambda done: report(done, len(numbers)))
    return rows


def _chosen(local: Local, explained: Explained, budget: int, report: Report) -> Rows:
    """The rows of the features of the largest influence, found in rounds."""
    seeds = torch.tensor([number for number, _ in explained.features], dtype=torch.long)
    if budget < len(seeds):
        raise ValueError(f"budget={budget} is less than the {len(seeds)} features to explain.")
    candidates = torch.arange(local.active)
    fits = max(2 * budget, HELD // (len(explained.outputs) + budget) - local.others)
    if fits < local.active:
        candidates = _screen(local, explained, min(fits, 4 * budget), budget // 8)
    rows = _outputs(local, explained, candidates, budget)
    todo, room = seeds, budget
    while True:
        rows.add_features(todo, lambda done, before=budget - room: report(before + done, budget))
        room = budget - len(rows.expanded)
        if room == 0:
            return rows
        ranks = _influence(rows, explained)
        ranks[torch.isin(candidates, torch.tensor(rows.expanded, dtype=torch.long))] = -1
        best = ranks.topk(min(room, max(64, budget // ROUNDS))).indices
        todo = candidates[best].sort().values


def _outputs(local: Local, explained: Explained, candidates: Tensor, room: int) -> Rows:
    """The explained outputs' rows, and room for features'."""
    rows = Rows.empty(local, candidates, len(explained.outputs) + room)
    if explained.outputs:
        rows.add([explained.group(local)])
    return rows


def _influence(rows: Rows, explained: Explained) -> Float[Tensor, " candidates"]:
    """Each candidate's influence through the rows so far, from the outputs down.

    w_t = the target's weight + its own influence; a source gets sum_t w_t |edge| / scale_t.
    Rows are visited layer by layer from the top, so that w_t is final when it is used.
    """
    local, outputs = rows.local, len(explained.outputs)
    edges = rows.done[:, : len(rows.candidates)]
    scale = rows.scale.clamp_min(torch.finfo(torch.float64).tiny)
    expanded = torch.tensor(rows.expanded, dtype=torch.long)
    own = torch.searchsorted(rows.candidates, expanded)
    influence = torch.zeros(len(rows.candidates), dtype=torch.float64)
    seeds = torch.zeros_like(influence)
    for number, weight in explained.features:
        seeds[torch.searchsorted(rows.candidates, torch.tensor(number))] = weight
    top = torch.full((outputs,), len(local.layers))
    layers = torch.cat([top, local.feature_layers[expanded]])
    weights = torch.tensor([o.weight for o in explained.outputs], dtype=torch.float64)
    for m in layers.unique().flip(0).tolist():
        for which in (layers == m).nonzero()[:, 0].split(BLOCK):
            if m == len(local.layers):
                w = weights[which]
            else:
                column = own[which - outputs]
                w = influence[column] + seeds[column]
            share = (w / scale[which]).to(edges)
            influence += (share @ edges[which.to(edges.device)].abs()).cpu().double()
    return influence


def _screen(
    local: Local, explained: Explained, keep: int, effort: int
) -> Int[Tensor, " candidates"]:
    """The features worth a column, when not all of them can have one.

    A first, smaller expansion whose rows are not kept: each row's shares are added, times its
    target's influence at that moment, to the influence of all active features.
    """
    influence = torch.zeros(local.active, dtype=torch.float64)
    done = torch.zeros(local.active, dtype=torch.bool)

    def visit(groups: list[Group], weights: Tensor) -> None:
        full = local.embeddings.new_zeros(len(weights), local.width)
        sweep(local, groups, full)
        full = full[:, :-1].abs_()
        share = weights.to(full) / full.sum(1).clamp_min(torch.finfo(full.dtype).tiny)
        influence.add_((share @ full[:, : local.active]).cpu().double())

    if explained.outputs:
        weights = torch.tensor([o.weight for o in explained.outputs])
        visit([explained.group(local)], weights)
    for number, weight in explained.features:
        influence[number] += weight
    rounds = 4
    for _ in range(rounds):
        ranks = influence.masked_fill(done, -1)
        best = ranks.topk(max(1, effort // rounds)).indices.sort().values
        for chunk in plan(local, best):
            visit(local.readers(chunk), influence[sweep_order(local, chunk)])
        done[best] = True
    for number, _ in explained.features:  # what is to be explained must have a column
        influence[number] = float("inf")
    return influence.topk(min(keep, local.active)).indices.sort().values
