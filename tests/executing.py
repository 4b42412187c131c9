"""The notebooks as a reader runs them, and what of their outputs is kept.

`python tests/executing.py notebooks/01_dallas_texas_austin.ipynb` renews the outputs in the file.
"""

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[1]
CELL_SECONDS = 300


def read(path: Path) -> Any:
    return nbformat.read(path, as_version=4)


def executed(path: Path, **environment: str) -> Any:
    """The notebook with fresh outputs, run by this interpreter in an empty folder."""
    notebook = read(path)
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    known = {**os.environ, "PYTHONPATH": paths, "HF_HUB_OFFLINE": "1", **environment}
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(
            notebook,
            kernel_name="python3",
            timeout=CELL_SECONDS,
            resources={"metadata": {"path": folder}},
            record_timing=False,
        )
        # Of that name there may be a kernel of another interpreter.
        client.create_kernel_manager().kernel_spec.argv[0] = sys.executable
        client.execute(env=known)
    return notebook


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def kept(notebook: Any) -> Any:
    """One stream a cell, and nothing of the machine: no warnings, no interpreter's version."""
    for cell in code_cells(notebook):
        outputs: list[Any] = []
        for output in cell.outputs:
            if output.get("name") == "stderr":
                continue
            if outputs and output.get("name") == "stdout" == outputs[-1].get("name"):
                outputs[-1].text += output.text
            else:
                outputs.append(output)
        cell.outputs = outputs
    notebook.metadata.language_info = {"name": "python"}
    return notebook


def main() -> None:
    for name in sys.argv[1:]:
        notebook = kept(executed(Path(name)))
        nbformat.validate(notebook)
        nbformat.write(notebook, name)


if __name__ == "__main__":
    main()
