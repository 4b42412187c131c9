import sys
from dataclasses import replace

import numpy as np
import pytest
from pictures import HOSTILE, browser_path, circuit, evidence

from graphs import views
from graphs.plot import LIGHT, save_figure
from graphs.views import about, concept_view, feature_view, percent


def texts(figure):
    return [text for trace in figure.data if trace.mode == "text" for text in trace.text]


def pieces(trace):
    """The parts of a line, between its gaps."""
    gaps = np.flatnonzero(np.isnan(np.asarray(trace.x, dtype=float)))
    return len(gaps)


def test_the_figure_shows_every_concept_and_every_edge():
    made = circuit(labels=["Texas", "capital"], features=14).grouped()
    figure, merged = made.plot(), made.concepts()
    kinds = merged.nodes["kind"]
    shown = texts(figure)
    for label in merged.nodes.loc[kinds.isin(["feature", "token"]), "label"]:
        assert label in shown
    lines = [t for t in figure.data if t.mode == "lines" and not (t.fill or t.name)]
    view = concept_view(made, None)
    layers = view.nodes.loc[view.nodes["layer"] >= 0, "layer"].nunique()
    assert sum(map(pieces, lines)) == len(view.edges) + layers  # and a guide for each layer
    hover = next(t for t in figure.data if t.mode == "markers")
    assert len(hover.x) == len(view.nodes) == len(hover.hovertext)


def test_wider_edges_are_stronger_and_signs_have_their_colour():
    made = circuit(edges=200, features=25)
    figure = made.plot()
    view = concept_view(made, None)
    raises, lowers = ([LIGHT[key], LIGHT[f"strong-{key}"]] for key in ("plus", "minus"))
    lines = [t for t in figure.data if t.mode == "lines" and not (t.fill or t.name)]
    signed = [t for t in lines if t.line.color in raises + lowers]
    lowering = [t for t in lines if t.line.color in lowers]
    rest = view.nodes["role"].to_numpy()[view.edges["source"]] == "rest"
    assert sum(map(pieces, lowering)) == (view.edges["weight"] < 0)[~rest].sum()
    strongest = view.edges[~rest].nlargest(1, "share").iloc[0]
    widest = max(signed, key=lambda t: t.line.width)
    assert pieces(widest) < len(view.edges) / 4
    x = np.asarray(widest.x, dtype=float)
    hover = next(t for t in figure.data if t.mode == "markers")
    ends = {round(float(hover.x[int(strongest[end])]), 1) for end in ("source", "target")}
    assert ends <= set(x[~np.isnan(x)].tolist())


def test_the_legend_names_signs_and_the_path():
    figure = circuit(features=20, edges=80).plot()
    assert [t.name for t in figure.data if t.name] == ["raises", "lowers", "strongest path"]


def test_the_strongest_path_is_brought_out():
    made = circuit(features=20, edges=80)
    path = made.paths(top=1)[0]
    view = concept_view(made, path)
    on = view.nodes.loc[view.nodes["step"] >= 0]
    assert set(on["name"]) == {name for step in path.nodes for name in step}
    assert view.edges["path"].any()
    chosen = view.edges.loc[view.edges["path"], ["source", "target"]].to_numpy()
    steps = view.nodes["step"].to_numpy()[chosen]
    assert (steps >= 0).all() and set(steps[:, 1] - steps[:, 0]) <= {0, 1}
    bold = [t for trace in made.plot().data if trace.textfont.weight == 600 for t in trace.text]
    assert set(path.labels[:-1]) <= set(bold)


def test_errors_are_merged_for_each_word_among_concepts_and_apart_among_features():
    made = circuit(errors=3)
    merged, single = concept_view(made, None).nodes, feature_view(made, None).nodes
    assert (single["role"] == "rest").sum() == 3
    rest = merged.loc[merged["role"] == "rest"]
    assert len(rest) == 1 and len(rest["members"].iloc[0]) == 3
    assert rest["influence"].sum() == pytest.approx(
        single.query("role == 'rest'")["influence"].sum()
    )


def test_texts_are_never_markup():
    made = circuit(HOSTILE, features=24, labels=HOSTILE[:5]).grouped()
    figure = made.plot()
    hovered = [t for trace in figure.data for t in (trace.hovertext or ())]
    for text in [*texts(figure), *(note.text for note in figure.layout.annotations)]:
        assert "<" not in text and "$" not in text and "\n" not in text
    for text in hovered:
        assert "<" not in text.replace("<b>", "").replace("</b>", "").replace("<br>", "")
    figure.to_json()


def test_hovering_tells_evidence_and_neighbours():
    made = circuit(features=6, edges=30)
    row = made.nodes.loc[made.nodes["kind"] == "feature"].iloc[0]
    known = {f"L{row.layer}/F{row.feature}": evidence()}
    figure = replace(made, evidence=known).plot()
    hover = next(t for t in figure.data if t.mode == "markers").hovertext
    told = [text for text in hover if "promotes Texas, Austin" in text]
    assert len(told) == 1 and "the city [Dallas] lies" in told[0]
    assert any("fed by" in text for text in hover) and any("feeds" in text for text in hover)


def test_a_circuit_without_edges_is_still_a_picture():
    made = circuit(features=0, edges=0, outputs=1, errors=0)
    assert "Dallas" in texts(made.plot())


def test_percent():
    assert [percent(s) for s in (0.0, 0.0004, 0.004, 0.0996, 0.124, 1.0)] == [
        "0%", "<0.1%", "0.4%", "10%", "12%", "100%",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "start"), [("a.svg", b"<svg"), ("a.pdf", b"%PDF"), ("a.png", b"\x89PNG")]
)
def test_figures_for_papers(tmp_path, name, start):
    pytest.importorskip("kaleido")
    browser_path()
    path = circuit(labels=["Texas"]).grouped().save_figure(tmp_path / name)
    assert path.read_bytes().startswith(start)
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_another_ending_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"a\.gif must end in one of \.svg, \.pdf, \.png"):
        save_figure(circuit(), tmp_path / "a.gif")


def test_without_kaleido_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "kaleido", None)
    with pytest.raises(ValueError, match=r"pip install 'circuits-tracing\[figures\]'"):
        save_figure(circuit(), tmp_path / "a.svg")
    assert not list(tmp_path.iterdir())


def test_without_a_browser_it_says_what_to_install(tmp_path, monkeypatch):
    import plotly.graph_objects as go

    def refused(*args, **options):
        raise RuntimeError("Kaleido requires Google Chrome to be installed.")

    pytest.importorskip("kaleido")
    monkeypatch.setattr(go.Figure, "to_image", refused)
    with pytest.raises(ValueError, match="apt-get install chromium"):
        save_figure(circuit(), tmp_path / "a.svg")
    assert not list(tmp_path.iterdir())


def test_of_too_many_edges_the_strongest_are_drawn_and_the_picture_says_so(monkeypatch):
    made = circuit(edges=200, features=25)
    whole = feature_view(made, None).edges
    monkeypatch.setattr(views, "MOST_EDGES", 50)
    path = made.paths(top=1)[0]
    view = feature_view(made, path)
    least = whole["share"].nlargest(50).min()
    assert (view.edges.loc[~view.edges["path"], "share"] >= least).all()
    assert 50 <= len(view.edges) <= 50 + view.edges["path"].sum()
    assert "the 50 strongest of 200 edges" in about(made)["source"]
