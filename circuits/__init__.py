"""The method: prompt -> graph, and what is done with it.

Top function: `trace`, whose body is the table of contents of the method.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from circuits.rates import Rate
    from circuits.swapping import Swap, Swaps, swap, swaps
    from circuits.targets import Difference, Direction, Feature, Likely, Token
    from circuits.tracing import trace
    from circuits.validation import Validation, validate

# Importing this package must stay quick (torch alone takes seconds): names load on first use.
_HOMES = {
    "trace": "circuits.tracing",
    "Likely": "circuits.targets",
    "Token": "circuits.targets",
    "Difference": "circuits.targets",
    "Direction": "circuits.targets",
    "Feature": "circuits.targets",
    "swap": "circuits.swapping",
    "swaps": "circuits.swapping",
    "Swap": "circuits.swapping",
    "Swaps": "circuits.swapping",
    "Rate": "circuits.rates",
    "validate": "circuits.validation",
    "Validation": "circuits.validation",
}

__all__ = [
    "Difference",
    "Direction",
    "Feature",
    "Likely",
    "Rate",
    "Swap",
    "Swaps",
    "Token",
    "Validation",
    "swap",
    "swaps",
    "trace",
    "validate",
]


def __getattr__(name: str) -> Any:
    """Load a public name from the module that defines it."""
    if name not in _HOMES:
        raise AttributeError(f"module 'circuits' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
