"""Where a saved dictionary is; a name that is none is answered with the nearest that is."""

import difflib
import os
from collections.abc import Sequence
from pathlib import Path

MARKER = "dictionary.json"
PICKLED = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle")


def located(folder: str | os.PathLike[str], bundled: Sequence[str] = ()) -> Path:
    """The folder as a path, once it is known to hold a saved dictionary.

    `bundled` are the names that could have been given instead, for the error.
    """
    path = Path(folder).expanduser()
    if (path / MARKER).is_file():
        return path
    if path.is_file():
        refuse_pickle(path)
        raise ValueError(f"{path} is a file; name the folder that holds {MARKER}.")
    if not path.is_dir():
        raise unknown(os.fspath(folder), bundled)
    for file in sorted(path.iterdir()):
        refuse_pickle(file)
    inside = ", ".join(sorted(p.parent.name for p in path.glob(f"*/{MARKER}")))
    remedy = f"did you mean one of those inside it: {inside}?" if inside else "save one there."
    raise ValueError(f"the folder {path} holds no {MARKER}; {remedy}")


def unknown(name: str, bundled: Sequence[str] = ()) -> ValueError:
    """The error for a name that is no dictionary: the nearest there is, and all that there are."""
    path = Path(name).expanduser()
    beside = {p.parent.name: str(p.parent) for p in sorted(path.parent.glob(f"*/{MARKER}"))}
    there = {name: name for name in bundled} | beside
    near = difflib.get_close_matches(path.name, there, n=1)
    listed = ", ".join(map(repr, there.values())) or "none"
    meant = f"did you mean {there[near[0]]!r}? " if near else ""
    return ValueError(f"there is no dictionary {name!r}; {meant}known here: {listed}.")


def pickled(path: Path, unreadable: bool = False) -> bool:
    """Whether a file is a pickle, by its name or, where it could not be read, by its start."""
    start = b""
    if unreadable and path.is_file():
        with path.open("rb") as file:
            start = file.read(2)
    return path.suffix in PICKLED or start == b"PK" or start[:1] == b"\x80"


def refuse_pickle(path: Path, unreadable: bool = False) -> None:
    """Refuse a pickle, and say how to have its arrays as a dictionary."""
    if pickled(path, unreadable):
        raise ValueError(
            f"{path} is a pickle, which can run code when it is read, so it is refused; where you "
            "trust it, read it with torch.load(..., weights_only=True), make a "
            "replacement.Dictionary of its arrays and save that with replacement.formats.save."
        )
