"""The model being traced: a host whose MLPs are re-expressed in features.

Top function: `load`, which opens a host and pairs it with a dictionary.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from replacement.activations import BatchTopK, JumpReLU, ReLU, TopK
    from replacement.dictionary import Dictionary, Transcoder
    from replacement.faithfulness import Faithfulness, evaluate
    from replacement.generation import Generation
    from replacement.host import Host
    from replacement.interventions import Ablate, Add, Clamp, Scale, Set, Swap
    from replacement.model import ReplacementModel, load
    from replacement.monitor import Firing, Monitor, Rule
    from replacement.neurons import neuron_dictionary
    from replacement.outcome import Outcome

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
    "Set": "replacement.interventions",
    "Scale": "replacement.interventions",
    "Add": "replacement.interventions",
    "Ablate": "replacement.interventions",
    "Clamp": "replacement.interventions",
    "Swap": "replacement.interventions",
    "Outcome": "replacement.outcome",
    "Generation": "replacement.generation",
    "Monitor": "replacement.monitor",
    "Rule": "replacement.monitor",
    "Firing": "replacement.monitor",
}

__all__ = [
    "Ablate",
    "Add",
    "BatchTopK",
    "Clamp",
    "Dictionary",
    "Faithfulness",
    "Firing",
    "Generation",
    "Host",
    "JumpReLU",
    "Monitor",
    "Outcome",
    "ReLU",
    "ReplacementModel",
    "Rule",
    "Scale",
    "Set",
    "Swap",
    "TopK",
    "Transcoder",
    "evaluate",
    "load",
    "neuron_dictionary",
]


def __getattr__(name: str) -> Any:
    """Load a public name from the module that defines it."""
    if name in ("evidence", "formats"):  # packages, reached as `replacement.formats.save`
        return import_module(f"replacement.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'replacement' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
