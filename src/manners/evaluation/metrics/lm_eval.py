"""Standard benchmarks, by EleutherAI's lm-evaluation-harness (Gao et al. 2024), an extra: ``pip install '.[eval]'``."""

import logging
from difflib import get_close_matches
from numbers import Real
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from manners.errors import MannersError
from manners.evaluation.stats import Estimate
from manners.models.lora import merged_for_generation
from manners.runtime import hub


def run_lm_eval(
    model: Any, tokenizer: PreTrainedTokenizerBase, tasks: list[str], batch_size: int, limit: int | None
) -> dict[str, Estimate]:
    """Each metric by its name, such as "arc_easy/acc", with the interval of ± 1.96 standard errors.

    A task is a name that lm-eval knows, a yaml file of its kind, or a folder of such files. Prompts are lm-eval's own,
    without a chat template: so the figures compare with published ones, and a model with its base. ``limit`` takes the
    first rows of each task alone. Raises MannersError for a task that is not known, or whose data cannot be had.
    """
    hub.go_offline_if_unreachable()  # before datasets is imported: its retries would take minutes
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # that the model is loaded already is no cause for a warning
    folders = [task for task in tasks if Path(task).is_dir()]
    by_name = any(not Path(task).exists() for task in tasks)  # lm-eval's own tasks take half a minute to list
    manager = TaskManager(include_path=folders, include_defaults=by_name)
    named = [name for task in tasks for name in expand_task(task, manager, TaskManager)]
    with merged_for_generation(model):
        lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
        try:
            found: Any = simple_evaluate(lm, tasks=named, task_manager=manager, limit=limit, log_samples=False)
        except OSError as error:  # its data are read here: a file that is missing, or a hub that is out of reach
            raise MannersError(
                f"lm_eval={tasks}: {str(error).splitlines()[0]}. lm-eval takes its data from the hub: run it where "
                "there is internet, or name a yaml file whose data are on this machine."
            ) from error
    return {key: e for task, metrics in found["results"].items() for key, e in estimates(task, metrics).items()}


def expand_task(task: str, manager: Any, listing: Any) -> list[str]:
    """The tasks that ``task`` stands for: those in a folder, or itself."""
    if Path(task).is_dir():
        found: list[str] = listing(include_path=task, include_defaults=False).all_subtasks
        if not found:
            raise MannersError(f"lm_eval={task}: no yaml file in this folder is a task of lm-eval.")
        return found
    if not Path(task).exists() and task not in manager.all_tasks:
        near = get_close_matches(task, manager.all_tasks, n=3)
        told = f"Near: {', '.join(near)}." if near else "All of them: .venv/bin/lm-eval ls tasks"
        raise MannersError(f"lm_eval={task} is neither a task of lm-eval nor a yaml file or folder. {told}")
    return [task]


def estimates(task: str, metrics: dict[str, Any]) -> dict[str, Estimate]:
    """From lm-eval's ``{"acc,none": 0.5, "acc_stderr,none": 0.1, "alias": …}``; "none" stands for no filter.

    A metric without a standard error, such as one over a single row, has an interval of no width.
    """
    found = {}
    for key, value in metrics.items():
        metric, _, how = key.partition(",")
        if not how or metric.endswith("_stderr") or not isinstance(value, Real):
            continue
        error = metrics.get(f"{metric}_stderr,{how}")
        wide = 1.96 * float(error) if isinstance(error, Real) else 0.0
        name = f"{task}/{metric}" if how == "none" else f"{task}/{metric}/{how}"
        found[name] = Estimate(float(value), float(value) - wide, float(value) + wide)
    return found
