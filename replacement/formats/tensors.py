"""The tensors of a saved dictionary: checked on their way out, and again on their way in."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor

from replacement.formats.finding import refuse_pickle

# Name -> the shapes that this tensor may have.
Shapes: TypeAlias = dict[str, tuple[tuple[int, ...], ...]]
PRECISIONS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def write_tensors(tensors: Mapping[str, Tensor], path: Path, dtype: torch.dtype | None) -> None:
    """Write tensors as safetensors, the matrices in `dtype` where it is given."""
    from safetensors.torch import save

    if dtype is not None and dtype not in PRECISIONS:
        known = ", ".join(str(p).removeprefix("torch.") for p in PRECISIONS)
        raise ValueError(f"dtype={dtype} cannot be loaded again; use one of {known}.")
    written: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, tensor in tensors.items():
        # Vectors are a sliver of the file, and a threshold decides what is active: kept as is.
        out = tensor.detach().cpu()
        out = out.to(dtype) if dtype is not None and out.ndim == 2 else out
        if not bool(torch.isfinite(out).all()):
            raise ValueError(
                f"{name} does not fit {str(out.dtype).removeprefix('torch.')}, or holds NaN or "
                "infinite numbers; save it in bfloat16 or float32."
            )
        # A file holds no two tensors that share memory (a writer may well be the reader).
        shared = out.untyped_storage().data_ptr() in storages
        out = out.clone() if shared else out
        storages.add(out.untyped_storage().data_ptr())
        written[name] = out.contiguous()
    path.write_bytes(save(written, {"format": "pt"}))  # unlike save_file, as open as the folder


def read_tensors(path: Path, shapes: Shapes) -> dict[str, Tensor]:
    """Exactly the tensors named, each of a shape it may have; half precision as float32."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise ValueError(f"{path.parent} lacks {path.name}; save the dictionary again.")
    try:
        with safe_open(os.fspath(path), framework="pt") as file:
            names = set(file.keys())
            _check_names(path, names, set(shapes))
            return {name: _checked(path, name, file.get_tensor(name), shapes) for name in shapes}
    except (SafetensorError, OSError) as error:
        # Only now: the length of a good header may itself start like a pickle.
        refuse_pickle(path, unreadable=True)
        raise ValueError(f"{path} is truncated or not a safetensors file: {error}") from error


def _check_names(path: Path, found: set[str], wanted: set[str]) -> None:
    missing, strange = sorted(wanted - found), sorted(found - wanted)
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing[:3])}; save the dictionary again.")
    if strange:
        raise ValueError(
            f"{path} holds {', '.join(strange[:3])}, which its JSON does not mention; "
            "save the dictionary again."
        )


def _checked(path: Path, name: str, tensor: Tensor, shapes: Shapes) -> Tensor:
    if tuple(tensor.shape) not in shapes[name]:
        raise ValueError(
            f"{name} of {path} has shape {tuple(tensor.shape)}; its JSON says {shapes[name][0]}."
        )
    if tensor.dtype not in PRECISIONS:
        raise ValueError(f"{name} of {path} is {tensor.dtype}; save the dictionary as float32.")
    if not bool(torch.isfinite(tensor).all()):
        raise ValueError(f"{name} of {path} holds NaN or infinite numbers; export it again.")
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
