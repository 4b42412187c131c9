"""One safetensors file of evidence, kept in the dictionary's folder as `features.safetensors`.

Arrays are tensors; the source, the texts of the tokens
and the labels that a user or an explainer gave are JSON in the header. The file is written whole or
not at all, and one that is not ours is refused in one line.
"""

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import jaxtyped

from replacement.evidence.evidence import Arrays, Evidence, Source
from replacement.formats.finding import pickled
from replacement.formats.saved import EVIDENCE

FORMAT, VERSION = "feature-evidence", "1"
FILE = EVIDENCE
_REMEDY = "build it again with `circuits features`"
# Which array the numbers of another count in; and those that say where it is cut.
_TABLES = {
    "promotes": "tokens", "suppresses": "tokens", "through": "tokens", "window_tokens": "tokens",
    "name_words": "tokens", "name_tokens": "tokens", "context": "window_ends",
}  # fmt: skip
_CUTS = {
    "window_ends": "window_tokens",
    "name_ends": "name_words",
    "name_token_ends": "name_tokens",
}


def save(evidence: Evidence, path: str | os.PathLike[str]) -> None:
    """Write evidence to one file."""
    from safetensors.numpy import save as to_bytes

    if evidence.arrays is None or evidence.source is None:
        raise ValueError("there is no evidence to save; gather some, or keep labels in a CSV file.")
    arrays = {f.name: getattr(evidence.arrays, f.name) for f in fields(Arrays)}
    tensors = {name: np.ascontiguousarray(values) for name, values in arrays.items()}
    about = {
        "version": VERSION,
        "source": asdict(evidence.source),
        "texts": evidence.texts,
        "explained": [[*place, *said] for place, said in sorted(evidence.explained.items())],
        "given": [[*place, label] for place, label in sorted(evidence.given.items())],
    }
    metadata = {FORMAT: json.dumps(about)}  # one entry: several would stand in any order
    path = Path(path).expanduser()
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, scratch = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(to_bytes(tensors, metadata))
        mask = os.umask(0)  # a temporary file is its owner's alone; the finished one is not
        os.umask(mask)
        os.chmod(scratch, 0o666 & ~mask)
        os.replace(scratch, path)
    except BaseException:
        Path(scratch).unlink(missing_ok=True)
        raise


def load(path: str | os.PathLike[str]) -> Evidence:
    """Read evidence that `save` wrote."""
    path = Path(path).expanduser()
    metadata, tensors = _read(path)
    if FORMAT not in metadata:
        raise ValueError(f"{path} is not evidence of features; {_REMEDY}.")
    try:
        about = json.loads(metadata[FORMAT])
        version = about["version"]
        if version == VERSION:
            return _evidence(about, tensors)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise ValueError(f"{path} is damaged ({error}); {_REMEDY}.") from error
    raise ValueError(
        f"{path} has format version {version} and this version reads {VERSION}; {_REMEDY}, or use "
        "the version of the package that wrote it."
    )


def _evidence(about: dict[str, Any], tensors: dict[str, np.ndarray]) -> Evidence:
    """What a file holds, checked."""
    source = Source(**{**about["source"], "sizes": tuple(about["source"]["sizes"])})
    texts = tuple(about["texts"])
    _check_shapes(tensors)
    arrays = Arrays(**tensors)
    _check(arrays, source, texts)
    explained = {(layer, n): (said, score) for layer, n, said, score in about["explained"]}
    given = {(layer, n): label for layer, n, label in about["given"]}
    return Evidence(source, arrays, texts, explained, given)


def _check_shapes(tensors: Mapping[str, np.ndarray]) -> None:
    """That each array is of its kind, and that their shapes agree, as `Arrays` declares them."""
    with jaxtyped("context"):
        for field in fields(Arrays):
            values = tensors[field.name]
            if not isinstance(values, field.type):  # pyright: ignore[reportArgumentType]
                raise ValueError(f"{field.name}, {values.dtype} {values.shape}, does not fit")
            if values.dtype.kind == "f" and not np.isfinite(values).all():
                raise ValueError(f"{field.name} holds NaN or infinite numbers")


def _check(arrays: Arrays, source: Source, texts: tuple[str, ...]) -> None:
    """That there is all that is counted, and that no number points outside of what it counts in."""
    if len(texts) != len(arrays.tokens):
        raise ValueError(f"{len(texts)} texts of {len(arrays.tokens)} tokens")
    if len(arrays.fired) != sum(source.sizes):
        raise ValueError(f"{len(arrays.fired)} rows of {sum(source.sizes)} features")
    for name, table in _TABLES.items():
        values, known = getattr(arrays, name), len(getattr(arrays, table))
        if values.size and not -1 <= values.min() <= values.max() < known:
            raise ValueError(f"{name} points outside of {table}")
    for ends, cut in _CUTS.items():
        values = getattr(arrays, ends).astype(np.int64)
        last = int(values[-1]) if len(values) else 0
        if (np.diff(values, prepend=0) < 0).any() or last != len(getattr(arrays, cut)):
            raise ValueError(f"{ends} does not cut {cut}")
    lengths = np.diff(arrays.window_ends.astype(np.int64), prepend=0)
    shown = arrays.context >= 0
    at = arrays.context_at[shown]
    if ((at < 0) | (at >= lengths[arrays.context[shown]])).any():
        raise ValueError("context_at points outside of its window")


def _read(path: Path) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise ValueError(f"there is no file {path}; build it with `circuits features`.")
    try:
        with safe_open(path, framework="numpy") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return file.metadata() or {}, tensors
    except (SafetensorError, OSError) as error:
        # Only now: the length of a good header may itself start like a pickle.
        if pickled(path, unreadable=True):
            raise ValueError(
                f"{path} is a pickle, which can run code when it is read, so it is refused; "
                f"{_REMEDY}."
            ) from error
        raise ValueError(
            f"{path} is truncated or not a safetensors file ({error}); {_REMEDY}."
        ) from error
