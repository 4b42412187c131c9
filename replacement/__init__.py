"""The model being traced: a host whose MLPs are re-expressed in features.

Top function: `load`, which opens a host and pairs it with a dictionary.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from replacement.activations import BatchTopK, JumpReLU, ReLU, TopK
    from replacement.dictionary import Dictionary, Transcoder
    from replacement.faithfulness import Faithfulness, evaluate
    from replacement.host import Host
    from replacement.model import ReplacementModel, load
    from replacement.neurons import neuron_dictionary

# Importing this package must stay quick (torch alone takes seconds): names load on first use.
_HOMES = {
    "Host": "replacement.host",
    "Transcoder": "replacement.dictionary",
    "Dictionary": "replacement.dictionary",
    "ReLU": "replacement.activations",
    "JumpReLU": "replacement.activations",
    "TopK": "replacement.activations",
    "BatchTopK": "replacement.activations",
    "ReplacementModel": "replacement.model",
    "load": "replacement.model",
    "neuron_dictionary": "replacement.neurons",
    "evaluate": "replacement.faithfulness",
    "Faithfulness": "replacement.faithfulness",
}

__all__ = [
    "BatchTopK",
    "Dictionary",
    "Faithfulness",
    "Host",
    "JumpReLU",
    "ReLU",
    "ReplacementModel",
    "TopK",
    "Transcoder",
    "evaluate",
    "load",
    "neuron_dictionary",
]


def __getattr__(name: str) -> Any:
    """Load a public name from the module that defines it."""
    if name == "formats":  # a package of its own, reached as `replacement.formats.save`
        return import_module("replacement.formats")
    if name not in _HOMES:
        raise AttributeError(f"module 'replacement' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
