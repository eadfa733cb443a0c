"""Ctrl-C and SIGTERM as a question, so that a run saves before it ends; asked twice, it ends at once."""

import os
import signal
import threading
from contextlib import suppress
from types import FrameType
from typing import Any, NoReturn

_SIGNALS = (signal.SIGINT, signal.SIGTERM)  # the second is what Slurm and Kubernetes send
_NOTICE = "\n{name}: the run saves and ends after what it is at; once more ends it at once\n"


class Stopped(Exception):
    """A run that has saved and left because it was asked to; the text says how far it came.

    Attributes:
      exit_code: 128 and the number of the signal.
    """

    def __init__(self, message: str, exit_code: int):
        super().__init__(message)
        self.exit_code = exit_code


class Interrupt:
    """Watches for SIGINT and SIGTERM in the body of a `with`.

    The first sets `requested`, and the body is to save and leave; the second raises KeyboardInterrupt with the exit
    code, as soon as Python runs (a program on the devices is not broken off). Handlers are as before afterwards.
    Signals that were ignored, as the shell has it for work in the background, stay so. Outside the main thread, where
    Python allows no handlers, nothing is watched.

    Attributes:
      quiet: whether a first signal is answered with no line on standard error.
    """

    def __init__(self, *, quiet: bool = False):
        self.quiet = quiet
        self._signal: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    @property
    def requested(self) -> bool:
        return self._signal is not None

    @property
    def exit_code(self) -> int:
        """130 after SIGINT, 143 after SIGTERM, as shells count; 0 if there was none."""
        return 0 if self._signal is None else 128 + self._signal

    def leave(self, message: str, exit_code: int = 0) -> NoReturn:
        """Ends the body, once what was asked for is done.

        Args:
          message: how far it came.
          exit_code: where another process was asked.
        """
        raise Stopped(message, exit_code or self.exit_code)

    def __enter__(self) -> "Interrupt":
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._heard)
        return self

    def __exit__(self, *_) -> None:
        while self._before:
            number, before = self._before.popitem()
            # None is a handler that is not Python's, which cannot be set from here.
            signal.signal(number, signal.SIG_DFL if before is None else before)

    def _heard(self, number: int, frame: FrameType | None) -> None:
        again = self.requested
        self._signal = signal.Signals(number)
        if again:
            raise KeyboardInterrupt(self.exit_code)
        if not self.quiet:
            # Past Python's buffers: the signal may have come amid a line that is being printed.
            with suppress(OSError):
                os.write(2, _NOTICE.format(name=self._signal.name).encode())
