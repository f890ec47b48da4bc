"""`nncompress report`: the words of the command."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from nncompress.errors import ConfigError

USAGE = "nncompress report [--html] DIR..."
EXPLAINED = """
Rebuilds tables/ and plots/ of the folders of runs, and of sweeps with all their runs, from what is on disk. With --html
each of the folders gets report.html too: one page with all of it, which fetches nothing.
"""


def rebuild(arguments: Sequence[str]) -> int:
    """Rebuild the reports of the folders that the words name, and write what was written; the exit code.

    Raises:
        ConfigError: wrong usage, or a folder that holds no run.
    """
    if {"-h", "--help"} & set(arguments):
        sys.stdout.write(f"usage: {USAGE}\n{EXPLAINED}")
        return 0
    folders = [word for word in arguments if word != "--html"]
    flags = [word for word in folders if word.startswith("-")]
    if flags or not folders:
        found = f"found {flags[0]}" if flags else "found none"
        raise ConfigError(f"report needs one or more folders of runs or sweeps, {found}: {USAGE}")
    from nncompress.report import report
    from nncompress.reproduce.protocol import REPRODUCTION

    for folder in map(Path, folders):
        if (folder / REPRODUCTION).is_file():
            from nncompress.reproduce.report import write_reproduction

            paths = write_reproduction(folder)
        else:
            paths = report([folder], html="--html" in arguments)
        sys.stdout.writelines(f"{path}\n" for path in paths)
    return 0
