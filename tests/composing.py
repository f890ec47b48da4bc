"""Compositions of the packaged configuration: each of its files is read once in a test run's process."""

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

from hydra import initialize_config_module
from hydra._internal import config_loader_impl as loader

from nncompress import config

Read = loader.CachingConfigRepository
PACKAGED = ("pkg://", "structured://")


class ReadOnce(Read):
    """Hydra's cache of the files of one composition, filled from what earlier ones read: half of the time is theirs."""

    files: ClassVar[dict[str, bytes]] = {}

    def load_config(self, config_path: str) -> Any:
        kept = self.files.get(config_path)
        if kept is None or not all(str(source.full_path()).startswith(PACKAGED) for source in self.get_sources()):
            found = super().load_config(config_path)
            if found is not None and str(found.path).startswith("pkg://"):
                self.files[config_path] = pickle.dumps(found)
            return found
        key = f"config_path={config_path}"
        if key not in self.cache:
            self.cache[key] = pickle.loads(kept)  # a copy: Hydra merges into it
        return self.cache[key]


@contextmanager
def composing() -> Iterator[None]:
    """Within it `hydra.compose` composes the packaged configuration."""
    config.register()
    with initialize_config_module("nncompress.conf", version_base="1.3"):
        yield
