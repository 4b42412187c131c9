"""The regression guard fails when it should: made-up ratios, and the check's exit status."""

import dataclasses
import importlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"
NAN = float("nan")


@pytest.fixture
def guard(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("guard")


@pytest.fixture
def check(guard, monkeypatch, tmp_path):
    """Run the command against a made-up baseline, with made-up measurements in turn."""

    def run(option, baseline, **measurements):
        path = tmp_path / "guard.json"
        path.write_text(json.dumps({"ratios": baseline}))
        monkeypatch.setattr(guard, "BASELINE", path)
        values = {name: iter(list(found)) for name, found in measurements.items()}
        monkeypatch.setattr(guard, "RATIOS", {n: lambda n=n: next(values[n]) for n in values})
        guard.main([option])
        return json.loads(path.read_text())["ratios"]

    return run


@pytest.mark.parametrize("now", [0.1, 2.0, 2.49])
def test_what_is_no_more_than_a_quarter_worse_passes(guard, now):
    assert guard.worse({"time": 2.0}, {"time": now}) == []


@pytest.mark.parametrize("now", [2.51, 100.0, NAN])
def test_what_is_more_than_a_quarter_worse_has_a_line(guard, now):
    (line,) = guard.worse({"time": 2.0, "memory": 1.0}, {"time": now, "memory": 1.0})
    assert line.startswith("time: ")


def test_each_regression_has_a_line(guard):
    assert len(guard.worse({"a": 1.0, "b": 1.0, "c": 1.0}, {"a": 2.0, "b": 1.0, "c": 2.0})) == 2


def test_a_ratio_must_be_on_both_sides(guard):
    assert "not measured" in guard.worse({"a": 1.0}, {})[0]
    assert "not in guard.json" in guard.worse({}, {"a": 1.0})[0]


def test_check_passes_on_its_baseline(check):
    check("--check", {"a": 1.0}, a=[1.0])


def test_check_exits_with_a_line_a_regression(check):
    with pytest.raises(SystemExit) as stop:
        check("--check", {"a": 1.0, "b": 1.0, "c": 1.0}, a=[2.0] * 9, b=[1.0], c=[1.3] * 9)
    # A text as the exit code is printed to stderr, and the status is 1.
    assert [line[0] for line in str(stop.value.code).splitlines()] == ["a", "c"]


def test_noise_gets_another_chance(check):
    check("--check", {"a": 1.0}, a=[1.6, 1.1])


def test_update_writes_what_was_measured(check):
    assert check("--update", {"a": 1.0}, a=[7.0]) == {"a": 7.0}


def test_the_baseline_has_what_is_measured(guard):
    assert json.loads(guard.BASELINE.read_text())["ratios"].keys() == guard.RATIOS.keys()


def test_the_best_of_the_turns_counts(guard, monkeypatch):
    clock = iter(np.cumsum([0, 9, 0, 2, 0, 6, 0, 3, 0, 8, 0, 4]).astype(float))
    monkeypatch.setattr(guard, "TURNS", 3)
    monkeypatch.setattr(guard.time, "process_time", lambda: next(clock))
    assert guard.turns(lambda: None, lambda: None) == 6 / 2


@pytest.mark.parametrize("kind", ["per-layer", "cross-layer", "neurons"])
def test_products_are_those_of_the_definition(guard, kind, monkeypatch):
    """One reader at (2, 1) and one logit at 1, on 3 layers and 2 positions, counted by hand."""
    case = guard.Case(kind, tokens=2, layers=3, width=8, heads=4, kv_heads=2)
    written = np.array([[1, 2], [3, 4], [5, 6]])
    products = guard.products(case, written, np.array([2, 3]), np.array([1, 1]))
    found, mm = [], torch.mm
    monkeypatch.setattr(
        guard.torch,
        "mm",
        lambda a, b, out: found.append((*a.shape, b.shape[1])) or mm(a, b, out=out),
    )
    products()
    assert found == [
        *[(1, 8, 6), (1, 8, 7), (3, 8, 8), (4, 4, 8)],  # layer 2: only the logit reads it
        *[(2, 8, 4), (2, 8, 5), (4, 8, 8), (4, 4, 8)],
        *[(2, 8, 2), (2, 8, 3), (4, 8, 8), (4, 4, 8)],
        *[(2, 8, 1), (2, 8, 1)],
    ]


@pytest.mark.parametrize("kind", ["per-layer", "cross-layer", "neurons"])
def test_a_wrong_edge_stops_the_benchmark(guard, kind):
    import circuits

    case = guard.Case(
        kind, tokens=3, layers=2, width=16, heads=2, kv_heads=1, mlp=4, features=8, active=2
    )
    graph = circuits.trace(case.model(), case.ids)
    checks = guard.measure.verify(case, graph, range(len(graph.targets)))
    assert max(checks.values()) < 1e-5
    row = int(np.abs(graph.edges).sum(1).argmax())
    first, second = np.argsort(-np.abs(graph.edges[row]))[:2]
    edges = graph.edges.copy()
    edges[row, [first, second]] = edges[row, [second, first]]  # the books still balance
    with pytest.raises(SystemExit, match="autograd"):
        guard.measure.verify(case, dataclasses.replace(graph, edges=edges), [row])
