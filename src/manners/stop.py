"""Being told to stop: by SIGTERM, as a cluster does that wants its node back, or by Ctrl-C.

Training saves itself first: within ``later`` a signal is only noted, and the loop raises ``Stopped`` as soon as its
weights are whole and written. Elsewhere a signal ends the command at once, and so does a second one. Either way the
exit code is the one that shells know, 143 or 130, and the same command goes on.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT)
noted: list[int] = []  # what came within ``later``


class Stopped(BaseException):
    """No Exception: whoever deals with failures must not take it for one."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.code = 128 + number


def listen() -> None:
    """From now on SIGTERM raises Stopped, where Python would end without tidying up."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, end)


def end(number: int, _frame: Any) -> None:
    raise Stopped(number)


def note(number: int, _frame: Any) -> None:
    if noted:
        raise Stopped(number)
    noted.append(number)


def hold() -> None:
    """Take the signals, again where a library has taken them meanwhile."""
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            signal.signal(number, note)


@contextmanager
def later() -> Iterator[None]:
    """Within, a signal is noted, for the loop to ask ``asked`` when it can save; it raises when the loop does not."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    hold()
    try:
        yield
        stop_if_asked()
    finally:
        noted.clear()
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, handler)


def asked() -> bool:
    return bool(noted)


def stop_if_asked() -> None:
    if noted:
        raise Stopped(noted[0])
