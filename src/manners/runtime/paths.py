"""Where the repository keeps its configuration. The package runs from a checkout (an editable install)."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
CONF = ROOT / "conf"


def existing_path(name: str) -> Path | None:
    """What lies at the path ``name``; None where nothing does, or where no file could have such a name."""
    try:
        path = Path(os.path.expanduser(name))
        return path if path.exists() else None
    except (OSError, ValueError):  # too long, or with a NUL in it
        return None
