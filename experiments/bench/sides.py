"""Runs the sides as processes, reads what they print, and records the machine and the versions."""

import json
import os
import platform
import shlex
import subprocess
from functools import cache
from pathlib import Path

import psutil
from lines import OURS, Side

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
FOLDER = Path("experiments/bench")  # of the scripts; relative, so that recorded commands can be typed as they are
LOGS = ROOT / "outputs" / "bench" / "logs"
PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "lightning")  # whose versions are recorded
ONE_THREAD = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}


class SideError(Exception):
    """A side or a preparation that failed."""


class SideRunner:
    """Runs commands one after the other. For warm lines it keeps one process per script, until ``close``."""

    def __init__(self, line: str, warm: bool):
        LOGS.mkdir(parents=True, exist_ok=True)
        self.log = (LOGS / f"{line}.log").open("w", encoding="utf-8")
        self.warm, self.servers = warm, {}  # servers: (python, script) → process of warm.py

    def run(self, side: Side, seed: int) -> dict:
        """The JSON that the side prints, with its command and the load average when it started. Raises SideError."""
        words = [*shlex.split(side.command), "--seed", str(seed)]
        command = shlex.join([side.python, str(FOLDER / words[0]), *words[1:]])
        load = os.getloadavg()[0]  # other work on the machine slows all sides
        output = self.run_forked(side.python, words) if self.warm else self.run_process(command)
        try:
            return {"command": command, "load": round(load, 2)} | json.loads(output)
        except ValueError:
            log = os.path.relpath(self.log.name, ROOT)
            raise SideError(f"this command failed (see {log}): {command}") from None

    def run_process(self, command: str) -> str:
        """The last line that the command prints, in a new process; empty if it fails."""
        done = subprocess.run(shlex.split(command), **self.settings(), stdout=subprocess.PIPE)
        return done.stdout.strip().rpartition("\n")[2] if done.returncode == 0 else ""

    def run_forked(self, python: str, words: list[str]) -> str:
        """The last line that the script prints, in a fork of its warm process; empty if it fails."""
        if (python, words[0]) not in self.servers:
            server = [python, str(FOLDER / "warm.py"), str(FOLDER / words[0])]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "bufsize": 1}
            self.servers[python, words[0]] = subprocess.Popen(server, **self.settings(), **pipes)
        server = self.servers[python, words[0]]
        server.stdin.write(json.dumps(words[1:]) + "\n")
        last = ""
        for line in server.stdout:
            if line.startswith('{"exit"'):
                return last if json.loads(line)["exit"] == 0 else ""
            last = line
        return ""

    def settings(self) -> dict:
        # Without bytecode caches every process would compile all libraries, which is not what users see.
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        return {"cwd": ROOT, "env": environment | ONE_THREAD, "stderr": self.log, "text": True}

    def close(self) -> None:
        for server in self.servers.values():
            server.stdin.close()
            server.wait()
        self.log.close()


def prepare(commands: list[str], **places: object) -> None:
    """Make what a line needs before its sides can run: data, models, a peer's environment. Raises SideError."""
    for command in commands:
        words = [word.format(**places) for word in shlex.split(command)]
        call = [OURS, str(FOLDER / words[0]), *words[1:]]
        done = subprocess.run(call, cwd=ROOT, env=os.environ | ONE_THREAD, capture_output=True, text=True)
        if done.returncode:
            raise SideError(f"this command failed: {shlex.join(call)}\n{done.stderr}")


def machine() -> dict[str, object]:
    """Hardware, system and commit, without host names or paths."""
    return {
        "processor": processor(),
        "cores": psutil.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "commit": commit(),
    }


@cache
def versions(python: str) -> dict[str, str]:
    """Versions of PACKAGES in the environment of an interpreter; missing ones are left out."""
    code = (
        "import json, sys; from importlib.metadata import distributions as d;"
        "print(json.dumps({n.name: n.version for n in d() if n.name in sys.argv[1:]}))"
    )
    result = subprocess.run([python, "-c", code, *PACKAGES], cwd=ROOT, capture_output=True, text=True)
    return json.loads(result.stdout) if result.returncode == 0 else {}


def processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    model = next((line for line in lines if line.startswith("model name")), None)
    return model.split(":", 1)[1].strip() if model else platform.processor()


def commit() -> str:
    """The commit that is measured, with a note if the package has uncommitted changes."""
    commands = [["git", "rev-parse", "--short", "HEAD"], ["git", "status", "--porcelain", "src"]]
    head, changes = (subprocess.run(c, cwd=ROOT, capture_output=True, text=True).stdout.strip() for c in commands)
    return head + (" with changes" if changes else "")
