import numpy as np
import pandas as pd
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import circuit

from graphs.drawing import draw
from graphs.layout import crossings, ordered, place
from graphs.lettering import escaped, shortened, text_width
from graphs.views import concept_view, feature_view

KINDS = st.tuples(st.integers(-1, 9), st.integers(-1, 12), st.floats(20, 180), st.booleans())


@st.composite
def tables(draw):
    """Any nodes, any edges between them: the layout must not care where they come from."""
    rows = draw(st.lists(KINDS, min_size=1, max_size=60))
    nodes = pd.DataFrame(rows, columns=["layer", "position", "wide", "mark"])
    loose = draw(st.lists(st.booleans(), min_size=len(rows), max_size=len(rows)))
    nodes["loose"] = np.array(loose) & (nodes["layer"] == -1) & ~nodes["mark"]
    # In a real circuit each position has one word.
    nodes = nodes[(nodes["layer"] >= 0) | ~nodes.duplicated(["layer", "position"])]
    nodes = nodes.reset_index(drop=True)
    ends = st.integers(0, len(nodes) - 1)
    edges = draw(st.lists(st.tuples(ends, ends, st.floats(0, 1)), max_size=80))
    return nodes, pd.DataFrame(edges, columns=["source", "target", "share"])


@given(tables(), st.sampled_from([300.0, 480.0, 860.0]))
@settings(deadline=None)
def test_no_two_boxes_overlap_and_all_lie_within_the_picture(table, across):
    nodes, edges = table
    places = place(nodes, edges, across)
    x, y, wide, high = places.x, places.y, places.wide, places.high
    apart = np.abs(x[:, None] - x) >= (wide[:, None] + wide) / 2 - 1e-6
    apart |= np.abs(y[:, None] - y) >= (high[:, None] + high) / 2 - 1e-6
    assert (apart | np.eye(len(nodes), dtype=bool)).all()
    assert (x - wide / 2 >= 0).all() and (x + wide / 2 <= places.size[0]).all()
    assert (y - high / 2 >= 0).all() and (y + high / 2 <= places.size[1]).all()


@given(tables(), st.sampled_from([300.0, 860.0]))
@settings(deadline=None)
def test_words_stand_in_order_and_layers_ascend(table, across):
    nodes, edges = table
    places = place(nodes, edges, across)
    layer, position = nodes["layer"].to_numpy(), nodes["position"].to_numpy()
    top, bottom = places.y + places.high / 2, places.y - places.high / 2
    assert (top[:, None] < bottom)[layer[:, None] < layer].all()
    right, left = places.x + places.wide / 2, places.x - places.wide / 2
    # Alone in the top row, outputs may reach over other columns.
    columned = layer < layer.max() if layer.max() > layer.min() else layer == layer
    before = (position[:, None] < position) & columned[:, None] & columned
    assert (right[:, None] < left)[before].all()


@given(tables())
@settings(deadline=None)
def test_the_order_has_no_more_crossings_than_the_table_s_own(table):
    nodes, edges = table
    _, row = np.unique(nodes["layer"], return_inverse=True)
    _, column = np.unique(nodes["position"], return_inverse=True)
    order = ordered(row, column, edges)
    assert sorted(order) == list(range(len(nodes)))
    ends = (edges["source"].to_numpy(np.int64), edges["target"].to_numpy(np.int64))

    def crossed(order):
        x = np.zeros(len(order))
        for key in set(zip(row, column, strict=True)):
            own = [n for n in order if (row[n], column[n]) == key]
            x[own] = key[1] + (np.arange(len(own)) + 0.5) / len(own)
        return crossings(x, row.astype(float), *ends)

    own = np.lexsort((np.arange(len(nodes)), column, row))
    assert crossed(order) <= crossed(own)


def test_an_order_that_crosses_is_turned_around():
    """Two pairs in two cells, joined crosswise: one cell must be turned."""
    nodes = pd.DataFrame({"layer": [0, 0, 1, 1], "position": [0, 0, 0, 0]})
    edges = pd.DataFrame({"source": [0, 1], "target": [3, 2], "share": [0.5, 0.5]})
    order = ordered(nodes["layer"].to_numpy(), nodes["position"].to_numpy(), edges).tolist()
    assert (order.index(0) < order.index(1)) == (order.index(3) < order.index(2))


def side(o, d, z):
    return np.sign((d - o)[0] * (z - o)[1] - (d - o)[1] * (z - o)[0])


@given(
    st.lists(st.tuples(*[st.integers(0, 5)] * 4), min_size=2, max_size=8).map(
        lambda rows: [r for r in rows if r[1] != r[3]]
    )
)
def test_crossings_are_those_of_a_check_pair_by_pair(rows):
    points = np.array(rows, dtype=float).reshape(-1, 2)
    x, y = points.T if len(points) else np.zeros((2, 0))
    source, target = np.arange(0, len(x), 2), np.arange(1, len(x), 2)
    expected = 0
    for a in range(len(source)):
        for b in range(a):
            p, q, r, s = points[2 * a], points[2 * a + 1], points[2 * b], points[2 * b + 1]
            expected += side(p, q, r) * side(p, q, s) < 0 and side(r, s, p) * side(r, s, q) < 0
    assert crossings(x, y, source, target) == expected


def test_a_wide_prompt_folds_the_words_without_edges():
    made = circuit([f"word{n}" for n in range(30)], edges=20, features=8)
    drawing = draw(concept_view(made, None), 480.0)
    nodes, folded = drawing.view.nodes, drawing.places.folded
    assert folded.sum() > 10 and drawing.places.upright
    joined = set(drawing.view.edges["source"]) | set(drawing.view.edges["target"])
    assert not set(np.flatnonzero(folded)) & joined
    assert (nodes["role"][folded] == "word").all()
    long = circuit([f"word{n}" for n in range(300)], edges=20, features=8)
    drawing = draw(concept_view(long, None), 860.0)
    assert not drawing.places.upright and drawing.places.size[0] < 4000


def test_a_short_prompt_fits_as_it_is():
    drawing = draw(feature_view(circuit(), None), 860.0)
    assert not drawing.places.folded.any() and drawing.places.size[0] <= 1.25 * 860


def test_strong_edges_pass_no_box_on_their_way():
    """Word, three boxes above it, output: the long edge goes around all of them."""
    made = circuit(["one"], features=0, outputs=1, edges=0, errors=0)
    view = feature_view(made, None)
    extra = view.nodes.iloc[[0, 0, 0]].assign(role="feature", layer=[0, 1, 2], text="a box")
    nodes = pd.concat([view.nodes, extra], ignore_index=True)
    edge = pd.DataFrame({"source": [0], "target": [1], "weight": 1.0, "share": 1.0, "path": False})
    drawing = draw(type(view)(nodes, edge, None), 860.0)
    line = next(t for t in drawing.traces if t.of == "edges")
    places = drawing.places
    for n in (2, 3, 4):
        within = np.abs(line.y - places.y[n]) < places.high[n] / 2
        assert within.any()
        assert (np.abs(line.x[within] - places.x[n]) > places.wide[n] / 2).all()


@given(st.text(max_size=60), st.floats(20, 200))
def test_shortened_text_fits_on_one_line(text, limit):
    found = shortened(text, 13.0, limit)
    assert text_width(found, 13.0) <= limit and "\n" not in found
    found.encode("utf-8")


@given(st.text(max_size=40))
def test_escaped_text_is_no_markup(text):
    found = escaped(text)
    assert "<" not in found and ">" not in found and "$" not in found
