"""The benchmarks of evaluate.py: what the command names, loaded before any model is, and how each model is asked."""

from typing import Any

from omegaconf import DictConfig

from manners.evaluation.metrics.lm_eval_tasks import Benchmarks, load_benchmarks
from manners.pipeline import model_ref
from manners.pipeline.model_ref import LoadedModel


def load(cfg: DictConfig) -> Benchmarks | None:
    """The tasks of ``benchmarks=``, with their data; None where it names none.

    Raises MannersError for a name that means nothing, or data that are not on this machine.
    """
    if not cfg.benchmarks:
        return None
    return load_benchmarks(list(cfg.benchmarks), cfg.include_path)


def tokenizer_for(loaded: LoadedModel, before_training: bool) -> Any:
    """The tokenizer whose chat template asks the model.

    That of a run is the one it was trained with; the base is asked by its own, and has none if it came without one.
    """
    if not before_training:
        return loaded.tokenizer
    from manners.models.tokenizer import load_tokenizer

    return load_tokenizer(*model_ref.base_of(loaded.ref), require_template=False)


def answer(
    loaded: LoadedModel, model: Any, benchmarks: Benchmarks, before_training: bool, batch_size: int
) -> tuple[dict[str, Any], str]:
    """The ``Estimate`` of each metric by its name, and how the model was asked.

    ``model`` is that of ``loaded``, or its base where ``before_training``. Raises MannersError where a file is missing.
    """
    from manners.evaluation.metrics.lm_eval import prompt_kind, run_lm_eval

    tokenizer = tokenizer_for(loaded, before_training)
    return run_lm_eval(model, tokenizer, benchmarks, batch_size), prompt_kind(tokenizer)
