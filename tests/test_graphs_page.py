"""The page: its data against the circuit, and the file itself in a real browser with no network."""

import json
import re
from dataclasses import replace

import pytest
from pictures import HOSTILE, SWITCHES, browser_path, circuit, evidence

from graphs.groups import Group
from graphs.page import page_data, save_html


@pytest.fixture(scope="module")
def chromium():
    """A real browser; it is not downloaded but the system's."""
    path = browser_path()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=path, args=SWITCHES)
        yield opened
        opened.close()


@pytest.fixture
def opened(chromium, tmp_path):
    """Open a circuit's page; nothing may be logged as an error, and nothing asked of a network."""
    troubles, contexts = [], []

    def opening(made, width=1280, height=800, scheme="light", phone=False):
        path = made.save_html(tmp_path / "page.html")
        size = {"width": width, "height": height}
        context = chromium.new_context(
            viewport=size, color_scheme=scheme, offline=True, has_touch=phone
        )
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("console", lambda line: line.type == "error" and troubles.append(line.text))
        page.on(
            "request", lambda asked: asked.url.startswith("http") and troubles.append(asked.url)
        )
        page.goto(path.as_uri())
        page.wait_for_selector("html[data-ready]", state="attached")
        return page

    yield opening
    for context in contexts:
        context.close()
    assert not troubles


def texas(**options):
    """Words, a concept Texas of three features that Dallas feeds and that feeds the output."""
    made = circuit(features=12, edges=70, labels=["river", "capital"], outputs=1, **options)
    nodes = made.nodes.copy()
    chosen = nodes.index[nodes["kind"] == "feature"][:3]
    nodes.loc[chosen, ["label", "position", "layer"]] = ["Texas", 3, 1]
    nodes.loc[chosen, "influence"] = [0.5, 0.2, 0.1]
    edges = made.edges[~made.edges["source"].isin(chosen) & ~made.edges["target"].isin(chosen)]
    word, out = nodes.index[nodes["token"] == "Dallas"][0], nodes.index[-1]
    more = [(word, t, 1.0, 0.05, 0.5) for t in chosen] + [(t, out, 2.0, 0.2, 0.2) for t in chosen]
    table = [*edges.itertuples(index=False, name=None), *more]
    edges = type(edges)(table, columns=edges.columns)
    keys = {f"L1/F{int(feature)}" for feature in nodes.loc[chosen, "feature"]}
    known = {key: evidence() for key in keys}
    return replace(made, nodes=nodes, edges=edges, evidence=known).grouped()


def counted(page):
    """Boxes shown, boxes there are, edges shown, edges there are: as the page says."""
    return [int(n) for n in re.findall(r"(\d+) of (\d+)", page.inner_text("#count")) for n in n]


def box(page, label):
    return page.locator("#picture text").filter(has_text=re.compile(f"^{re.escape(label)}$")).first


def test_the_data_are_the_circuit_s():
    made = texas()
    data = page_data(made)
    for view, nodes, edges in (
        ("features", len(made.nodes), len(made.edges)),
        ("concepts", None, None),
    ):
        found = data["views"][view]
        assert nodes in (None, len(found["nodes"]["label"]))
        assert edges in (None, len(found["edges"]["share"]))
        for picture in found["pictures"].values():
            boxes = [t for t in picture["traces"] if t["meta"]["of"] == "nodes" and "line" in t]
            drawn = [n for t in boxes if t["meta"]["role"] != "stack" for n in t["meta"]["items"]]
            assert sorted(drawn) == list(range(len(found["nodes"]["label"])))
            lines = [
                n
                for t in picture["traces"]
                if t["meta"]["of"] == "edges"
                for n in t["meta"]["items"]
            ]
            assert sorted(lines) == list(range(len(found["edges"]["share"])))
            for trace in [*boxes, *(t for t in picture["traces"] if t["meta"]["of"] == "edges")]:
                assert trace["x"].count(None) == len(trace["meta"]["items"])
    members = data["views"]["concepts"]["nodes"]["members"]
    assert sorted(m for each in members for m in each) == list(range(len(made.nodes)))
    shares = data["views"]["features"]["edges"]["share"]
    assert shares == pytest.approx(made.edges["share"].tolist(), rel=1e-2)


