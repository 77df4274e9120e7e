"""The command line starts without what Windows lacks: modules such as fcntl, and names of `os` and `signal`."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from manners.runtime import paths

MODULES = ("fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "readline", "syslog", "curses")
OF_OS = """fork forkpty kill killpg setsid getpgid getuid geteuid getloadavg statvfs sched_getaffinity mkfifo uname
chown sysconf WNOHANG pread O_NOFOLLOW O_DIRECTORY"""
OF_SIGNAL = "SIGKILL SIGHUP SIGQUIT SIGALRM SIGUSR1 SIGUSR2 SIGCHLD SIGSTOP SIGCONT alarm"
NAMES = {"os": OF_OS.split(), "signal": OF_SIGNAL.split()}
BLOCKED = f"""
import os, runpy, signal, sys
sys.modules.update(dict.fromkeys({MODULES}))
import multiprocessing.util, subprocess, threading  # of Python's own, which has other code for Windows
for name in {NAMES["signal"]}:
    delattr(signal, name)
"""


def blocked(code, *args):
    """A process in which importing a module of POSIX fails, as on Windows."""
    command = [sys.executable, "-c", BLOCKED + code, *args]
    return subprocess.run(command, cwd=paths.ROOT, capture_output=True, text=True)


def test_package_imports_without_posix_modules():
    process = blocked(
        "import manners, manners.cli.main, manners.cli.help, manners.pipeline.dependencies; print('done')"
    )
    assert process.stdout == "done\n", process.stderr
    assert "ModuleNotFoundError" in blocked("import resource").stderr  # or else nothing is blocked


@pytest.mark.parametrize("script", ["train", "evaluate", "chat"])
def test_help_is_printed_without_posix_modules(script):
    process = blocked(f"sys.argv = ['{script}.py', '--help']; runpy.run_path('{script}.py', run_name='__main__')")
    assert process.returncode == 0 and f"python {script}.py" in process.stdout, process.stderr


def test_mistake_is_answered_without_posix_modules():
    code = "sys.argv = ['train.py', 'method.learning_rat=3']; runpy.run_path('train.py', run_name='__main__')"
    assert "Did you mean 'method.learning_rate'?" in blocked(code).stderr


def posix_uses(source):
    """The POSIX modules that are imported where a module begins, and the names of `os` and `signal` used anywhere."""
    tree = ast.parse(source)
    uses = set()
    for node in tree.body:
        if isinstance(node, ast.Import):
            uses |= {alias.name for alias in node.names} & set(MODULES)
        if isinstance(node, ast.ImportFrom):
            uses |= {str(node.module)} & set(MODULES)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            uses |= {f"{node.value.id}.{node.attr}"} if node.attr in NAMES.get(node.value.id, ()) else set()
    return uses


def test_no_module_uses_posix_alone():
    assert posix_uses("import fcntl\nfrom pwd import x\ndef f():\n import grp\n os.fork()\n signal.SIGTERM") == {
        *("fcntl", "pwd", "os.fork"),
    }
    files = [*Path(paths.ROOT).glob("*.py"), *(paths.ROOT / "src").rglob("*.py")]
    assert len(files) > 100
    assert {file.name: uses for file in files if (uses := posix_uses(file.read_text()))} == {}
