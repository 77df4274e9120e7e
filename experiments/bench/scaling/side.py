"""The sides of the sft line, which also report their memory above that of the imported libraries."""

import contextlib
import importlib.util
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import psutil

SFT = Path(__file__).resolve().parents[1] / "sft"


def sft_main(name: str) -> Callable[[], None]:
    """The ``main`` of sft/NAME.py, with ``above_start_mb`` added to its line of JSON."""
    sys.path.insert(0, str(SFT))  # for sft/task.py
    spec = importlib.util.spec_from_file_location(f"sft_{name}", SFT / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def main() -> None:
        before = psutil.Process().memory_info().rss / 2**20  # the imported libraries, no model yet
        with contextlib.redirect_stdout(io.StringIO()) as stdout:
            module.main()
        result = json.loads(stdout.getvalue().strip().rpartition("\n")[2])
        print(json.dumps(result | {"above_start_mb": round(result["peak_rss_mb"] - before)}))

    return main
