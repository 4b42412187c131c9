from itertools import groupby, pairwise

import networkx as nx
import numpy as np
import pytest
from graph_cases import concepts, graph
from rich.console import Console

from graphs.tree import ALWAYS, LEAST, MOST, tree


def branches(found):
    """Every branch with its parent."""
    for child in found.children:
        yield found, child
        yield from branches(child)


def text(branch):
    console = Console(width=200)
    with console.capture() as captured:
        console.print(branch.label)
    return captured.get().strip()


@pytest.mark.parametrize("seed", range(4))
def test_a_branch_carries_what_runs_over_its_steps(seed):
    """Against a listing of all paths of nodes, told in concepts."""
    g = graph(seed, tokens=[" Dallas", " is"])
    circuit = concepts(g.prune(1.0, 1.0), seed, 2)
    owner = dict(zip(circuit.names().values(), circuit.concept_of().values(), strict=True))
    label = circuit.concepts().nodes.set_index("name")["label"]
    found = circuit.to_networkx()
    carried = {}
    for node in found:
        for end, seed_of in (("logit:P1:F7", 0.75), ("logit:P1:F8", 0.25)):
            for path in nx.all_simple_paths(found, node, end):
                steps = tuple(name for name, _ in groupby(owner[n] for n in path))
                if len(path) > 1 and owner[path[0]] != owner[path[1]]:  # leaving the lowest
                    share = np.prod([found.edges[e]["direct"] for e in pairwise(path)]) * seed_of
                    carried[steps] = carried.get(steps, 0.0) + share
    shown = 0
    for trail in trails(tree(circuit)):
        told = [" ".join(text(b).split()[2:]).split(" at ")[0] for b in trail[:0:-1]]
        told.append(text(trail[0]))
        share = text(trail[-1]).split()[1]
        fitting = [
            f"{s:.1%}"
            for steps, s in carried.items()
            if [label[name] for name in steps] == told and s >= 0.001
        ]
        if share.endswith("%"):
            assert share in fitting
            shown += 1
    assert shown > 10


def trails(found, above=()):
    """Every branch below the outputs, with those above it."""
    for child in found.children:
        trail = (*above, child)
        if above:
            yield trail
        yield from trails(child, trail)


def test_the_strongest_branches_come_first_and_what_is_weak_is_left_out():
    circuit = graph(3).prune(1.0, 1.0)
    root = tree(circuit)
    assert [text(child) for child in root.children] == ["out0", "out1"]
    for parent, _ in branches(root):
        if parent is not root:
            shares = [text(b).split()[1] for b in parent.children]
            values = [float(s.strip("%")) / (100 if "%" in s else 1) for s in shares]
            assert values == sorted(values, reverse=True) and len(values) <= MOST
            assert all(value >= LEAST - 5e-4 for value in values[ALWAYS:])


def test_names_are_written_as_they_are():
    found = tree(graph(1, tokens=["[bold]x[/]", "[/]"]).prune(1.0, 1.0))
    assert any("[bold]x[/]" in text(child) for _, child in branches(found))


def test_a_circuit_that_goes_in_circles_ends():
    """Merged concepts may feed each other; no branch holds itself."""
    g = graph(4, layers=4)
    rows = g.nodes.loc[g.nodes["kind"] == "feature"]
    names = {(int(r.layer), int(r.feature)): "ab"[r.layer % 2] for r in rows.itertuples()}
    circuit = g.labelled(names).prune(1.0, 1.0)
    above = [{text(b).split(" at ")[0] for b in trail} for trail in trails(tree(circuit))]
    assert above and max(map(len, above)) <= len(circuit.concepts().nodes)


def test_a_circuit_is_written_as_a_tree_and_in_one_line():
    g = graph(2, tokens=[" Dallas", " is"])
    circuit = g.prune(1.0, 1.0)
    lines = circuit.tree().splitlines()
    assert "out0" in lines[1] and "\x1b" not in circuit.tree()
    assert repr(circuit).startswith("Circuit(' Dallas is' on") and "\n" not in repr(circuit)
    assert repr(g).startswith("AttributionGraph(' Dallas is' on") and "rows" in repr(g)