def test_the_file_is_whole_or_not_there(tmp_path, monkeypatch):
    path = save_html(circuit(), tmp_path / "a.html")
    text = path.read_text(encoding="utf-8")
    assert text.rstrip().endswith("</html>") and not re.search(r"<!--\w+-->", text)
    assert "cdn.plot.ly" not in text.split('id="data"')[1]
    monkeypatch.setattr("json.dumps", lambda *args, **options: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save_html(circuit(), tmp_path / "b.html")
    assert [p.name for p in tmp_path.iterdir()] == ["a.html"]


def test_no_text_ends_the_block_of_data(tmp_path):
    made = circuit([*HOSTILE, "<!--script-->"], features=20, labels=HOSTILE)
    text = save_html(made, tmp_path / "a.html").read_text(encoding="utf-8")
    block = re.search(r'<script id="data" type="application/json">(.*?)</script>', text, re.DOTALL)
    assert block is not None
    assert json.loads(block[1])["tokens"] == [*HOSTILE, "<!--script-->"]
    assert "\u2028" not in block[1] and "<" not in block[1]
    assert "alert(1)</script>" not in text


def test_a_click_on_texas_shows_its_card(opened):
    page = opened(texas())
    assert "Reading this picture" in page.inner_text("#card")
    assert page.inner_text("#scores").startswith("41% of the influence")
    box(page, "Texas").click()
    card = page.inner_text("#card")
    assert card.startswith("Texas") and "concept of 3 features, layer 1, at “Dallas”" in card
    for text in ("What feeds it", "What it feeds", "by the same label", "influence runs through"):
        assert text in card
    assert page.locator("#card .contexts mark").first.inner_text().strip() == "Dallas"
    assert page.locator("#card .chip", has_text="Austin").first.is_visible()
    assert page.locator("#card .chip", has_text="Texas 81%").first.is_visible()
    drawn = page.locator("#card .histogram").first
    assert drawn.locator("div span").count() == 3  # without the empty bins at both ends
    assert drawn.locator("figcaption").inner_text().split() == ["1", "activation", "8"]
    page.locator("#card .link", has_text="out0").first.click()
    assert page.inner_text("#card h2") == "out0"
    page.keyboard.press("Escape")
    assert "Reading this picture" in page.inner_text("#card")


def test_pointing_shows_a_card_and_leaving_takes_it_away(opened):
    page = opened(texas())
    box(page, "Texas").hover()
    assert page.inner_text("#card h2") == "Texas"
    page.mouse.move(5, 5)
    assert page.inner_text("#card h2") == "Reading this picture"


def test_the_sliders_keep_the_fewest_that_carry_the_share(opened):
    made = texas()
    page = opened(made)
    merged = page_data(made)["views"]["concepts"]
    count = len(merged["nodes"]["label"])
    assert counted(page) == [
        count,
        count,
        len(merged["edges"]["share"]),
        len(merged["edges"]["share"]),
    ]
    page.locator("#nodes").fill("50")
    page.wait_for_function("document.getElementById('nodes-share').textContent === '50%'")
    optional = [
        influence
        for influence, role in zip(
            merged["nodes"]["influence"], merged["nodes"]["role"], strict=True
        )
        if role not in ("word", "output")
    ]
    kept, total = 0, 0.0
    while total < 0.5 * sum(optional):
        total += sorted(optional, reverse=True)[kept]
        kept += 1
    assert counted(page)[0] == count - len(optional) + kept < count
    edges = counted(page)[2]
    page.locator("#edges").fill("60")
    page.wait_for_function("document.getElementById('edges-share').textContent === '60%'")
    assert 0 < counted(page)[2] < edges
    drawn = page.evaluate(
        "document.getElementById('picture').data.filter((t) => t.meta.of === 'edges')"
        ".reduce((n, t) => n + t.x.filter((x) => x === null).length, 0)"
    )
    assert drawn == counted(page)[2]


def test_pinned_concepts_stay(opened):
    made = texas()
    weak = made.nodes.loc[made.nodes["kind"] == "feature"].nsmallest(1, "influence").iloc[0]
    name = made.names()[int(weak["node"])]
    kept = [replace(g, members=tuple(m for m in g.members if m != name)) for g in made.groups]
    pinned = Group("pinned one", (name,), pinned=True)
    made = replace(made, groups=(*(g for g in kept if g.members), pinned))
    page = opened(made)
    page.locator("#nodes").fill("0")
    page.wait_for_function("document.getElementById('nodes-share').textContent === '0%'")
    assert counted(page)[0] == len(made.settings["tokens"]) + 2  # an output and the pinned one
    assert box(page, "pinned one").is_visible()


def test_switching_to_single_features(opened):
    made = texas()
    page = opened(made)
    page.get_by_text("Features", exact=True).click()
    assert counted(page)[:2] == [len(made.nodes)] * 2
    assert page.locator("#picture text").filter(has_text=re.compile("^Texas$")).count() == 3
    box(page, "Texas").click()
    assert "feature, L1/F" in page.inner_text("#card") and "Strongest at" in page.inner_text(
        "#card"
    )


def test_searching(opened):
    page = opened(texas())
    page.fill("#search", "texa")
    assert page.inner_text("#found") == "1 found"
    assert page.locator("#picture .layer-above path").count() == 1
    page.keyboard.press("Enter")
    assert page.inner_text("#card h2") == "Texas"
    page.fill("#search", "no such thing")
    assert page.inner_text("#found") == "0 found"


def test_the_strongest_path_is_written_out_and_leads_to_its_boxes(opened):
    made = texas()
    path = made.paths(top=1)[0]
    page = opened(made)
    steps = page.locator("#path .step")
    assert steps.all_inner_texts() == list(path.labels)
    steps.nth(1).click()
    assert page.inner_text("#card h2") == path.labels[1]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_schemes(opened, scheme):
    page = opened(texas(), scheme=scheme)
    shade = "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)[0]"
    assert (page.evaluate(shade) > 128) == (scheme == "light")
    page.click("#scheme")
    assert (page.evaluate(shade) > 128) == (scheme == "dark")


def test_text_stays_text(opened):
    made = circuit(HOSTILE, features=24, labels=HOSTILE, edges=120).grouped()
    key = made.nodes.loc[made.nodes["kind"] == "feature", ["layer", "feature"]].iloc[0]
    known = {f"L{key['layer']}/F{key['feature']}": evidence(HOSTILE[3], HOSTILE[0])}
    page = opened(replace(made, evidence=known))
    assert page.locator("#picture text", has_text="<script>alert(1)").first.is_visible()
    page.fill("#search", "script")
    page.keyboard.press("Enter")
    assert "script" in page.inner_text("#card h2")
    page.get_by_text("Features", exact=True).click()
    page.fill("#search", f"L{key['layer']}/F{key['feature']}")
    page.keyboard.press("Enter")
    assert page.inner_text("#card mark").strip() == HOSTILE[0]
    assert page.evaluate("window.hit") is None
    assert page.locator("#card script, #card img, #picture img, h1 *").count() == 0


@pytest.mark.parametrize("view", ["Concepts", "Features"])
@pytest.mark.parametrize("width", [1280, 390])
def test_every_text_fits_its_box_and_the_page_its_window(opened, view, width):
    words = [
        "the",
        "WWWWWWWWWW",
        "mmmmmmmmmmmm",
        "東京都の首都",
        "مرحبا بالعالم",
        "is",
        "supercali" * 6,
    ]
    page = opened(circuit(words, features=40, labels=["Texas", *words]).grouped(), width=width)
    page.get_by_text(view, exact=True).click()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    too_wide = page.evaluate(
        """() => [...document.querySelectorAll("#picture .textpoint text")].filter((text) => {
             const own = text.getBoundingClientRect(), scale = state.zoom;
             const n = boxAt(picture(), shown, text.getAttribute("x") * 1,
                             picture().layout.height - text.getAttribute("y") * 1 + 4);
             return n >= 0 && own.width > scale * picture().boxes.wide[n];
           }).map((text) => text.textContent)"""
    )
    assert too_wide == []


def test_on_a_phone_the_card_is_below_and_a_tap_shows_it(opened):
    page = opened(texas(), width=390, height=844, phone=True)
    frame, card = page.locator("#frame").bounding_box(), page.locator("#card").bounding_box()
    assert card["y"] >= frame["y"] + frame["height"]
    box(page, "Texas").tap()
    assert page.inner_text("#card h2") == "Texas"


def test_every_control_has_a_name_and_the_keyboard_reaches_it(opened):
    page = opened(texas())
    nameless = page.evaluate(
        """[...document.querySelectorAll("button, input")].filter((each) =>
             !(each.ariaLabel || each.textContent.trim() || each.labels?.length)).length"""
    )
    assert nameless == 0
    page.focus("#nodes")
    page.keyboard.press("ArrowLeft")
    page.wait_for_function("document.getElementById('nodes-share').textContent === '99%'")


def test_three_thousand_nodes(opened, tmp_path):
    words = [f"word{n}" for n in range(24)]
    made = circuit(words, features=2948, layers=18, edges=20_000, outputs=10, errors=18)
    assert (len(made.nodes), len(made.edges)) == (3000, 20_000)
    page = opened(made)
    assert (tmp_path / "page.html").stat().st_size < 12e6
    page.get_by_text("Features", exact=True).click()
    assert counted(page)[:2] == [3000, 3000] and counted(page)[3] == 20_000
    assert counted(page)[2] <= 400
    page.locator("#edges").fill("100")
    page.wait_for_function("document.getElementById('edges-share').textContent === '100%'")
    assert counted(page)[2] == 20_000
