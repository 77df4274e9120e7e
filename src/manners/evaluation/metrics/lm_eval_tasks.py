"""Tasks of EleutherAI's lm-evaluation-harness (Gao et al. 2024): found by name or file, and their data loaded.

lm-eval is an optional extra ("[eval]"). Nothing here imports torch, so that an unknown name, or data that are not on
this machine, are reported before any model is loaded.
"""

import logging
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from manners.errors import MannersError
from manners.runtime import hub
from manners.runtime.paths import existing_path

MAX_GEN_TOKS = 256  # lm-eval's default for a task that generates
MAX_GEN_NAMES = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")  # in the order it takes them
INSTALL = ".venv/bin/pip install -c conf/constraints.txt"


@dataclass(frozen=True)
class Benchmarks:
    """lm-eval's own objects, with their data."""

    manager: Any  # TaskManager
    tasks: list[Any]  # Task and Group, as ``simple_evaluate`` takes them
    reply_lengths: dict[str, int]  # for each task that generates, and is in one of the groups perhaps, in tokens


def load_benchmarks(names: Sequence[str], include_path: str | None = None) -> Benchmarks:
    """Find the tasks and load their data, from the hub or, without one, from its cache and local files.

    A name is that of a task or group of lm-eval or of a yaml file in the folder ``include_path``, a yaml file in its
    format, or a folder of such files. Raises MannersError where it means nothing, or its data cannot be loaded.
    """
    offline = hub.go_offline_if_unreachable()  # before datasets is imported: its retries take minutes
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it warns of what is meant
    own = existing_path(include_path) if include_path else None
    folders = [*([str(own)] if own else []), *(name for name in names if Path(name).is_dir())]
    manager = TaskManager(include_path=folders, include_defaults=False)
    if any(not Path(name).exists() and name not in manager.all_tasks for name in names):
        manager = TaskManager(include_path=folders, include_defaults=True)  # reads fourteen thousand files
    tasks: list[Any] = []
    expanded = [task for name in names for task in expand_task(name, manager, TaskManager)]
    for name in expanded:
        try:
            tasks += outermost(manager.load([name]))
        except Exception as error:  # lm-eval reads a file of the user, runs code that it names, and loads data
            raise load_error(name, error, offline) from error
        check_sentence_splitter(name)
    try:
        loaded = manager.load(tasks)["tasks"]
    except ValueError as error:
        raise MannersError(f"benchmarks={list(names)}: {error}. Name it once.") from error
    return Benchmarks(manager, tasks, {n: max_gen_toks(t) for n, t in loaded.items() if is_generating(t)})


def outermost(loaded: Any) -> list[Any]:
    """The groups and tasks of ``TaskManager.load`` that no other of its groups holds."""
    inner = {name for members in loaded["group_map"].values() for name in members}
    groups = [group for name, group in loaded["groups"].items() if name not in inner]
    return groups or list(loaded["tasks"].values())


def is_generating(task: Any) -> bool:
    """Whether the model writes replies, where others only score given ones."""
    return bool(task.config.output_type == "generate_until")


def max_gen_toks(task: Any) -> int:
    """The longest reply that a task asks for, in tokens."""
    given = task.config.generation_kwargs or {}
    return int(next((given[key] for key in MAX_GEN_NAMES if given.get(key) is not None), MAX_GEN_TOKS))


def expand_task(name: str, manager: Any, task_manager_class: Any) -> list[str]:
    """Return the tasks in a folder, or the task itself. Raises MannersError where there is none."""
    if Path(name).is_dir():
        subtasks: list[str] = task_manager_class(include_path=name, include_defaults=False).all_subtasks
        if not subtasks:
            raise MannersError(f"benchmarks={name}: no yaml file in this folder is a task of lm-eval.")
        return subtasks
    if not Path(name).exists() and name not in manager.all_tasks:
        matches = get_close_matches(name, manager.all_tasks, n=3)
        hint = f"Did you mean {', '.join(matches)}?" if matches else "List them: .venv/bin/lm-eval ls tasks"
        raise MannersError(
            f"benchmarks={name} is neither a task of lm-eval, nor of include_path, nor a yaml file or folder. {hint}"
        )
    return [name]


def check_sentence_splitter(name: str) -> None:
    """Raise MannersError where IFEval's code has been imported and could not download what it counts sentences with."""
    if "lm_eval.tasks.ifeval.instructions_util" not in sys.modules:
        return
    import nltk

    try:
        nltk.data.find("tokenizers/punkt_tab")
    except LookupError as error:
        raise MannersError(
            f"benchmarks={name}: NLTK's 'punkt_tab', which it counts sentences with, is not on this machine. With "
            "internet: python -m nltk.downloader punkt_tab; then copy the folder nltk_data to your home folder here."
        ) from error


def load_error(name: str, error: Exception, offline: bool) -> MannersError:
    """What to type where lm-eval could not load a task."""
    lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    if isinstance(error, ModuleNotFoundError):
        extra = f"{INSTALL} -e '.[eval]', and {error.name} if that does not bring it"
        return MannersError(f"benchmarks={name}: it needs the package {error.name}: {extra}.")
    dataset = re.search(r"['\"]([\w.-]+/[\w.-]+)['\"]", lines[0])
    if offline and dataset and not existing_path(dataset[1]):
        return MannersError(
            f"benchmarks={name}: the hub cannot be reached, and its dataset '{dataset[1]}' is not in the local cache. "
            f"On a machine with internet: hf download --repo-type dataset {dataset[1]} --local-dir FOLDER; copy the "
            "folder here, and name a task whose dataset_path is that folder: 'benchmarks=[my_task]' include_path=TASKS "
            "(src/manners/evaluation/README.md, benchmarks)."
        )
    return MannersError(f"benchmarks={name}: lm-eval cannot load this task: {type(error).__name__}: {lines[0]}")


def check_reply_lengths(benchmarks: Benchmarks, model: str, context: int) -> None:
    """Raise MannersError for a task that asks for as many tokens as ``model`` can read, ``context``, or more."""
    for name, length in benchmarks.reply_lengths.items():
        if length >= context:
            raise MannersError(
                f"benchmarks={name}: it asks for replies of up to {length} tokens, and {model} reads {context}. Leave "
                "it out, or write a task with 'include: FILE.yaml' and a smaller max_gen_toks in generation_kwargs."
            )
