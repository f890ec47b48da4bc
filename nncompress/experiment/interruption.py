"""SIGINT, SIGTERM, SIGUSR1 and SIGUSR2: finish the step, keep everything, leave with 128 + the signal's number.

The second one leaves at once. The last two come from a cluster that needs the machine: whoever had a handler for the
signal, as submitit has to queue the job again, has the last word.

Not so under torchrun, which passes on a signal that its processes may have had already and ends them itself when they
take longer than half a minute.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

from nncompress import parallel

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
"""The signals that are remembered."""


class Interruption:
    """Remember the first signal in `code` (128 + its number; 0 before) instead of dying of it, while entered.

    In a group of one process the second one raises SystemExit(code) where it strikes. Outside the main thread nothing
    is caught.
    """

    def __init__(self) -> None:
        self.code = 0
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._catch) for number in SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if self.code and isinstance(error, Exception) and parallel.size() == 1:  # what failed is not to be tried again
            self.leave(self.code)

    def leave(self, code: int) -> None:
        """Do what the signal of this code had led to without us, once all is kept; that may be to go on.

        Raises:
            SystemExit: with `code`, where nobody had a handler for the signal.
        """
        self.code = 0
        handler = self._previous.get(signal.Signals(code - 128))
        if not callable(handler) or handler is signal.default_int_handler or parallel.size() > 1:
            raise SystemExit(code)
        handler(code - 128, None)

    def _catch(self, number: int, frame: FrameType | None) -> None:
        if self.code and parallel.size() == 1:
            raise SystemExit(self.code)
        self.code = 128 + number
