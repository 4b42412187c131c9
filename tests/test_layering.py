"""The house rules a parser can check: who imports whom, no pickle, short files and functions."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("replacement", "graphs", "circuits")
MAY_IMPORT = {"replacement": set(), "graphs": set(), "circuits": {"replacement", "graphs"}}
PICKLES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
PICKLE_CALLS = {"torch.load", "torch.save", "pd.read_pickle", "pandas.read_pickle"}
LONGEST_FILE = 299
LONGEST_FUNCTION = 39

FILES = [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]
every_file = pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(ROOT).as_posix())


def imported(tree: ast.AST) -> set[str]:
    """Top-level names of all absolute imports, wherever they stand, `import_module` included."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module or "")
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in (
            "import_module",
            "__import__",
        ):
            names.update(a.value for a in node.args if isinstance(a, ast.Constant))
    return {str(name).split(".")[0] for name in names}


def dotted(tree: ast.AST) -> set[str]:
    """`torch.load` however it is come by: as an attribute or by `from torch import load`."""
    names = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def allows_pickle(node: ast.AST) -> bool:
    """`np.load(..., allow_pickle=True)`, or with anything but the literal False."""
    return (
        isinstance(node, ast.keyword)
        and node.arg == "allow_pickle"
        and not (isinstance(node.value, ast.Constant) and node.value.value is False)
    )


def length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines from `def` to the last one, less the docstring's."""
    lines = (function.end_lineno or function.lineno) - function.lineno + 1
    if ast.get_docstring(function, clean=False) is not None:
        docstring = function.body[0]
        lines -= (docstring.end_lineno or docstring.lineno) - docstring.lineno + 1
    return lines


def test_the_rooms_are_there():
    assert {path.relative_to(ROOT).parts[0] for path in FILES} == set(ROOMS)


@every_file
def test_imports_run_one_way(path):
    room = path.relative_to(ROOT).parts[0]
    strangers = imported(ast.parse(path.read_text())) & set(ROOMS) - {room} - MAY_IMPORT[room]
    assert not strangers, f"{room} must not import {', '.join(sorted(strangers))}"


@every_file
def test_no_pickle(path):
    tree = ast.parse(path.read_text())
    assert not imported(tree) & PICKLES
    assert not dotted(tree) & PICKLE_CALLS
    assert not any(allows_pickle(node) for node in ast.walk(tree))


@every_file
def test_files_are_short(path):
    assert len(path.read_text().splitlines()) <= LONGEST_FILE


@every_file
def test_functions_are_short(path):
    tree = ast.parse(path.read_text())
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    long = {f.name: length(f) for f in functions if length(f) > LONGEST_FUNCTION}
    assert not long


@pytest.mark.parametrize(
    "source",
    ["import pickle", "from pickle import load", "def f():\n    import dill", "import os, marshal"],
)
def test_a_pickle_import_would_be_seen(source):
    assert imported(ast.parse(source)) & PICKLES


@pytest.mark.parametrize("source", ["torch.load(x)", "from torch import load", "pd.read_pickle(x)"])
def test_a_pickle_call_would_be_seen(source):
    assert dotted(ast.parse(source)) & PICKLE_CALLS


@pytest.mark.parametrize(
    "source",
    ["import graphs.store", "from graphs import load", "import_module('graphs.store')"],
)
def test_an_import_the_wrong_way_would_be_seen(source):
    assert "graphs" in imported(ast.parse(source))


def test_length_leaves_out_the_docstring():
    function = ast.parse('def f():\n    """Two\n    lines."""\n    x = 1\n    return x\n').body[0]
    assert isinstance(function, ast.FunctionDef)
    assert length(function) == 3
