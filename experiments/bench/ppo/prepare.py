"""Create the peer's environment if it does not exist (``prepare.py [TORCH_INDEX]``), and write the prompts."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
# Relative to ROOT, where every command runs, so that recorded commands can be typed as they are.
HERE = Path("experiments/bench/ppo")
PEER_ENV = Path("outputs/bench/trl112")
PEER_PYTHON = str(PEER_ENV / "bin" / "python")
PROMPTS = {  # model: its prompts
    "src/manners/models/tiny": "outputs/bench/ppo/prompts.jsonl",
    "outputs/bench/smollm2-135m": "outputs/bench/ppo/prompts-135m.jsonl",  # if ../smollm.py could write it
}


def prepare(torch_index: str) -> None:
    if not complete():
        print(
            f"creating the environment of the peer, {PEER_ENV} (once; takes a few minutes)", file=sys.stderr, flush=True
        )
        requirements = HERE / "requirements.txt"
        lines = (ROOT / requirements).read_text(encoding="utf-8").splitlines()
        torch = next(line for line in lines if line.startswith("torch=="))
        call([sys.executable, "-m", "venv", str(PEER_ENV)])
        pip = [PEER_PYTHON, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile"]
        call([*pip, *(["--index-url", torch_index] if torch_index else []), torch])  # first, as the Makefile does
        call([*pip, "--requirement", str(requirements)])
    for model, prompts in PROMPTS.items():
        if (ROOT / model).exists():
            call([sys.executable, str(HERE / "task.py"), prompts, "--model", model])


def complete() -> bool:
    if not (ROOT / PEER_PYTHON).exists():
        return False
    command = [PEER_PYTHON, "-c", "from importlib.metadata import version; version('trl'), version('peft')"]
    return subprocess.run(command, cwd=ROOT, capture_output=True).returncode == 0


def call(command: list[str]) -> None:
    subprocess.run(command, cwd=ROOT, check=True)


if __name__ == "__main__":
    prepare(sys.argv[1] if len(sys.argv) > 1 else "")
