"""Labels by users: a CSV table or a JSON object, told apart by the file's ending.

layer,feature,label                 {
2,472,Texas                            "L2/F472": "Texas"
                                    }
"""

import csv
import io
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Place = tuple[int, int]  # layer and feature
_COLUMNS = ("layer", "feature", "label")
_PLACE = re.compile(r"L(\d+)/F(\d+)")


def place(text: str) -> Place:
    """The layer and feature that "L2/F472" names."""
    found = _PLACE.fullmatch(text.strip())
    if found is None:
        raise ValueError(f"{text!r} names no feature; write it as L2/F472.")
    return int(found[1]), int(found[2])


def read_labels(path: str | os.PathLike[str]) -> dict[Place, str]:
    """Labels by layer and feature, from a CSV file with a heading or from a JSON file."""
    path = Path(path).expanduser()
    if not path.is_file():
        raise ValueError(f"there is no file of labels {path}; give a CSV or a JSON file.")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text; convert it with iconv -t utf-8.") from error
    labels: dict[Place, str] = {}
    rows = _json(text, path) if path.suffix == ".json" else _csv(text, path)
    for line, where, label in rows:
        if not isinstance(label, str) or not label.strip():
            raise ValueError(f"{path}, line {line}: the label of {_said(where)} is no text.")
        if where in labels:
            raise ValueError(f"{path}, line {line}: {_said(where)} has a label already.")
        labels[where] = label.strip()
    return labels


def _said(where: Place) -> str:
    return f"L{where[0]}/F{where[1]}"


def _csv(text: str, path: Path) -> Iterator[tuple[int, Place, Any]]:
    rows = csv.DictReader(io.StringIO(text, newline=""))
    missing = [name for name in _COLUMNS if name not in (rows.fieldnames or ())]
    if missing:
        raise ValueError(
            f"{path}, line 1: there is no column {missing[0]!r}; the heading must be "
            f"{','.join(_COLUMNS)}."
        )
    for row in rows:
        numbers = row["layer"], row["feature"]
        if not all(n is not None and re.fullmatch(r"\d+", n.strip()) for n in numbers):
            raise ValueError(
                f"{path}, line {rows.line_num}: layer {numbers[0]!r} and feature {numbers[1]!r} "
                "must be whole numbers from 0 on."
            )
        yield rows.line_num, (int(numbers[0]), int(numbers[1])), row["label"]


def _json(text: str, path: Path) -> Iterator[tuple[int, Place, Any]]:
    try:
        pairs = json.loads(text, object_pairs_hook=list)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path}, line {error.lineno}: it is not JSON ({error.msg}); write one object of "
            "labels."
        ) from error
    if not isinstance(pairs, list) or not all(isinstance(pair, tuple) for pair in pairs):
        raise ValueError(f'{path}, line 1: it is no object; write {{"L2/F472": "Texas"}}.')
    end = 0
    for name, label in pairs:
        end = text.find(json.dumps(name, ensure_ascii=False), end) + 1 or end
        line = text.count("\n", 0, end) + 1
        try:
            where = place(name)
        except ValueError as error:
            raise ValueError(f"{path}, line {line}: {error}") from error
        yield line, where, label
