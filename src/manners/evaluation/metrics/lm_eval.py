"""Standard benchmarks by EleutherAI's lm-evaluation-harness (Gao et al. 2024), an optional extra ("[eval]")."""

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
    """Return each metric by its name, such as "arc_easy/acc", with an interval of ± 1.96 standard errors.

    A task is a name known to lm-eval, a yaml file in its format, or a folder of such files. Prompts are lm-eval's own,
    without a chat template, so that the results compare with published ones and with those of the base. ``limit`` is
    the number of rows of each task. Raises MannersError for an unknown task, or where its data cannot be loaded.
    """
    hub.go_offline_if_unreachable()  # before datasets is imported: its retries take minutes
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it warns that the model is loaded already
    folders = [task for task in tasks if Path(task).is_dir()]
    has_names = any(not Path(task).exists() for task in tasks)  # listing lm-eval's own tasks takes half a minute
    manager = TaskManager(include_path=folders, include_defaults=has_names)
    expanded = [name for task in tasks for name in expand_task(task, manager, TaskManager)]
    with merged_for_generation(model):
        lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
        try:
            output: Any = simple_evaluate(lm, tasks=expanded, task_manager=manager, limit=limit, log_samples=False)
        except OSError as error:  # the data are loaded here: a missing file, or a hub that cannot be reached
            raise MannersError(
                f"lm_eval={tasks}: {str(error).splitlines()[0]}. lm-eval downloads its data from the hub: run it "
                "with internet access, or name a yaml file whose data are on this machine."
            ) from error
    return {key: e for task, metrics in output["results"].items() for key, e in estimates(task, metrics).items()}


def expand_task(task: str, manager: Any, task_manager_class: Any) -> list[str]:
    """Return the tasks in a folder, or the task itself. Raises MannersError where there is none."""
    if Path(task).is_dir():
        subtasks: list[str] = task_manager_class(include_path=task, include_defaults=False).all_subtasks
        if not subtasks:
            raise MannersError(f"lm_eval={task}: no yaml file in this folder is a task of lm-eval.")
        return subtasks
    if not Path(task).exists() and task not in manager.all_tasks:
        matches = get_close_matches(task, manager.all_tasks, n=3)
        hint = f"Did you mean {', '.join(matches)}?" if matches else "List them: .venv/bin/lm-eval ls tasks"
        raise MannersError(f"lm_eval={task} is neither a task of lm-eval nor a yaml file or folder. {hint}")
    return [task]


def estimates(task: str, metrics: dict[str, Any]) -> dict[str, Estimate]:
    """Convert lm-eval's ``{"acc,none": 0.5, "acc_stderr,none": 0.1, "alias": …}``, where "none" is the filter's name.

    A metric without a standard error, such as one over a single row, gets an interval of no width.
    """
    result = {}
    for key, value in metrics.items():
        metric, _, filter_name = key.partition(",")
        if not filter_name or metric.endswith("_stderr") or not isinstance(value, Real):
            continue
        stderr = metrics.get(f"{metric}_stderr,{filter_name}")
        half_width = 1.96 * float(stderr) if isinstance(stderr, Real) else 0.0
        name = f"{task}/{metric}" if filter_name == "none" else f"{task}/{metric}/{filter_name}"
        result[name] = Estimate(float(value), float(value) - half_width, float(value) + half_width)
    return result
