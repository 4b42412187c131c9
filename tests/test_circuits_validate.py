"""Validation: what a graph predicts, against dense algebra, against itself, and against the model.

The oracle of effects is one dense solve; that of a circuit alone is the graph's own edges, which
are exact as long as patterns and norms are held, followed feature by feature through the
activation function.
"""

import json
from dataclasses import replace

import commands
import numpy as np
import pandas as pd
import pytest
import torch
from hosts import PROMPT, model, speaking

import circuits
import graphs
import replacement
from circuits.agreement import compare, concepts, controls, figures, singly
from circuits.subject import subject
from circuits.sufficiency import PATTERNS, SHARES, Alone, areas
from graphs.effects import effects
from replacement.only import among, run_only

ASKED = "the capital of the state containing Dallas is"
DRAW = np.random.default_rng


def atlas():
    return replacement.load("atlas", device="cpu")


@pytest.fixture(scope="module")
def dallas():
    """Atlas, the graph of a prompt, and its validation."""
    opened = atlas()
    graph = circuits.trace(opened, ASKED)
    return opened, graph, circuits.validate(opened, graph, features_tested=40)


def traced(family="llama", kind="relu", targets=None):
    opened = model(family, kind, torch.float64)
    chosen = targets or (7, circuits.Difference(3, 11, 4))
    return opened, circuits.trace(opened, PROMPT, list(chosen))


def solved(graph, fraction, passing):
    """One cause by one solve: x[s] = fraction[s] + passes[s] / value[s] * (edges @ x)[s]."""
    edges, n = np.asarray(graph.edges), len(graph.nodes)
    whole = np.zeros((n, n))
    for row, node in enumerate(graph.targets):
        if fraction[node] == 0 and graph.nodes["layer"][node] >= passing and graph.values[row]:
            whole[node, graph.sources] = edges[row] / graph.values[row]
    moved = np.linalg.solve(np.eye(n) - whole, fraction)
    return edges @ moved[graph.sources]


@pytest.mark.parametrize("kind", ["relu", "cross-skip", "neurons"])
def test_effects_are_those_of_one_dense_solve(kind):
    _, graph = traced(kind=kind)
    features = np.flatnonzero(graph.nodes["kind"] == "feature")
    passing = np.array([0, 1, 2, 3, 0])
    fractions = np.zeros((len(graph.nodes), 5))
    for column in range(5):
        fractions[DRAW(column).choice(features, 3, replace=False), column] = [-1, 0.5, -0.3]
    found = effects(graph, fractions, passing)
    for column, least in enumerate(passing):
        expected = solved(graph, fractions[:, column], least)
        assert np.allclose(found[:, column], expected, rtol=1e-7, atol=1e-9 * abs(expected).max())
    assert not np.allclose(found[:, 0], np.asarray(graph.edges) @ fractions[graph.sources, 0])


@pytest.mark.parametrize("factor", [0.0, 1.7])
@pytest.mark.parametrize(
    ("family", "kind"),
    [("llama", "relu"), ("gpt2", "cross"), ("gemma2", "cross-skip"), ("qwen3", "neurons")],
)
def test_direct_effects_are_predicted_exactly(family, kind, factor):
    opened, graph = traced(family, kind)
    found = subject(opened, graph, graph.prune())
    tested = concepts(found, 6)
    table = compare(found, tested, controls(found, tested, DRAW(0)), factor, lambda: None)
    direct = table[table["regime"] == "direct"]
    assert {"concept", "control"} == set(direct["kind"]) and (direct["to"] == "output").any()
    assert np.allclose(direct["predicted"], direct["observed"], atol=1e-10)
    assert direct["observed"].abs().max() > 1e-4
    numbers = figures(direct)
    assert numbers["spearman"] > 1 - 1e-9 and numbers["sign"] == 1 and numbers["error"] < 1e-8
    other = table[table["regime"] == "free"]
    assert not np.allclose(other["predicted"], other["observed"], atol=1e-4)


