"""Regenerate Atlas: `python -m replacement.atlas [--out FOLDER] [--world]`."""

import argparse
from pathlib import Path

from replacement.atlas import facts
from replacement.atlas.build import FOLDER, build

parser = argparse.ArgumentParser(description="Make Atlas anew: world, host and dictionaries.")
parser.add_argument("--out", type=Path, default=FOLDER, help="where; the package's own folder")
parser.add_argument(
    "--world", action="store_true", help="rebuild world.json too (needs the extra 'atlas')"
)
asked = parser.parse_args()
if asked.world:
    facts.write(facts.build())
build(asked.out)
