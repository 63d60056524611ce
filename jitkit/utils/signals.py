"""Signals that stop a run after a complete step; the run is saved and can be resumed."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from jitkit.utils.console import warn

SIGNALS = ("SIGTERM", "SIGINT", "SIGUSR1")
EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h; a scheduler may requeue the job on this code


class Stop:
    """Signal handler that records a request to stop.

    Attributes:
        name: name of the signal received, such as ``"SIGTERM"``; None if there was none.
    """

    def __init__(self) -> None:
        self.name: str | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Record the first signal; a second SIGINT interrupts at once."""
        name = signal.Signals(number).name
        if self.name is not None and name == "SIGINT":
            raise KeyboardInterrupt
        if self.name is None:
            self.name = name
            warn(f"{name}: saving after this step" + "; again to stop at once" * (name == "SIGINT"))


@contextmanager
def catch_signals() -> Iterator[Stop]:
    """Handle the signals while the block runs; has no effect outside the main thread."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    numbers = [getattr(signal, name) for name in SIGNALS if hasattr(signal, name)]
    previous = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
