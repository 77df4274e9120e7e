"""The source of reward functions: an edited function makes another run, though the config names it as before."""

import ast
import hashlib
import os
import sys
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from manners.runtime.model_files import model_digest
from manners.runtime.paths import existing_path


def source_digest(rewards: Mapping[Any, Any]) -> str:
    """A hash of the files that define the reward functions of a config, and of the user's modules that they import."""
    sources: dict[str, Path] = {}
    versions: dict[str, str] = {}
    for key, text in texts_in(rewards):
        if key == "_target_":
            collect_sources(text, sources, versions)
        elif key == "model_name":  # as of ``perplexity``
            versions[text] = model_digest(text)
        elif (file := existing_path(text)) and file.is_file():  # such as a list of words that a function reads
            sources[text] = file
    sha = hashlib.sha256()
    for name in sorted(sources):
        sha.update(f"{name} {hashlib.sha256(sources[name].read_bytes()).hexdigest()}\n".encode())
    sha.update(repr(sorted(versions.items())).encode() if versions else b"")
    return sha.hexdigest()[:12] if sources or versions else ""


def texts_in(node: Any) -> Iterator[tuple[str, str]]:
    """Every text in a config, at any depth, with its key."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from [(str(key), value)] if isinstance(value, str) else texts_in(value)
    elif isinstance(node, Sequence) and not isinstance(node, str):
        for value in node:
            yield from [("", value)] if isinstance(value, str) else texts_in(value)


def collect_sources(name: str, sources: dict[str, Path], versions: dict[str, str]) -> None:
    """Add the files of the user's modules that ``name`` goes through, such as a.b and a of "a.b.f", and their imports.

    An installed package counts by its version.
    """
    modules = name.split(".")
    files = {module: module_file(module) for module in (".".join(modules[: i + 1]) for i in range(len(modules)))}
    if not any(files.values()) and modules[0] not in sys.stdlib_module_names:
        with suppress(PackageNotFoundError):
            versions[modules[0]] = version(modules[0])
    for module, file in files.items():
        if file is not None and module not in sources:
            sources[module] = file
            if modules[0] != "manners":
                collect_imports(module, file, sources, versions)


def collect_imports(module: str, file: Path, sources: dict[str, Path], versions: dict[str, str]) -> None:
    """Add what a module of the user's own imports, anywhere in its file."""
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
            collect_sources(name, sources, versions)


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
