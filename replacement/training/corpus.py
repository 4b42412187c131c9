"""Corpora: what a host is run on, as chunks of token ids that can be found again.

A document is one line of a text file, one record of a JSONL file (its field "text"), one row of a
Hugging Face dataset, one item of an iterable, or one text sampled from the host. Documents longer
than the prompt length are cut into chunks.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from replacement.host import Host
from replacement.training.parallel import Ranks

Documents = Callable[[int], Iterator[Any]]  # the documents from a number on
_FILES = (".txt", ".jsonl")


class Chunks:
    """The corpus as chunks of token ids, over and over again."""

    def __init__(self, host: Host, documents: Documents, length: int) -> None:
        self.host, self.documents = host, documents
        self.length = min(length, host.context)
        self.document, self.chunk = 0, 0
        self._stream = self._walk()

    def place(self) -> dict[str, int]:
        """The number of the next document, and of the chunk in it."""
        return {"document": self.document, "chunk": self.chunk}

    def seek(self, place: Mapping[str, int]) -> None:
        """Go on from a place that was noted before."""
        self.document, self.chunk = place["document"], place["chunk"]
        self._stream = self._walk()

    def __next__(self) -> list[int]:
        return next(self._stream)

    def once(self) -> Iterator[list[int]]:
        """What is left of the corpus, up to its end."""
        for document in self.documents(self.document):
            for piece in self._cut(document)[self.chunk :]:
                self.chunk += 1
                yield piece
            self.document, self.chunk = self.document + 1, 0

    def _walk(self) -> Iterator[list[int]]:
        while True:
            fruitless = self.document == 0
            for piece in self.once():
                fruitless = False
                yield piece
            if fruitless:
                raise ValueError(
                    "the corpus holds no text, or ended and cannot be read again; give a file, a "
                    "list, or fewer steps."
                )
            self.document = 0

    def _cut(self, document: Any) -> list[list[int]]:
        if isinstance(document, Mapping):
            document = _text(document, "a record")
        if isinstance(document, str):
            ids: Any = self.host._encode(document) if document.strip() else []
        elif isinstance(document, Iterable):
            tolist = getattr(document, "tolist", None)  # tensors and arrays
            ids = list(document) if tolist is None else tolist()
        else:
            raise ValueError(
                f"a document is {type(document).__name__}; give texts or lists of token ids."
            )
        pieces = [ids[i : i + self.length] for i in range(0, len(ids), self.length)]
        return [self.host.tokenize(piece) for piece in pieces]


def open_corpus(corpus: Any, ranks: Ranks | None = None) -> Documents:
    """This rank's share of a corpus: every `world`-th document, from its own rank on."""
    items = _items(corpus)
    first, each = (ranks.rank, ranks.world) if ranks is not None else (0, 1)
    return lambda start: islice(items(), first + start * each, None, each)


def label(corpus: Any) -> str:
    """What a corpus is called in checkpoints and in what a saved dictionary says of itself."""
    if isinstance(corpus, Sequence) and not isinstance(corpus, str):
        named = bool(corpus) and all(map(_names_file, corpus))
        return ", ".join(map(str, corpus)) if named else f"{len(corpus)} documents"
    return str(corpus) if isinstance(corpus, str | Path) else type(corpus).__name__


def _items(corpus: Any) -> Callable[[], Iterator[Any]]:
    """A function that begins to read the corpus."""
    if isinstance(corpus, str) and not corpus.endswith(_FILES) and not Path(corpus).exists():
        return _hub(corpus)
    if isinstance(corpus, str | Path):
        return _files([corpus])
    if isinstance(corpus, Sequence) and corpus and all(map(_names_file, corpus)):
        return _files(corpus)
    if isinstance(corpus, Iterable):
        return lambda: iter(corpus)
    raise ValueError(
        f"a corpus cannot be {type(corpus).__name__}; give a path, texts, lists of token ids or "
        "SelfGenerated()."
    )


def _names_file(item: Any) -> bool:
    return isinstance(item, Path) or (isinstance(item, str) and item.endswith(_FILES))


def _files(names: Sequence[str | Path]) -> Callable[[], Iterator[Any]]:
    paths = [Path(name).expanduser() for name in names]
    for path in paths:
        if not path.is_file():
            raise ValueError(f"there is no corpus file {path}; give a text or a JSONL file.")
    return lambda: (document for path in paths for document in _lines(path))


def _lines(path: Path) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                yield (
                    _record(line, f"{path}, line {number}")
                    if path.suffix == ".jsonl"
                    else line.rstrip("\n")
                )
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text; convert it with iconv -t utf-8.") from error


def _record(line: str, where: str) -> str:
    if not line.strip():
        return ""
    try:
        return _text(json.loads(line), where)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where} is not JSON ({error.msg}); write one object a line.") from error


def _text(record: Any, where: str) -> str:
    text = record.get("text") if isinstance(record, Mapping) else None
    if not isinstance(text, str):
        raise ValueError(f'{where} has no field "text" that is a string; rename the field.')
    return text


def _hub(name: str) -> Callable[[], Iterator[Any]]:
    """A dataset from the Hugging Face hub, streamed."""
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ValueError(f"there is no corpus file {name}.")
    try:
        from datasets import load_dataset  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ValueError(
            f"there is no corpus file {name}, and to look for a dataset of that name on the "
            "Hugging Face hub: pip install datasets"
        ) from error
    try:
        rows: Any = load_dataset(name, split="train", streaming=True)
    except Exception as error:  # anything: a name, the network, the hub, the dataset's own code
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"{name} is no corpus file, and the Hugging Face hub did not yield it: {reason}"
        ) from error
    return lambda: iter(rows)
