"""A folder written whole or not at all: made under another name beside it, then renamed."""

import os
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_folder(path: str | os.PathLike[str], files: Collection[str]) -> Iterator[Path]:
    """A folder that appears, or replaces the one there, only when the block has finished.

    `files` are the names that a folder of this kind holds; a folder that holds any other is
    someone's work and is refused before the block starts.
    """
    path = Path(path).expanduser().resolve()
    _check_ours(path, files)
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    new, old = scratch / "new", scratch / "old"
    try:
        new.mkdir()  # unlike the temporary folder around it, as open as the user's own
        yield new
        _check_ours(path, files)
        _swap(new, path, old)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _swap(new: Path, path: Path, old: Path) -> None:
    """Put `new` in the place of `path`, and what was there at `old`; or leave all as it was."""
    if not path.exists():
        os.replace(new, path)
        return
    os.replace(path, old)
    try:
        os.replace(new, path)
    except BaseException:
        os.replace(old, path)
        raise


def _check_ours(path: Path, files: Collection[str]) -> None:
    if path.exists() and not path.is_dir():
        raise ValueError(f"{path} is a file; name a folder.")
    others = sorted(set(os.listdir(path)) - set(files)) if path.is_dir() else []
    if others:
        raise ValueError(
            f"{path} holds other things ({', '.join(others[:3])}) and is not overwritten; "
            "name a new or an empty folder."
        )
