"""Signals that end a run at a whole step: saved, to go on later."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from jitkit.utils.console import warn

HEARD = ("SIGTERM", "SIGINT", "SIGUSR1")
EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: come again; free for a scheduler to requeue on


class Stop:
    """Whether a signal has asked the run to stop, and which.

    Attributes:
        name: of the signal, such as ``"SIGTERM"``; None while none has come.
    """

    def __init__(self) -> None:
        self.name: str | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """A signal is here: remember it; a second SIGINT stops at once."""
        name = signal.Signals(number).name
        if self.name is not None and name == "SIGINT":
            raise KeyboardInterrupt
        if self.name is None:
            self.name = name
            warn(f"{name}: saving after this step" + "; again to stop at once" * (name == "SIGINT"))


@contextmanager
def listening() -> Iterator[Stop]:
    """Hear the signals while the block runs; only the main thread can, another hears none."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    numbers = [getattr(signal, name) for name in HEARD if hasattr(signal, name)]
    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
