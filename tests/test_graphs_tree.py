import pytest
from graph_cases import graph
from rich.console import Console

from graphs.tree import LEAST, MOST, tree


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


def test_a_branch_carries_what_runs_over_it():
    g = graph(2, tokens=[" Dallas", " is"])
    rows = g.nodes.loc[g.nodes["kind"] == "feature"]
    g = g.labelled({(int(r.layer), int(r.feature)): "Texas" for r in rows.itertuples()})
    circuit = g.prune(1.0, 1.0)
    view = circuit.concepts()
    root = tree(circuit)
    assert [text(child) for child in root.children] == ["out0", "out1"]
    first = root.children[0]
    into = view.edges.loc[view.edges["target"] == "logit:P1:F7"].nlargest(MOST, "direct")
    expected = [f"{0.75 * d:.1%}" for d in into["direct"] if 0.75 * d >= LEAST]
    assert [text(child).split()[1] for child in first.children] == expected
    assert any("Texas at Dallas" in text(child) for _, child in branches(root))
    signs = {text(child)[0] for _, child in branches(first)}
    assert signs <= {"+", "-"}
    for parent, child in branches(root):
        assert len(parent.children) <= MOST
        if parent not in (root, *root.children):
            share = [float(text(b).split()[1].strip("%")) for b in (parent, child)]
            assert share[1] <= share[0] + 0.1


def test_names_are_written_as_they_are():
    found = tree(graph(1, tokens=["[bold]x[/]", "[/]"]).prune(1.0, 1.0))
    assert any("[bold]x[/]" in text(child) for _, child in branches(found))


def test_a_circuit_that_goes_in_circles_ends():
    """Merged concepts may feed each other; no branch holds itself."""
    g = graph(4, layers=4)
    rows = g.nodes.loc[g.nodes["kind"] == "feature"]
    names = {(int(r.layer), int(r.feature)): "ab"[r.layer % 2] for r in rows.itertuples()}
    circuit = g.labelled(names).prune(1.0, 1.0)
    assert sum(1 for _ in branches(tree(circuit))) == pytest.approx(60, abs=59)


def test_a_circuit_is_written_as_a_tree_and_in_one_line():
    g = graph(2, tokens=[" Dallas", " is"])
    circuit = g.prune(1.0, 1.0)
    lines = circuit.tree().splitlines()
    assert "out0" in lines[1] and "\x1b" not in circuit.tree()
    assert repr(circuit).startswith("Circuit(' Dallas is' on") and "\n" not in repr(circuit)
    assert repr(g).startswith("AttributionGraph(' Dallas is' on") and "rows" in repr(g)
