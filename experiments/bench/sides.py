"""The sides as processes: how they are run, what they print, and where the numbers come from."""

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
FOLDER = Path("experiments/bench")  # of the scripts; relative, so that a command is recorded as it can be typed
LOGS = ROOT / "outputs" / "bench" / "logs"
NAMED = ("torch", "transformers", "trl", "peft", "accelerate", "lightning")  # whose versions are reported
ONE_THREAD = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}


class Failed(Exception):
    """A side that ended badly; its log says why."""


class Sides:
    """Runs commands one after the other. Of warm lines it keeps a process for each script, until ``close``."""

    def __init__(self, line: str, warm: bool):
        LOGS.mkdir(parents=True, exist_ok=True)
        self.log = (LOGS / f"{line}.log").open("w", encoding="utf-8")
        self.warm, self.servers = warm, {}

    def run(self, side: Side, seed: int) -> dict:
        """The JSON that the side prints, with its command and the machine's load when it began."""
        words = [*shlex.split(side.command), "--seed", str(seed)]
        command = shlex.join([side.python, str(FOLDER / words[0]), *words[1:]])
        load = os.getloadavg()[0]  # the machine may have other work, which costs all sides
        printed = self.forked(side.python, words) if self.warm else self.started(command)
        try:
            return {"command": command, "load": round(load, 2)} | json.loads(printed)
        except ValueError:
            raise self.failed(command) from None

    def started(self, command: str) -> str:
        """The last line that a process of the command's own prints."""
        done = subprocess.run(shlex.split(command), **self.settings(), stdout=subprocess.PIPE)
        return done.stdout.strip().rpartition("\n")[2] if done.returncode == 0 else ""

    def forked(self, python: str, words: list[str]) -> str:
        """The last line that a fork of the script's process prints."""
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
        # Without byte code every start would compile the libraries anew, which is no start that anyone else sees.
        kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        return {"cwd": ROOT, "env": kept | ONE_THREAD, "stderr": self.log, "text": True}

    def failed(self, command: str) -> Failed:
        return Failed(f"this failed, and {os.path.relpath(self.log.name, ROOT)} says why: {command}")

    def close(self) -> None:
        for server in self.servers.values():
            server.stdin.close()
            server.wait()
        self.log.close()


def prepare(commands: list[str], **places: object) -> None:
    """What a line needs before its sides can run: data, models, a peer's environment."""
    for command in commands:
        words = [word.format(**places) for word in shlex.split(command)]
        call = [OURS, str(FOLDER / words[0]), *words[1:]]
        done = subprocess.run(call, cwd=ROOT, env=os.environ | ONE_THREAD, capture_output=True, text=True)
        if done.returncode:
            raise Failed(f"this failed: {shlex.join(call)}\n{done.stderr}")


def machine() -> dict[str, object]:
    """Where the numbers come from, without the names of places."""
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
    """Versions in the environment of an interpreter; what it lacks is left out."""
    code = (
        "import json, sys; from importlib.metadata import distributions as d;"
        "print(json.dumps({n.name: n.version for n in d() if n.name in sys.argv[1:]}))"
    )
    asked = subprocess.run([python, "-c", code, *NAMED], cwd=ROOT, capture_output=True, text=True)
    return json.loads(asked.stdout) if asked.returncode == 0 else {}


def processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    named = next((line for line in lines if line.startswith("model name")), None)
    return named.split(":", 1)[1].strip() if named else platform.processor()


def commit() -> str:
    """The commit that was measured, marked where the package had changes that are not in it."""
    asked = [["git", "rev-parse", "--short", "HEAD"], ["git", "status", "--porcelain", "src"]]
    said = [subprocess.run(git, cwd=ROOT, capture_output=True, text=True).stdout.strip() for git in asked]
    return said[0] + (" with changes" if said[1] else "")
