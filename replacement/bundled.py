"""What ships inside this package: Atlas, a small model, with its dictionaries."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

DEFAULT_HOST = "atlas"
NEURONS = "neurons"  # the dictionary that every host has: its own MLP neurons

# Name -> the folder with its model; and beside that one folder a dictionary, the default first.
SHIPPED = {"atlas": Path(__file__).parent / "atlas"}
_DICTIONARIES = {"atlas": ("per-layer", "cross-layer")}


def model_folder(name: str) -> Path:
    """The Hugging Face folder of a model that ships with the package."""
    return SHIPPED[name] / "model"


def dictionaries(source: Any) -> Mapping[str, Path]:
    """The saved dictionaries that ship with a host, by name; none where the host does not ship."""
    name = os.fspath(source) if isinstance(source, str | os.PathLike) else ""
    return {kind: SHIPPED[name] / kind for kind in _DICTIONARIES.get(name, ())}
