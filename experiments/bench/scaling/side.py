"""The sides of the sft line, with the memory that they take beyond their libraries."""

import contextlib
import importlib.util
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import psutil

SFT = Path(__file__).resolve().parents[1] / "sft"


def of(name: str) -> Callable[[], None]:
    """The ``main`` of sft/NAME.py, whose line of JSON gets ``above_start_mb``."""
    sys.path.insert(0, str(SFT))  # for what it shares with others there
    spec = importlib.util.spec_from_file_location(f"sft_{name}", SFT / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def main() -> None:
        before = psutil.Process().memory_info().rss / 2**20  # all that is imported, and no model
        with contextlib.redirect_stdout(io.StringIO()) as said:
            module.main()
        found = json.loads(said.getvalue().strip().rpartition("\n")[2])
        print(json.dumps(found | {"above_start_mb": round(found["peak_rss_mb"] - before)}))

    return main
