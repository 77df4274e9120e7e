"""The peer's environment, if it is not there yet (``prepare.py [TORCH_INDEX]``), and the prompts, always anew."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
# Relative to ROOT, where every command runs: so each is recorded just as it can be typed.
HERE = Path("experiments/bench/ppo")
PEER_ENV = Path("outputs/bench/trl112")
PEER_PYTHON = str(PEER_ENV / "bin" / "python")
PROMPTS = Path("outputs/bench/ppo/prompts.jsonl")
MODEL = "src/manners/models/tiny"


def prepare(torch_index: str) -> None:
    if not complete():
        print(f"making the peer's environment, {PEER_ENV} (once; some minutes)", file=sys.stderr, flush=True)
        requirements = HERE / "requirements.txt"
        lines = (ROOT / requirements).read_text(encoding="utf-8").splitlines()
        torch = next(line for line in lines if line.startswith("torch=="))
        call([sys.executable, "-m", "venv", str(PEER_ENV)])
        pip = [PEER_PYTHON, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile"]
        call([*pip, *(["--index-url", torch_index] if torch_index else []), torch])  # first, as the Makefile does
        call([*pip, "--requirement", str(requirements)])
    call([sys.executable, str(HERE / "task.py"), str(PROMPTS), "--model", MODEL])


def complete() -> bool:
    if not (ROOT / PEER_PYTHON).exists():
        return False
    asked = [PEER_PYTHON, "-c", "from importlib.metadata import version; version('trl'), version('peft')"]
    return subprocess.run(asked, cwd=ROOT, capture_output=True).returncode == 0


def call(command: list[str]) -> None:
    subprocess.run(command, cwd=ROOT, check=True)


if __name__ == "__main__":
    prepare(sys.argv[1] if len(sys.argv) > 1 else "")
