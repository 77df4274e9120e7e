"""The source of reward functions: an edited function makes another run, though the config names it as before."""

import ast
import hashlib
import os
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


def source_digest(rewards: Mapping[Any, Any]) -> str:
    """A hash of the files that define the reward functions of a config, and of the user's modules that they import."""
    sources: dict[str, Path] = {}
    for target in targets_in(rewards):
        names = target.split(".")
        for end in range(len(names) - 1, 0, -1):
            collect_sources(".".join(names[:end]), sources)
    sha = hashlib.sha256()
    for name in sorted(sources):
        sha.update(f"{name} {hashlib.sha256(sources[name].read_bytes()).hexdigest()}\n".encode())
    return sha.hexdigest()[:12] if sources else ""


def targets_in(node: Any) -> Iterator[str]:
    """Every ``_target_`` in a config, at any depth."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from [str(value)] if key == "_target_" else targets_in(value)


def collect_sources(module: str, sources: dict[str, Path]) -> None:
    """Add the file of ``module``, and of what it imports, by name; an installed package counts by its version."""
    file = module_file(module)
    if file is None or module in sources:
        return
    sources[module] = file
    if module.partition(".")[0] == "manners":
        return
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):  # importing it reports that
        return
    package = module.split(".") if file.name == "__init__.py" else module.split(".")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            imported = [base, *(f"{base}.{alias.name}".lstrip(".") for alias in node.names)]
        else:
            continue
        for name in filter(None, imported):
            collect_sources(name, sources)


def module_file(module: str) -> Path | None:
    """The file of a module of the user's own, found without importing it; None for an installed one."""
    installed = (sysconfig.get_path("stdlib"), sysconfig.get_path("purelib"), sysconfig.get_path("platlib"))
    for folder in dict.fromkeys([*sys.path, os.getcwd()]):
        if not folder.startswith(installed):
            stem = Path(folder, *module.split("."))
            for file in (stem.with_name(f"{stem.name}.py"), stem / "__init__.py"):
                if file.is_file():
                    return file.resolve()
    return None
