"""Compositions of the packaged configuration: each of its files is read once in a test run's process."""

import copy
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

from hydra import initialize_config_module
from hydra._internal import config_loader_impl as loader

from nncompress.config.schema import register

Read = loader.CachingConfigRepository


class ReadOnce(Read):
    """Hydra's cache of the files of one composition, filled from what earlier ones read: half of the time is theirs."""

    files: ClassVar[dict[str, bytes]] = {}

    def __init__(self, delegate: Any) -> None:
        self.delegate, self.cache, self.packaged = delegate, {}, _packaged(delegate)

    def initialize_sources(self, config_search_path: Any) -> None:
        self.delegate = copy.deepcopy(self.delegate)
        super().initialize_sources(config_search_path)
        self.packaged = _packaged(self.delegate)

    def load_config(self, config_path: str) -> Any:
        if config_path in self.cache:
            return self.cache[config_path]
        if self.packaged and config_path in self.files:
            found = pickle.loads(self.files[config_path])  # a copy: Hydra merges into it
        else:
            found = self.delegate.load_config(config_path=config_path)
            if self.packaged and found is not None and found.path.startswith("pkg://"):
                self.files[config_path] = pickle.dumps(found)
        self.cache[config_path] = found
        return found


def _packaged(repository: Any) -> bool:
    """Whether there is no folder of one's own (hydra.searchpath) in which a file may change."""
    return all(source.full_path().startswith(("pkg://", "structured://")) for source in repository.get_sources())


@contextmanager
def composing() -> Iterator[None]:
    """Within it `hydra.compose` composes the packaged configuration."""
    register()
    with initialize_config_module("nncompress.conf", version_base="1.3"):
        yield
