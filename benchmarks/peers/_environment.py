"""The peer's own virtual environment: its transformers and transformer-lens are older than ours."""

import os
import subprocess
import sys
from pathlib import Path

import torch

PEER = "0.5.0"
TORCH = torch.__version__.split("+")[0]  # the same torch for both; the build is the index's choice
PACKAGES = (
    f"circuit-tracer=={PEER}",
    f"torch=={TORCH}",
    "transformers==4.57.3",
    "transformer-lens==3.2.1",
)
PROBE = (
    "from importlib.metadata import version as v;"
    "print(v('circuit-tracer'), v('torch').split('+')[0], v('transformers'), v('transformer-lens'))"
)


def default_folder() -> Path:
    """Where the environment is kept when --venv names no other place."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "circuits" / f"peer-circuit-tracer-{PEER}-torch-{TORCH}"


def ensure(folder: Path) -> Path:
    """The environment's python: made on first use, checked and reused afterwards."""
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not python.exists():
        print(f"making the peer's environment in {folder}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    if _versions(python) is None:
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *PACKAGES], check=True)
    found = _versions(python)
    wanted = [package.split("==")[1] for package in PACKAGES]
    if found is None or found[:2] != wanted[:2]:
        raise SystemExit(
            f"{folder} holds circuit-tracer and torch {found}, this benchmark wants {wanted[:2]}; "
            "delete the folder or name another with --venv."
        )
    return python


def _versions(python: Path) -> list[str] | None:
    """Versions of PACKAGES in that environment, None where one is missing."""
    probe = subprocess.run([str(python), "-I", "-c", PROBE], capture_output=True, text=True)
    return probe.stdout.split() if probe.returncode == 0 else None
