"""The wheel that is built: every file of code and configuration, and nothing else."""

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from problems import ROOT

pytestmark = pytest.mark.slow


def test_the_wheel_has_every_file_of_the_package_and_its_configuration(tmp_path: Path) -> None:
    pytest.importorskip("setuptools")
    source = tmp_path / "source"
    for folder in ("nncompress", "conf"):
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    elsewhere = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-dir"]
    names = [path.relative_to(source).as_posix() for path in source.glob("*/**/*") if path.is_file()]
    for package, folder in elsewhere.items():
        names = [re.sub(f"^{folder}/", f"{package.replace('.', '/')}/", name) for name in names]
    build = "import sys; from setuptools.build_meta import build_wheel; print(build_wheel(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", build, str(tmp_path)], cwd=source, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
        (points,) = (name for name in archive.namelist() if name.endswith("entry_points.txt"))
        assert b"nncompress = nncompress.cli.main:main" in archive.read(points)
    assert packed == {*names}
