"""Where the repository keeps its configuration. The package runs from a checkout (an editable install)."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CONF = ROOT / "conf"
EXPERIMENTS = ROOT / "experiments"
