"""What is installed: every folder of code and configuration, and the command."""

import importlib.metadata
import tomllib

from problems import ROOT

from nncompress.cli.main import main


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def folders(top: str, pattern: str, package: str) -> set[str]:
    found = {path.parent.relative_to(ROOT / top) for path in (ROOT / top).rglob(pattern)}
    return {".".join([package, *folder.parts]) for folder in found}


def test_every_folder_of_code_and_configuration_is_packaged() -> None:
    on_disk = folders("conf", "*.yaml", "nncompress.conf")
    on_disk |= folders("nncompress", "*.py", "nncompress") | folders("nncompress", "*.yaml", "nncompress")
    setup = project()["tool"]["setuptools"]
    elsewhere = {path.replace("/", "."): name for name, path in setup["package-dir"].items()}
    assert set(setup["packages"]) == {elsewhere.get(name, name) for name in on_disk}


def test_every_file_of_a_package_is_of_a_kind_that_is_packaged() -> None:
    files = [path for top in ("nncompress", "conf") for path in (ROOT / top).rglob("*") if path.is_file()]
    kinds = {path.suffix for path in files if "__pycache__" not in path.parts}
    assert kinds <= {".py", ".yaml", ".csv", ".typed"}


def test_the_console_command_is_installed() -> None:
    (command,) = importlib.metadata.entry_points(group="console_scripts", name="nncompress")
    assert command.load() is main


def test_the_version_is_the_same_everywhere() -> None:
    from nncompress import __version__

    assert project()["project"]["version"] == __version__
