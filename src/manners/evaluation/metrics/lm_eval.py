"""Standard benchmarks by EleutherAI's lm-evaluation-harness (Gao et al. 2024), an optional extra ("[eval]")."""

from numbers import Real
from typing import Any

from transformers import PreTrainedTokenizerBase

from manners.errors import MannersError
from manners.evaluation.metrics.lm_eval_tasks import Benchmarks
from manners.evaluation.stats import Estimate
from manners.models.lora import merged_for_generation

CHAT_TEMPLATE, NO_TEMPLATE = "chat template", "plain text: it has no chat template"  # in reports


def prompt_kind(tokenizer: PreTrainedTokenizerBase) -> str:
    """How the model is asked, for reports."""
    return NO_TEMPLATE if tokenizer.chat_template is None else CHAT_TEMPLATE


def run_lm_eval(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    benchmarks: Benchmarks,
    batch_size: int,
    limit: int | None = None,
) -> dict[str, Estimate]:
    """Return each metric by its name, such as "arc_easy/acc", with an interval of ± 1.96 standard errors.

    Prompts are rendered by the tokenizer's chat template, examples as turns of their own (lm-eval's
    ``apply_chat_template`` and ``fewshot_as_multiturn``); without a template they are lm-eval's plain text.
    ``limit`` is the number of rows of each task. Raises MannersError where a file of the tasks' is missing.
    """
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    from manners.evaluation.metrics.lm_eval_model import ChatLM

    has_template = tokenizer.chat_template is not None
    with merged_for_generation(model):
        lm = (ChatLM if has_template else HFLM)(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
        try:
            output: Any = simple_evaluate(
                lm,
                tasks=benchmarks.tasks,
                task_manager=benchmarks.manager,
                limit=limit,
                log_samples=False,
                apply_chat_template=has_template,
                fewshot_as_multiturn=has_template,
            )
        except OSError as error:  # metrics may load data of their own
            raise MannersError(f"benchmarks: {str(error).splitlines()[0]}") from error
    return {key: e for task, metrics in output["results"].items() for key, e in estimates(task, metrics).items()}


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
