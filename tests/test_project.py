"""The project as a newcomer meets it: quick imports, a package list that is whole, one version."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("replacement", "graphs", "circuits")
HEAVY = {"torch", "transformers", "transformer_lens", "plotly"}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def loaded_after(statement: str) -> set[str]:
    """The top-level modules that a fresh interpreter holds after the statement."""
    code = f"{statement}\nimport sys\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    return set(done.stdout.split())


@pytest.mark.parametrize("room", ROOMS)
def test_importing_is_quick(room):
    assert not loaded_after(f"import {room}") & HEAVY


def test_the_command_line_is_quick_to_import():
    assert not loaded_after("import circuits.cli") & HEAVY


def test_torch_would_be_seen():
    assert "torch" in loaded_after("import torch")


@pytest.mark.parametrize("room", ["replacement", "circuits"])
def test_importing_takes_no_table_library(room):
    assert not loaded_after(f"import {room}") & {"pandas", "scipy", "networkx", "numpy"}


@pytest.mark.parametrize("room", ROOMS)
def test_public_names_stay_what_they_are(room):
    """A name must not turn into the submodule of the same name once that was imported."""
    code = (
        f"import {room}, types\n"
        f"for _ in range(2):\n"
        f"    for name in {room}.__all__:\n"
        f"        assert not isinstance(getattr({room}, name), types.ModuleType), name\n"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("room", ROOMS)
def test_shapes_are_checked_in_this_run(room):
    """The pytest option is alive: our modules come through jaxtyping's loader."""
    spec = importlib.util.find_spec(room)
    assert spec is not None
    assert type(spec.loader).__module__.startswith("jaxtyping")


def test_every_package_folder_is_listed():
    listed = PROJECT["tool"]["setuptools"]["packages"]
    folders = {
        path.parent.relative_to(ROOT).as_posix().replace("/", ".")
        for room in ROOMS
        for path in (ROOT / room).rglob("*.py")
    }
    assert sorted(listed) == sorted(folders)


def test_the_version_is_in_the_changelog():
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert "## [Unreleased]" in changelog
    version = re.escape(PROJECT["project"]["version"])
    assert re.search(rf"(?<![\w.]){version}(?![\w])", changelog)


def test_every_dependency_has_a_tested_range():
    for requirement in PROJECT["project"]["dependencies"]:
        assert re.fullmatch(r"[a-z-]+>=[\d.]+,<[\d.]+", requirement), requirement