def test_a_graph_with_its_edges_shuffled_is_found_out():
    opened, graph = traced()
    circuit = graph.prune()
    wrong = np.asarray(graph.edges).copy()
    kinds = graph.nodes["kind"].to_numpy()[graph.sources]
    columns = np.flatnonzero(kinds == "feature")
    wrong[:, columns] = wrong[:, DRAW(0).permutation(columns)]
    numbers = {}
    for name, edges in (("right", graph.edges), ("wrong", wrong)):
        found = subject(opened, replace(graph, edges=edges), circuit)
        table = compare(found, concepts(found, 30), [], 0.0, lambda: None)
        numbers[name] = figures(table[table["regime"] == "direct"])
    assert numbers["right"]["error"] < 1e-8 < 0.5 < numbers["wrong"]["error"]
    assert numbers["wrong"]["spearman"] < 0.6


def test_changes_are_shares_of_what_targets_read():
    """One feature's direct effect on the output: its edge over the row's scale, by hand."""
    opened, graph = traced(targets=(7,))
    found = subject(opened, graph, graph.prune())
    tested = concepts(found, 3)
    table = compare(found, tested, [], 0.0, lambda: None)
    rows = table[(table["regime"] == "direct") & (table["to"] == "output")]
    for concept, row in zip(tested, rows.itertuples(), strict=True):
        columns = np.isin(graph.sources, concept.nodes)
        expected = -np.asarray(graph.edges)[0, columns].sum() / graph.scale[0]
        assert row.cause == concept.name and row.observed == pytest.approx(expected, rel=1e-8)


def test_controls_have_as_many_features_of_each_layer_and_none_of_the_circuit():
    opened, graph = traced()
    found = subject(opened, graph, graph.prune(0.7))
    tested = concepts(found, 5)
    drawn = controls(found, tested, DRAW(3))
    inside, layers = set(found.circuit.nodes["node"]), graph.nodes["layer"]
    assert len(drawn) == len(tested) == 5
    for one, other in zip(tested, drawn, strict=True):
        assert sorted(layers[one.nodes]) == sorted(layers[other.nodes])
        assert not inside & set(other.nodes) and len(set(other.nodes)) == len(other.nodes)
    again = controls(found, tested, DRAW(3))
    assert all((a.nodes == b.nodes).all() for a, b in zip(drawn, again, strict=True))


def followed(graph, kept, thresholds):
    """The explained row with some features alone, along the edges: exact where all is held."""
    edges, nodes = np.asarray(graph.edges), graph.nodes
    column = {node: c for c, node in enumerate(graph.sources)}
    moved = np.zeros(len(graph.sources))
    for node in np.flatnonzero(nodes["kind"] == "feature"):
        moved[column[node]] = -1
    for row in sorted(range(len(graph.targets)), key=lambda r: nodes["layer"][graph.targets[r]]):
        node = graph.targets[row]
        value = graph.values[row] + edges[row] @ moved
        if node in kept:
            least = thresholds(nodes["layer"][node], nodes["feature"][node])
            moved[column[node]] = (value if value > least else 0) / nodes["activation"][node] - 1
    return float(graph.values[0] + edges[0] @ moved)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
@pytest.mark.parametrize("kind", ["relu", "jumprelu", "cross-skip"])
def test_a_circuit_alone_does_what_edges_say_where_patterns_are_held(family, kind):
    opened, graph = traced(family, kind, (7,))
    found = subject(opened, graph, graph.prune())
    alone = Alone.of(opened, found.clean)

    def threshold(layer, feature):
        activation = opened.dictionary.layers[layer].activation
        return float(activation.threshold[feature]) if kind == "jumprelu" else 0.0

    moved = set()
    for seed, size in enumerate((0, 5, 20, 60)):
        part = found.features.sample(size, random_state=seed)
        value = found.explained(alone.run(part, "held"))
        expected = followed(graph, set(part.index), threshold)
        assert value == pytest.approx(expected, rel=1e-8, abs=1e-8 * graph.scale[0])
        moved.add(round(value, 6))
    assert len(moved) == 4


