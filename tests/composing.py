"""Many compositions one after the other: each YAML file is read once."""

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, ClassVar

import omegaconf.base
import pytest
from hydra import initialize_config_module
from hydra._internal import config_loader_impl as loader

from nncompress import config


class _Kept(loader.CachingConfigRepository):
    """Hydra's cache of the files of one composition, filled from what earlier ones read: half of the time is theirs."""

    files: ClassVar[dict[str, bytes]] = {}

    def __init__(self, delegate: Any) -> None:
        self.delegate, self.cache = delegate, {}

    def load_config(self, config_path: str) -> Any:
        if config_path not in self.cache:
            if config_path not in self.files:
                self.files[config_path] = pickle.dumps(self.delegate.load_config(config_path=config_path))
            self.cache[config_path] = pickle.loads(self.files[config_path])  # a copy: Hydra merges into it
        return self.cache[config_path]


_parsed = cache(omegaconf.base.parse)


@contextmanager
def files_read_once() -> Iterator[None]:
    """Within it Hydra keeps the packaged files that it has read; not for folders of one's own (hydra.searchpath)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loader, "CachingConfigRepository", _Kept)
        patch.setattr(omegaconf.base, "parse", _parsed)  # of ${...}
        yield


@contextmanager
def composing() -> Iterator[None]:
    """Within it `hydra.compose` composes the packaged configuration, its files read once."""
    config.register()
    with files_read_once(), initialize_config_module("nncompress.conf", version_base="1.3"):
        yield
