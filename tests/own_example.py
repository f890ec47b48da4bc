"""docs/your_own, a package outside this one, whose `my_parts` can be imported once this module is."""

import shutil
import sys
from pathlib import Path

from problems import ROOT

EXAMPLE = ROOT / "docs/your_own"
sys.path.insert(0, str(EXAMPLE))


def copied(folder: Path) -> Path:
    """The example without what was made in it."""
    unwanted = shutil.ignore_patterns("__pycache__", "outputs", "*.egg-info", "build")
    return Path(shutil.copytree(EXAMPLE, folder, ignore=unwanted))
