"""Convert an exported folder to GGUF by llama.cpp's own converter, wherever it is on this machine. Imports no torch.

The converter knows each architecture and each tokenizer by name, and changes every week with llama.cpp: a copy of it
here would be wrong soon.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from manners.errors import MannersError
from manners.pipeline.model_ref import ModelRef

CONVERTER = "convert_hf_to_gguf.py"
OUTTYPES = ("f32", "f16", "bf16", "q8_0", "auto", "tq1_0", "tq2_0")  # others are made of these by llama-quantize
CLONE = "git clone --depth 1 https://github.com/ggml-org/llama.cpp"
PYTHONS = tuple(Path(env) / python for env in (".venv", "venv") for python in ("bin/python", "Scripts/python.exe"))


def find_converter() -> list[str]:
    """The command that runs the converter: in the folder ``LLAMA_CPP``, on the PATH, or in ``llama.cpp`` here.

    Raises MannersError where there is none, or the Python that would run it lacks what it needs.
    """
    if folder := os.environ.get("LLAMA_CPP"):
        script = Path(folder).expanduser() / CONVERTER
        if not script.is_file():
            raise MannersError(
                f"LLAMA_CPP={folder} has no {CONVERTER}: name llama.cpp's own folder, from {CLONE}", "LLAMA_CPP"
            )
        return [python_of(script), str(script)]
    if found := shutil.which(CONVERTER) or shutil.which("llama-convert-hf-to-gguf"):
        return [found]
    if (script := Path("llama.cpp") / CONVERTER).is_file():
        return [python_of(script), str(script)]
    raise MannersError(
        f"GGUF needs llama.cpp's converter, {CONVERTER}, which is not on the PATH. "
        f"Get it: {CLONE} && {requirements(Path('llama.cpp'))}"
    )


def python_of(script: Path) -> str:
    """The Python that runs the converter: that of its folder's virtual environment, or this one.

    Raises MannersError where neither has what the converter imports.
    """
    if own := next((script.parent / python for python in PYTHONS if (script.parent / python).exists()), None):
        return str(own)
    if importlib.util.find_spec("sentencepiece") is None:  # all else that it imports is in this environment
        raise MannersError(f"{script} needs Python packages of its own. Type: {requirements(script.parent)}")
    return sys.executable


def requirements(folder: Path) -> str:
    """The command that installs what the converter in ``folder`` imports, in an environment beside it."""
    file = folder / "requirements" / "requirements-convert_hf_to_gguf.txt"
    return f"python3 -m venv {folder}/.venv && {folder}/.venv/bin/pip install -r {file}"


def check_convertible(ref: ModelRef) -> None:
    """Raises MannersError for a run whose model llama.cpp cannot run, or Ollama not talk with."""
    assert ref.config is not None
    if ref.config.method.name == "reward":
        raise MannersError(f"{ref.name} is a reward model, which writes no replies: export it without GGUF.")
    if ref.config.model.name == "tiny":
        raise MannersError(
            f"{ref.name} is of model=tiny, whose tokenizer llama.cpp does not know: export it without GGUF."
        )


def convert(converter: list[str], folder: Path, outtype: str) -> Path:
    """Write ``folder``/NAME-``outtype``.gguf, of the model in ``folder``, and return its path.

    Raises MannersError with the converter's own last word where it fails; no part of the file stays.
    """
    name = f"{folder.resolve().name}-{outtype}.gguf"
    part = folder / f".part-{name}"
    command = [*converter, str(folder), "--outfile", str(part), "--outtype", outtype]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        if done.returncode or not part.exists():
            said = [line.strip() for line in (done.stderr + done.stdout).splitlines() if line.strip()]
            last = next((line for line in reversed(said) if "Error" in line), said[-1] if said else "nothing")
            raise MannersError(f"{folder} is written, but {converter[-1]} could not convert it. It says: {last}")
        part.rename(folder / name)
    except OSError as error:  # not executable, or of another system
        raise MannersError(f"{folder} is written, but {converter[-1]} cannot be run ({error.strerror}).") from error
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)
    return folder / name
