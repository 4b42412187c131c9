"""Dictionaries as files, one module a layout: `save` and `load` are our own, in safetensors."""

from replacement.formats.saved import describe, load, save

__all__ = ["describe", "load", "save"]
