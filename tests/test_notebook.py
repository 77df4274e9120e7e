"""experiments/notebook.ipynb: all of its cells run, in order, in a process of their own."""

import json
import os
import subprocess
import sys

import pytest

from manners.runtime.paths import ROOT

NOTEBOOK = ROOT / "experiments" / "notebook.ipynb"
OUTPUTS = 'OUT = ROOT / "outputs"'
CHECKS = """

assert len(before) == len(after) == len(prompts) and [r.text for r in before] != [r.text for r in after]
assert latest["metrics.after/loss"] < latest["metrics.before/loss"] - 1
assert sorted(line.get_label() for line in axes.lines) == ["eval/loss", "train/loss"]
assert all(len(line.get_xdata()) >= 2 for line in axes.lines)
figure.savefig("figure.png")
print("all cells have run")
"""


def cells(kind):
    return [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == kind]


def test_notebook_is_committed_without_outputs():
    assert cells("code") and cells("markdown")
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells("code"))
    lines = [line for cell in cells("code") for line in cell["source"]]
    assert not [line for line in lines if line.startswith(("%", "!"))]  # magics, which plain Python does not know
    assert "](notebook.ipynb)" in (ROOT / "experiments" / "README.md").read_text()


@pytest.mark.slow
def test_all_cells_of_the_notebook_run(tmp_path):
    code = "\n\n".join("".join(cell["source"]) for cell in cells("code"))
    assert code.count(OUTPUTS) == 1
    (tmp_path / "cells.py").write_text(code.replace(OUTPUTS, f"OUT = {str(tmp_path / 'out')!r}") + CHECKS)
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "MPLBACKEND": "agg"}
    process = subprocess.run(
        [sys.executable, "cells.py"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr
    assert process.stdout.endswith("all cells have run\n")
    assert len(list((tmp_path / "out" / "runs").iterdir())) == 1 and (tmp_path / "figure.png").exists()
