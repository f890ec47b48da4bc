"""What Hydra calls before it writes anything, and how a line of a log is written."""

from __future__ import annotations

import logging
import re
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from nncompress.config.allow import require_no_user_info
from nncompress.errors import ConfigError, printable, without_user_info


class NoUserInfo(Callback):
    """Refuse a configuration with the user name or password of an address before it is kept in a folder.

    Hydra turns an Exception of a callback into a warning: SystemExit, whose cause is the ConfigError, gets past it.
    """

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Look at the configuration of a run."""
        _refuse(config)

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Look at the configuration of a sweep."""
        _refuse(config)


class PlainFormatter(logging.Formatter):
    """A formatter of lines that a terminal only shows, without user names and passwords of addresses."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as text; the ends of lines and tabs in it stay."""
        return re.sub(r"[^\n\t]+", lambda part: printable(part[0]), without_user_info(super().format(record)))


def _refuse(config: DictConfig) -> None:
    try:
        require_no_user_info(config)
    except ConfigError as error:
        raise SystemExit(error.exit_code) from error
