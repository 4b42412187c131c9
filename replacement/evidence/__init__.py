"""Evidence: what every feature of a dictionary is, as far as a corpus and its writers tell.

Top function: `gather`, which runs a corpus once and returns an `Evidence`; `save` and `load` keep
it in one file beside the dictionary.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from replacement.evidence.evidence import Evidence
    from replacement.evidence.gathering import gather
    from replacement.evidence.labels import read_labels
    from replacement.evidence.store import FILE, load, save

# A model holds evidence, and gathering it needs a model: names load on first use.
_HOMES = {
    "Evidence": "replacement.evidence.evidence",
    "gather": "replacement.evidence.gathering",
    "read_labels": "replacement.evidence.labels",
    "FILE": "replacement.evidence.store",
    "load": "replacement.evidence.store",
    "save": "replacement.evidence.store",
}

__all__ = ["FILE", "Evidence", "gather", "load", "read_labels", "save"]


def __getattr__(name: str) -> Any:
    """Load a public name from the module that defines it."""
    if name not in _HOMES:
        raise AttributeError(f"module 'replacement.evidence' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
