"""One safetensors file per graph: arrays as tensors, the rest as JSON in the header.

A file is written whole or not at all: into a temporary file beside it, then renamed. Nothing is
ever pickled, and a file that is not one of ours is refused in one line.
"""

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import pandas as pd
from scipy import sparse

from graphs.graph import AttributionGraph, assemble

FORMAT, VERSION = "attribution-graph", "1"
_ROWS = ("targets", "sources", "values", "weights", "scale")
_NUMBERS = ("layer", "position", "feature", "activation")


@contextmanager
def whole_file(path: str | os.PathLike[str], mode: str = "w") -> Iterator[IO[Any]]:
    """A file that appears only when the block has finished; nothing is left if it does not."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, scratch = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        encoding, newline = (None, None) if "b" in mode else ("utf-8", "")
        with os.fdopen(handle, mode, encoding=encoding, newline=newline) as file:
            yield file
        mask = os.umask(0)  # a temporary file is its owner's alone; the finished one is not
        os.umask(mask)
        os.chmod(scratch, 0o666 & ~mask)
        os.replace(scratch, path)
    except BaseException:
        Path(scratch).unlink(missing_ok=True)
        raise


def save(graph: AttributionGraph, path: str | os.PathLike[str]) -> None:
    """Write a graph."""
    from safetensors.numpy import save as to_bytes

    tensors = {name: np.ascontiguousarray(getattr(graph, name)) for name in _ROWS}
    tensors |= {f"nodes.{name}": graph.nodes[name].to_numpy() for name in _NUMBERS}
    if sparse.issparse(graph.edges):
        csr = sparse.csr_array(graph.edges)
        tensors |= {"csr.data": csr.data, "csr.indices": csr.indices, "csr.indptr": csr.indptr}
    else:
        tensors["edges"] = np.ascontiguousarray(graph.edges)
    metadata = {
        "format": FORMAT,
        "version": VERSION,
        "settings": json.dumps(dict(graph.settings)),
        "kind": json.dumps(graph.nodes["kind"].tolist()),
        "token": json.dumps(graph.nodes["token"].tolist()),
        "label": json.dumps(graph.nodes["label"].tolist()),
    }
    # Not in the header, which may not grow beyond 100 MB.
    evidence = json.dumps(dict(graph.evidence)).encode()
    tensors["evidence"] = np.frombuffer(evidence, dtype=np.uint8)
    with whole_file(path, "wb") as file:
        file.write(to_bytes(tensors, metadata))


def load(path: str | os.PathLike[str]) -> AttributionGraph:
    """Read a graph that `AttributionGraph.save` wrote."""
    path = Path(path)
    metadata, tensors = _read(path)
    if metadata.get("format") != FORMAT:
        raise ValueError(f"{path} is not an attribution graph; trace one with `circuits trace`.")
    if metadata.get("version") != VERSION:
        raise ValueError(
            f"{path} has format version {metadata.get('version')} and this version reads "
            f"{VERSION}; trace it again, or use the version of the package that wrote it."
        )
    try:
        parts = _parts(metadata, tensors)
    except (KeyError, ValueError, IndexError) as error:
        raise ValueError(
            f"{path} is damaged, it lacks or garbles {error}; trace it again."
        ) from error
    return assemble(**parts)


def _parts(metadata: dict[str, str], tensors: dict[str, np.ndarray]) -> dict[str, Any]:
    """What `assemble` needs, from a file's contents."""
    blank = json.dumps([""] * len(tensors["nodes.layer"]))  # files from before there were labels
    nodes = pd.DataFrame(
        {
            "kind": np.array(json.loads(metadata["kind"]), dtype=object),
            **{name: tensors[f"nodes.{name}"] for name in _NUMBERS[:3]},
            "token": np.array(json.loads(metadata["token"]), dtype=object),
            "activation": tensors["nodes.activation"],
            "label": np.array(json.loads(metadata.get("label", blank)), dtype=object),
        }
    )
    rows = {name: tensors[name] for name in _ROWS}
    settings = json.loads(metadata["settings"])
    evidence = json.loads(bytes(tensors["evidence"])) if "evidence" in tensors else {}
    graph = {"nodes": nodes, "edges": _edges(tensors), "settings": settings, "evidence": evidence}
    return {**graph, **rows}


def _edges(tensors: dict[str, np.ndarray]) -> Any:
    if "edges" in tensors:
        return tensors["edges"]
    shape = (len(tensors["targets"]), len(tensors["sources"]))
    parts = (tensors["csr.data"], tensors["csr.indices"], tensors["csr.indptr"])
    return sparse.csr_array(parts, shape=shape)


def _read(path: Path) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise ValueError(f"there is no file {path}.")
    try:
        with safe_open(path, framework="numpy") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return file.metadata() or {}, tensors
    except (SafetensorError, OSError) as error:
        # Only now: the length of a good header may itself start like a pickle.
        with path.open("rb") as file:
            start = file.read(4)
        if start[:2] == b"PK" or start[:1] == b"\x80":
            raise ValueError(
                f"{path} is a pickle, which can run code when it is read, so it is refused; "
                "load it with the tool that wrote it and save its arrays as safetensors."
            ) from error
        raise ValueError(f"{path} is truncated or not a safetensors file: {error}") from error
