"""Our own layout: a folder with `dictionary.json` and `dictionary.safetensors`.

The JSON says what the dictionary is: its sites, and per layer its features, the layers it writes
to and its activation. The tensors are named by layer: `0.reader`, `0.reader_bias`, `0.writer.2`
(what layer 0's features write at layer 2), `0.writer_bias.2`, `0.skip`, `0.threshold`.
Nothing is ever pickled, and what is not such a folder is refused in one line.
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from replacement.activations import Activation, BatchTopK, JumpReLU, ReLU, TopK
from replacement.dictionary import Dictionary, Transcoder
from replacement.formats.finding import MARKER, located
from replacement.formats.folder import whole_folder
from replacement.formats.tensors import Shapes, read_tensors, write_tensors

FORMAT, VERSION = "transcoder-dictionary", "1"
TENSORS = "dictionary.safetensors"
EVIDENCE = "features.safetensors"  # what is known of the features; see replacement.evidence
KINDS: dict[str, type] = {
    "relu": ReLU,
    "jumprelu": JumpReLU,
    "topk": TopK,
    "batchtopk": BatchTopK,
}


def save(
    dictionary: Dictionary,
    folder: str | os.PathLike[str],
    about: Mapping[str, Any] | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Write a dictionary of transcoders as a folder, whole or not at all.

    `about` is anything JSON can hold, such as the settings of a training; its "host" names the
    model that the dictionary is for. `dtype` is the precision of the matrices in the file:
    float16 and bfloat16 halve its size (thresholds and biases keep theirs). A dictionary that is
    already in the folder is replaced, and the evidence of its features there goes with it; a folder
    that holds anything else is refused.
    """
    rest = dict(about or {})
    head = {"format": FORMAT, "version": VERSION, "name": dictionary.name}
    head |= {"host": rest.pop("host", None), "read": dictionary.read, "write": dictionary.write}
    tensors: dict[str, Tensor] = {}
    layers = []
    for index, layer in enumerate(dictionary.layers):
        if not isinstance(layer, Transcoder):
            raise ValueError(
                f"layer {index} of {dictionary.name!r} is the host's own neurons, which are part "
                "of the host and are not saved; replacement.load(host, 'neurons') makes them."
            )
        layers.append(_described(layer))
        tensors |= {f"{index}.{name}": tensor for name, tensor in _named(layer).items()}
    text = _json({**head, "layers": layers, "about": rest})
    with whole_folder(folder, (MARKER, TENSORS, EVIDENCE)) as scratch:
        (scratch / MARKER).write_text(text, encoding="utf-8")
        write_tensors(tensors, scratch / TENSORS, dtype)


def load(folder: str | os.PathLike[str]) -> Dictionary:
    """Read a dictionary that `save` wrote; half precision is loaded as float32."""
    path = located(folder)
    head = describe(path)
    with _damage_named(path):
        shapes: Shapes = {}
        for index, layer in enumerate(head["layers"]):
            shapes |= {f"{index}.{name}": shape for name, shape in _shapes(layer).items()}
    tensors = read_tensors(path / TENSORS, shapes)
    with _damage_named(path):
        layers = [_transcoder(str(i), layer, tensors) for i, layer in enumerate(head["layers"])]
        return Dictionary(layers, head["read"], head["write"], head["name"])


def describe(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """What a saved dictionary says of itself: its `dictionary.json`, the `about` block included."""
    path = located(folder)
    try:
        head = json.loads((path / MARKER).read_bytes(), parse_constant=_not_a_number)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path / MARKER} is truncated or not JSON: {error}") from error
    if not isinstance(head, dict) or head.get("format") != FORMAT:
        raise ValueError(f"{path / MARKER} does not describe a dictionary; write one with `save`.")
    if head.get("version") != VERSION:
        raise ValueError(
            f"{path} has format version {head.get('version')} and this version reads {VERSION}; "
            "save it again, or use the version of the package that wrote it."
        )
    return head


def _not_a_number(text: str) -> float:
    raise ValueError(f"it holds {text}")


def _json(head: dict[str, Any]) -> str:
    try:
        return json.dumps(head, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"the dictionary cannot be described in JSON ({error}); `about` may hold texts, "
            "finite numbers, lists and mappings, and a threshold must be finite."
        ) from error


def _described(layer: Transcoder) -> dict[str, Any]:
    """A layer without its tensors."""
    kind = next(name for name, made in KINDS.items() if isinstance(layer.activation, made))
    activation: dict[str, Any] = {"kind": kind}
    for name in ("k", "threshold"):
        value = getattr(layer.activation, name, None)
        activation |= {} if value is None or isinstance(value, Tensor) else {name: value}
    features, width = layer.reader.shape
    return {
        "features": features,
        "width": width,
        "writes": sorted(layer.writers),
        "activation": activation,
        "biases": sorted(layer.biases),
        "others": sorted({"reader_bias", "skip", "threshold"} & set(_named(layer))),
    }


def _named(layer: Transcoder) -> dict[str, Tensor]:
    """A layer's tensors by their names in the file."""
    threshold = getattr(layer.activation, "threshold", None)
    named = {
        "reader": layer.reader,
        "reader_bias": layer.reader_bias,
        "skip": layer.skip,
        "threshold": threshold if isinstance(threshold, Tensor) else None,
    }
    named |= {f"writer.{m}": writer for m, writer in layer.writers.items()}
    named |= {f"writer_bias.{m}": bias for m, bias in layer.biases.items()}
    return {name: tensor for name, tensor in named.items() if tensor is not None}


def _shapes(layer: dict[str, Any]) -> Shapes:
    """The shape, or the shapes, that each of a described layer's tensors may have."""
    features, width = int(layer["features"]), int(layer["width"])
    known: Shapes = {
        "reader_bias": ((features,),),
        "skip": ((width, width),),
        "threshold": ((features,), ()),
    }
    shapes: Shapes = {"reader": ((features, width),)}
    shapes |= {name: known[name] for name in layer["others"]}
    shapes |= {f"writer.{int(m)}": ((features, width),) for m in layer["writes"]}
    return shapes | {f"writer_bias.{int(m)}": ((width,),) for m in layer["biases"]}


def _transcoder(index: str, layer: dict[str, Any], tensors: Mapping[str, Tensor]) -> Transcoder:
    def get(name: str) -> Tensor | None:
        return tensors.get(f"{index}.{name}")

    numbers = {name: value for name, value in layer["activation"].items() if name != "kind"}
    if "threshold" in layer["others"]:
        numbers["threshold"] = get("threshold")
    activation: Activation = KINDS[layer["activation"]["kind"]](**numbers)
    return Transcoder(
        reader=tensors[f"{index}.reader"],
        writers={m: tensors[f"{index}.writer.{m}"] for m in layer["writes"]},
        activation=activation,
        reader_bias=get("reader_bias"),
        writer_biases={m: tensors[f"{index}.writer_bias.{m}"] for m in layer["biases"]},
        skip=get("skip"),
    )


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    """What does not fit together in a saved dictionary is one line that names the folder."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(
            f"{path / MARKER} is incomplete or garbled ({error}); save the dictionary again."
        ) from error
