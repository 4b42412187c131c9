"""Regenerate Atlas: `python -m replacement.atlas [--out FOLDER] [--world] [--features]`."""

import argparse
from pathlib import Path

from replacement.atlas import facts
from replacement.atlas.build import FOLDER, build, build_evidence

parser = argparse.ArgumentParser(description="Make Atlas anew: world, host and dictionaries.")
parser.add_argument("--out", type=Path, default=FOLDER, help="where; the package's own folder")
parser.add_argument(
    "--world", action="store_true", help="rebuild world.json too (needs the extra 'atlas')"
)
parser.add_argument(
    "--features", action="store_true", help="only the evidence of the dictionaries that are there"
)
asked = parser.parse_args()
if asked.world:
    facts.write(facts.build())
if asked.features:
    build_evidence(asked.out)
else:
    build(asked.out)
