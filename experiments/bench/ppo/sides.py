"""The two sides as processes: their interpreters, their commands, and what they print."""

import json
import os
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import psutil

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
# Relative to ROOT, where every command runs: so each is recorded just as it can be typed.
FOLDER = Path("outputs/bench/ppo")
PEER_ENV = Path("outputs/bench/trl112")
PROMPTS = FOLDER / "prompts.jsonl"
MODEL = "src/manners/models/tiny"
SCRIPTS = Path("experiments/bench/ppo")
OWN_PYTHON = os.path.relpath(sys.executable, ROOT)
PEER_PYTHON = str(PEER_ENV / "bin" / "python")
NAMED = ("torch", "transformers", "peft", "accelerate")  # the libraries whose versions are reported


def prepare(torch_index: str) -> None:
    """The peer's environment if it is not there yet, and the prompts, always anew."""
    if not peer_versions():
        print(f"making the peer's environment, {PEER_ENV} (once; some minutes)", flush=True)
        requirements = SCRIPTS / "requirements.txt"
        lines = (ROOT / requirements).read_text(encoding="utf-8").splitlines()
        torch = next(line for line in lines if line.startswith("torch=="))
        call([OWN_PYTHON, "-m", "venv", str(PEER_ENV)])
        pip = [PEER_PYTHON, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile"]
        call([*pip, *(["--index-url", torch_index] if torch_index else []), torch])  # first, as the Makefile does
        call([*pip, "--requirement", str(requirements)])
    call([OWN_PYTHON, str(SCRIPTS / "task.py"), str(PROMPTS), "--model", MODEL])


def call(command: list[str]) -> None:
    subprocess.run(command, cwd=ROOT, check=True)


def peer_versions() -> dict[str, str]:
    """Versions in the peer's environment; empty where it is not there or not complete."""
    if not (ROOT / PEER_PYTHON).exists():
        return {}
    names = ("trl", *NAMED)
    code = f"import json; from importlib.metadata import version as v; print(json.dumps({{n: v(n) for n in {names}}}))"
    asked = subprocess.run([PEER_PYTHON, "-c", code], cwd=ROOT, capture_output=True, text=True)
    return json.loads(asked.stdout) if asked.returncode == 0 else {}


def command(side: str, iterations: int, seed: int, *options: str) -> list[str]:
    """What to type for a side, "ours" or "peer"."""
    python = OWN_PYTHON if side == "ours" else PEER_PYTHON
    task = ["--model", MODEL, "--prompts", str(PROMPTS), "--iterations", str(iterations), "--seed", str(seed)]
    return [python, str(SCRIPTS / f"{side}.py"), *task, *options]


def run(command: list[str]) -> dict:
    """The JSON that a side prints, with its command. What else it says goes to a log of the side's own."""
    log = ROOT / FOLDER / f"{Path(command[1]).stem}.log"
    load = os.getloadavg()[0]  # the machine may have other work, which costs both sides
    with log.open("a", encoding="utf-8") as errors:
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=errors, text=True)
    if done.returncode:
        sys.exit(f"this failed, and {os.path.relpath(log, ROOT)} says why: {' '.join(command)}")
    return {"command": " ".join(command), "load": round(load, 2)} | json.loads(done.stdout)


def machine() -> dict[str, object]:
    """Where the numbers come from, without the names of places."""
    return {
        "processor": processor(),
        "cores": psutil.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "commit": commit(),
        "ours": {name: version(name) for name in NAMED},
        "peer": peer_versions(),
    }


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


if __name__ == "__main__":  # what the other lines' run.py asks for
    prepare(sys.argv[1] if len(sys.argv) > 1 else "")
