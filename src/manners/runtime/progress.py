"""Progress of a long loop: a bar on a terminal; one log line now and then under nohup, SLURM or CI.

    with progress(total_steps, "training", completed=resumed_step) as bar:
        bar.update(step, loss=2.31, tokens_per_second=5400)

The log lines go to the logger "manners" at level INFO, which writes to stderr unless logging is configured already
(as Hydra does for a sweep).
"""

import logging
import time
from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

LOG_FRACTION, LOG_SECONDS = 0.1, 30.0  # a log line is due after so much of the loop, or so much time

logger = logging.getLogger("manners")


def log_info(message: str) -> None:
    """Log one line at level INFO."""
    if not logger.hasHandlers():
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("[%(asctime)s] %(message)s", "%Y-%m-%d %H:%M:%S"))
        logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.info(message)


class LogLines:
    """Writes a log line every ``LOG_FRACTION`` of the loop or ``LOG_SECONDS``, whichever comes first."""

    def __init__(self, total: int, description: str, completed: int):
        self.total, self.description, self.first = total, description, completed
        self.completed = self.logged = completed
        self.logged_at = time.monotonic()
        self.started_at = self.logged_at

    def __enter__(self) -> "LogLines":
        return self

    def __exit__(self, *_: object) -> None: ...

    def update(self, completed: int, **numbers: float) -> None:
        """Report how many steps are completed, and the latest numbers."""
        self.completed, now, steps = completed, time.monotonic(), completed - self.logged
        last = completed >= self.total
        if steps and (last or steps >= LOG_FRACTION * self.total or now - self.logged_at >= LOG_SECONDS):
            log_info(self.line(completed, now - self.started_at, numbers))
            self.logged, self.logged_at = completed, now

    def update_evaluation(self, completed: int, total: int) -> None:
        """Report how many of the ``total`` batches of an evaluation between two steps are completed."""
        now = time.monotonic()
        if now - self.logged_at >= LOG_SECONDS:
            log_info(f"{self.description} {self.completed}/{self.total}  evaluating, batch {completed}/{total}")
            self.logged_at = now

    def line(self, completed: int, seconds: float, numbers: dict[str, float]) -> str:
        """The log line: progress, numbers, speed, elapsed and remaining time."""
        rate = (completed - self.first) / max(seconds, 1e-9)
        parts = [
            f"{self.description} {completed}/{self.total} ({completed / self.total:.0%})",
            *format_numbers(numbers),
            f"{rate:.3g} steps/s",
            f"elapsed {timedelta(seconds=round(seconds))}",
            f"ETA {timedelta(seconds=round((self.total - completed) / rate))}",
        ]
        return "  ".join(parts)


class TerminalBar:
    """Rich's progress bar with the latest numbers, elapsed and remaining time."""

    def __init__(self, total: int, description: str, completed: int, console: Console, enabled: bool):
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            console=console,
            disable=not enabled,
        )
        self.task = self.bar.add_task(description, total=total, completed=completed, numbers="")

    def __enter__(self) -> "TerminalBar":
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def update(self, completed: int, **numbers: float) -> None:
        """Report how many steps are completed, and the latest numbers."""
        fields: dict[str, Any] = {"numbers": "  ".join(format_numbers(numbers))} if numbers else {}
        self.bar.update(self.task, completed=completed, **fields)

    def update_evaluation(self, completed: int, total: int) -> None:
        """Report how many of the ``total`` batches of an evaluation between two steps are completed."""
        self.bar.update(self.task, numbers=f"evaluating, batch {completed}/{total}")


def progress(total: int, description: str, completed: int = 0, enabled: bool = True) -> LogLines | TerminalBar:
    """The progress of a loop of ``total`` steps, ``completed`` of which an earlier run has done.

    It is a context manager; ``update(completed, loss=...)`` tells it how far the loop is. With ``enabled`` false, as
    in all processes but the first, it shows nothing.
    """
    console = Console()
    if not enabled or (console.is_terminal and not console.is_dumb_terminal):
        return TerminalBar(total, description, completed, console, enabled)
    return LogLines(total, description, completed)


def format_numbers(numbers: dict[str, float]) -> list[str]:
    """The numbers as a log line or bar shows them."""
    shown = []
    for name, value in numbers.items():
        if name.endswith("_per_second"):
            rate = f"{value:,.0f}" if value >= 10 else f"{value:.2g}"  # such as half a pair
            shown.append(f"{rate} {name.replace('_per_second', '/s')}")
        else:
            shown.append(f"{name} {value:.4g}")
    return shown
