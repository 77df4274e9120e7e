"""The progress of a long loop: log lines without a terminal, a bar on one."""

import io
import logging

import pytest
from rich.console import Console

from manners.runtime import progress as progress_module
from manners.runtime.progress import LogLines, TerminalBar, format_numbers, progress


@pytest.fixture
def clock(monkeypatch):
    seconds = [0.0]
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: seconds[0])
    return seconds


def test_log_line_has_step_numbers_rate_elapsed_and_eta(caplog, clock):
    with caplog.at_level(logging.INFO, "manners"), progress(200, "training", completed=100) as bar:
        clock[0] = 40.0
        bar.update(120, loss=2.3456, tokens_per_second=5400.0)
    assert caplog.messages == [
        "training 120/200 (60%)  loss 2.346  5,400 tokens/s  0.5 steps/s  elapsed 0:00:40  ETA 0:02:40"
    ]


def test_log_lines_come_every_tenth_of_a_fast_loop(caplog, clock):
    with caplog.at_level(logging.INFO, "manners"), progress(1000, "training") as bar:
        for step in range(1, 1001):
            clock[0] += 0.01
            bar.update(step)
            bar.update(step)  # as for each microbatch of a step
    assert [m.split()[1] for m in caplog.messages] == [f"{step}/1000" for step in range(100, 1001, 100)]


def test_log_lines_come_every_30_seconds_of_a_slow_loop(caplog, clock):
    with caplog.at_level(logging.INFO, "manners"), progress(10_000, "training") as bar:
        for step in range(1, 11):
            clock[0] += 16.0
            bar.update(step)
    assert [m.split()[1] for m in caplog.messages] == [f"{step}/10000" for step in (2, 4, 6, 8, 10)]


def test_a_long_evaluation_between_two_steps_is_shown(caplog, clock):
    with caplog.at_level(logging.INFO, "manners"), progress(100, "training", completed=3) as bar:
        bar.update(5)
        for batch in range(1, 9):
            clock[0] += 10.0
            bar.update_evaluation(batch, 8)
    assert caplog.messages == [f"training 5/100  evaluating, batch {batch}/8" for batch in (3, 6)]


def test_log_lines_go_to_stderr_unless_logging_is_configured(capsys, monkeypatch):
    logger = logging.getLogger("manners")
    monkeypatch.setattr(logger, "handlers", [])
    monkeypatch.setattr(logger, "propagate", False)
    progress_module.log_info("a line")
    progress_module.log_info("another")  # by the one handler
    assert [line.partition("] ")[2] for line in capsys.readouterr().err.splitlines()] == ["a line", "another"]


def test_terminal_shows_a_bar_with_the_last_numbers(monkeypatch):
    terminal = Console(file=io.StringIO(), force_terminal=True, no_color=True, width=120, _environ={"TERM": "xterm"})
    monkeypatch.setattr(progress_module, "Console", lambda: terminal)
    with progress(20, "training", completed=5) as bar:
        assert isinstance(bar, TerminalBar)
        bar.update(10, loss=2.5)
        bar.update(20)
    assert "20/20 loss 2.5" in terminal.file.getvalue()


def test_disabled_progress_shows_nothing(caplog, capsys):
    with progress(20, "training", enabled=False) as bar:
        bar.update(20, loss=2.5)
    assert caplog.messages == [] and capsys.readouterr().out == ""
    assert isinstance(progress(20, "training"), LogLines)  # tests have no terminal


def test_rates_below_ten_keep_two_digits():
    assert format_numbers({"pairs_per_second": 0.4512, "loss": 2.0}) == ["0.45 pairs/s", "loss 2"]
    assert format_numbers({"tokens_per_second": 12345.6}) == ["12,346 tokens/s"]
