"""SIGTERM, as a cluster sends before it takes its node back, and Ctrl-C.

Training saves a checkpoint first: inside ``defer_signals`` a signal is only recorded, and the training loop raises
``ShutdownRequested`` once its checkpoint is written. Elsewhere a signal ends the command at once, and so does a second
one. Either way the exit code is the shell's, 143 or 130, and the same command resumes.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT)
pending_signals: list[int] = []  # what came within ``later``


class ShutdownRequested(BaseException):
    """No Exception: whoever deals with failures must not take it for one."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.code = 128 + number


def handle_sigterm() -> None:
    """From now on SIGTERM raises Stopped, where Python would end without tidying up."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, raise_shutdown)


def raise_shutdown(number: int, _frame: Any) -> None:
    raise ShutdownRequested(number)


def record_signal(number: int, _frame: Any) -> None:
    if pending_signals:
        raise ShutdownRequested(number)
    pending_signals.append(number)


def install_handlers() -> None:
    """Take the signals, again where a library has taken them meanwhile."""
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            signal.signal(number, record_signal)


@contextmanager
def defer_signals() -> Iterator[None]:
    """Record signals for the loop to poll with ``shutdown_requested``; raise at the end where the loop did not."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    install_handlers()
    try:
        yield
        raise_if_requested()
    finally:
        pending_signals.clear()
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, handler)


def shutdown_requested() -> bool:
    return bool(pending_signals)


def raise_if_requested() -> None:
    if pending_signals:
        raise ShutdownRequested(pending_signals[0])
