"""Where the repository keeps its configuration. The package runs from a checkout (an editable install)."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
CONF = ROOT / "conf"


def user_cache(name: str) -> Path:
    """A folder of the user's cache, which all clones share and which survives ``outputs/``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "manners" / name


def existing_path(name: str) -> Path | None:
    """What lies at the path ``name``; None where nothing does, or where no file could have such a name."""
    try:
        path = Path(os.path.expanduser(name))
        return path if path.exists() else None
    except (OSError, ValueError):  # too long, or with a NUL in it
        return None
