"""SIGTERM, which a cluster sends before it reclaims a node, and Ctrl-C.

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
pending_signals: list[int] = []  # received inside ``defer_signals``


class ShutdownRequested(BaseException):
    """A signal ended the run. No subclass of Exception: code that handles failures must not handle it."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.code = 128 + number


def handle_sigterm() -> None:
    """From now on SIGTERM raises ShutdownRequested, where Python would exit without cleaning up."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, raise_shutdown)


def raise_shutdown(number: int, _frame: Any) -> None:
    """Signal handler. Raises ShutdownRequested."""
    raise ShutdownRequested(number)


def record_signal(number: int, _frame: Any) -> None:
    """Signal handler that defers the first signal. Raises ShutdownRequested for the second."""
    if pending_signals:
        raise ShutdownRequested(number)
    pending_signals.append(number)


def install_handlers() -> None:
    """Install our handlers, again where a library has replaced them since."""
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            signal.signal(number, record_signal)


@contextmanager
def defer_signals() -> Iterator[None]:
    """Record signals for the loop to poll with ``shutdown_requested``; what it did not handle is raised at the end."""
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
    """Whether a signal has come inside ``defer_signals``."""
    return bool(pending_signals)


def raise_if_requested() -> None:
    """Raises ShutdownRequested where a signal was deferred."""
    if pending_signals:
        raise ShutdownRequested(pending_signals[0])