@pytest.mark.parametrize("kind", ["relu", "topk", "skip-normalized", "cross-skip", "neurons"])
@pytest.mark.parametrize("family", ["llama", "gptj", "gemma3", "mixtral"])
def test_all_features_let_through_are_the_model(family, kind):
    opened, graph = traced(family, kind, (7,))
    found = subject(opened, graph, graph.prune())
    alone = Alone.of(opened, found.clean)
    none = found.features.head(0)
    for patterns in PATTERNS:
        for part, kept in ((found.features, True), (none, False)):
            run = alone.run(part, patterns, kept)
            assert (run.logits - found.clean.run.logits).abs().max() < 1e-9
        empty = alone.run(none, patterns)
        assert (empty.logits - found.clean.run.logits).abs().max() > 1e-3


def test_every_hook_is_gone_after_a_circuit_ran_alone_or_failed():
    from steering import live_hooks

    opened, graph = traced()
    found = subject(opened, graph, graph.prune())
    alone, before = Alone.of(opened, found.clean), live_hooks(opened.host)
    alone.run(found.features.head(4), "held")

    def fails(layer, reading):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_only(opened, found.clean, alone.reading, fails, True)
    assert live_hooks(opened.host) == before


def test_among_takes_the_features_given_or_the_others():
    opened = model("llama", "topk")
    reading = opened.features(opened.run(PROMPT))[1]
    places = torch.stack([torch.ones(4).long(), reading.positions[:4], reading.features[:4]], 1)
    kept, rest = (among(opened, places, kept)(1, reading) for kept in (True, False))
    assert kept.tolist() == [True] * 4 + [False] * (len(kept) - 4)
    assert torch.equal(rest, ~kept) and not among(opened, places)(0, reading).any()


def curved(points):
    rows = [{"circuit": False, "share": x, "faithfulness": y} for x, y in points]
    return pd.DataFrame([*rows, {"circuit": True, "share": 0.3, "faithfulness": 9.0}])


def test_areas_are_those_of_the_polygons():
    assert areas(curved([(0.5, 0.5)])) == pytest.approx((0.5, 0.5))
    assert areas(curved([(0.5, 1.0)])) == pytest.approx((0.75, 0.25))
    cpr, cmd = areas(curved([(0.5, 2.0), (0.25, 1.0)]))  # above the model: CPR has it, CMD minds
    assert cpr == pytest.approx(0.125 + 0.375 + 0.75)
    assert cmd == pytest.approx(0.125 + 0.125 + 0.25)


def test_figures_know_a_sign_an_error_and_a_constant():
    table = pd.DataFrame({"predicted": [1.0, -2.0, 3.0, 4.0], "observed": [1.0, 2.0, 3.0, 4.0]})
    found = figures(table)
    assert found["sign"] == 0.75 and found["error"] == pytest.approx(4 / 30**0.5)
    assert found["count"] == 4 and found["pearson"] == pytest.approx(
        np.corrcoef(table["predicted"], table["observed"])[0, 1]
    )
    assert np.isnan(figures(table.assign(predicted=1.0))["spearman"])


def test_single_features_are_ablated_in_the_constrained_regime():
    opened, graph = traced(targets=(7,))
    found = subject(opened, graph, None)
    table = singly(found, 5, DRAW(0))
    assert len(table) == 5 and (table["influence"] > 0).all()
    for row in table.itertuples():
        done = [replacement.Ablate((row.layer, row.feature), row.position)]
        outcome = opened.run(PROMPT, done, regime="constrained")
        assert row.effect == pytest.approx(abs(float(outcome.effect()[7])), rel=1e-9)


def test_atlas_is_validated_as_published_graphs_are(dallas):
    _, graph, found = dallas
    key = found.figures
    assert key["influence"]["spearman"] > 0.72 and key["influence"]["features"] == 40
    assert key["agreement"]["direct"]["spearman"] > 0.999
    assert key["output_change"]["concepts"] > 10 * key["output_change"]["controls"]
    assert key["circuit"]["held"]["answer"] and key["circuit"]["held"]["probability"] > 0.9
    assert key["circuit"]["held"]["probability_without"] < 0.5
    assert key["circuit"]["held"]["cpr"] > 0.8 and 0 < key["circuit"]["held"]["cmd"] < 0.2
    assert set(found.curve["patterns"]) == set(PATTERNS)
    assert found.curve["circuit"].sum() == 2 and len(found.curve) <= 2 * (len(SHARES) + 1)
    assert "validation" not in graph.settings and found.graph.settings["validation"] == key
    assert found.graph.prune().settings["validation"] == key
    json.dumps(key, allow_nan=False)


def test_the_same_seed_gives_the_same_figures_and_a_bar_is_told(dallas):
    opened, graph, found = dallas
    seen = []
    again = circuits.validate(
        opened, graph, features_tested=40, progress=lambda done, total: seen.append((done, total))
    )
    assert again.figures == found.figures and again.effects.equals(found.effects)
    assert [done for done, _ in seen] == list(range(1, len(seen) + 1))
    assert len(seen) <= seen[-1][1]


def test_the_figure_shows_every_regime_and_both_curves(dallas):
    figure = dallas[2].plot()
    titles = {note.text for note in figure.layout.annotations}
    assert {"direct: predicted and observed", "faithfulness over circuit size"} <= titles
    names = {trace.name for trace in figure.data}
    assert {"concept", "control", "patterns held", "patterns recomputed, without"} <= names


def test_a_difference_is_validated_by_its_two_tokens():
    opened, graph = traced(targets=(circuits.Difference(3, 11),))
    assert graph.settings["outputs"] == [[3, 11]]
    found = subject(opened, graph, None)
    final = found.clean.run["unembed.hook_out"][-1]
    assert found.explained(found.clean.run) == pytest.approx(float(final[3] - final[11]))
    assert found.explained(found.clean.run) == pytest.approx(graph.values[0])


def test_a_graph_from_before_outputs_were_kept_is_validated_by_its_tokens():
    opened, graph = traced(targets=(7,))
    old = {key: value for key, value in graph.settings.items() if key != "outputs"}
    assert subject(opened, replace(graph, settings=old), None).tokens == [[7]]


def test_what_cannot_be_validated_is_refused():
    opened, graph = traced(targets=(7,))
    other = model("llama", "jumprelu", torch.float64)
    with pytest.raises(ValueError, match="not as active on this model as the graph says"):
        circuits.validate(other, graph)
    with pytest.raises(ValueError, match=r"graph is of .* not of"):
        circuits.validate(speaking("gpt2"), graph)
    aimless = circuits.trace(opened, PROMPT, [circuits.Direction(torch.ones(32))])
    with pytest.raises(ValueError, match="explains no token"):
        circuits.validate(opened, aimless)
    with pytest.raises(ValueError, match="factor=1"):
        circuits.validate(opened, graph, factor=1.0)
    with pytest.raises(ValueError, match="concepts_tested=2 must be at least 3"):
        circuits.validate(opened, graph, concepts_tested=2)


@pytest.fixture(scope="module")
def saved(tmp_path_factory, dallas):
    path = tmp_path_factory.mktemp("validate") / "dallas.safetensors"
    dallas[1].save(path)
    return path


def test_the_command_prints_draws_and_keeps(saved, tmp_path, monkeypatch, capsys):
    out = tmp_path / "figure.html"
    more = ("--features", 5, "--concepts", 3)
    status, text, _ = commands.run(monkeypatch, capsys, "validate", saved, "--out", out, *more)
    assert status == 0 and "direct, concepts" in text and "held" in text
    assert "plotly" in out.read_text()[:10_000_000].lower()
    kept = graphs.load(saved).settings["validation"]
    assert kept["influence"]["features"] == 5
    status, text, _ = commands.run(monkeypatch, capsys, "validate", saved, "--json", *more)
    report = json.loads(text)
    assert status == 0 and report["circuit"] == kept["circuit"] and report["by_distance"]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("nowhere.safetensors",), "there is no file"),
        (("FILE", "--out", "x.png"), "must end in .html"),
        (("FILE", "--dictionary", "cross-layer"), "the graph is of atlas"),
        (("FILE", "--factor", "1"), "factor=1"),
        (("FILE", "--device", "tpu"), "--device=tpu"),
    ],
)
def test_mistakes_at_the_command_line_are_one_line(saved, arguments, line, monkeypatch, capsys):
    before = saved.read_bytes()
    given = [saved if a == "FILE" else a for a in arguments]
    status, _, err = commands.run(monkeypatch, capsys, "validate", *given)
    assert status == 2 and line in err and "Traceback" not in err
    assert saved.read_bytes() == before
