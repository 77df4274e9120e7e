"""The style judge that a config names: by rules, by a classifier that was trained here, or by an LLM."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from manners.data.sources import local_path
from manners.data.types import Conversation, has_category
from manners.errors import MannersError
from manners.pipeline import model_ref
from manners.pipeline.model_ref import ModelRef
from manners.runtime import run_dir

if TYPE_CHECKING:  # scipy is imported late: a command is checked before
    from manners.evaluation.judges import Judge
    from manners.evaluation.judges.errors import JudgeErrors

CLASSIFIER_EXPERIMENT = "style_classifier"


def load_judge(style_judge: str, cfg: DictConfig, device: str = "cpu") -> "Judge | None":
    """The judge of ``dataset.style_judge``, or None. Raises MannersError for a classifier that is not there."""
    from manners.evaluation.judges import classifier, judge_by_rules, llm

    if style_judge == "none":
        return None
    if style_judge == "classifier":
        return classifier.make_judge(model_ref.load_scorer(classifier_run(cfg), device))
    if style_judge == "llm":
        return llm.make_judge(cfg.evaluation.llm_judge, cfg.evaluation.llm_base_url)
    return judge_by_rules


def check_style_judge(cfg: DictConfig) -> None:
    """The judge that a run will ask is there, and so are the labels of its errors. Raises MannersError."""
    if cfg.dataset.style_judge == "classifier":
        classifier_run(cfg)
    if cfg.dataset.judge_labels is not None:
        labels_file(cfg.dataset)


def check_categories(style_judge: str, rows: Sequence[Conversation]) -> None:
    """A judge has a row that it can judge the reply to. Raises MannersError."""
    if style_judge != "none" and rows and not any(map(has_category, rows)):
        raise MannersError(
            f"dataset.style_judge={style_judge} judges a reply by the 'category' of its row, and no held-out row has "
            "one: dataset.style_judge=none.",
            "dataset.style_judge",
        )


def load_errors(dataset: DictConfig, judge: "Judge | None") -> "JudgeErrors | None":
    """The errors of a judge on the labeled replies that the dataset names, or None. Raises MannersError."""
    from manners.evaluation.judges.errors import measure_errors, read_labels

    if judge is None or dataset.judge_labels is None:
        return None
    return measure_errors(judge, read_labels(labels_file(dataset)))


def labels_file(dataset: DictConfig) -> Path:
    """The file of ``dataset.judge_labels``. Raises MannersError where there is none."""
    file = local_path(dataset.judge_labels, "dataset.judge_labels")
    if file is None or not file.is_file():
        raise MannersError(f"dataset.judge_labels={dataset.judge_labels} is not a file.", "dataset.judge_labels")
    return file


def judge_line(style_judge: str, cfg: DictConfig) -> str:
    """The line of a report that says which judge it was; empty where none was."""
    if style_judge == "none":
        return ""
    if style_judge == "classifier":
        run = classifier_run(cfg)
        style_judge += f" {run.name}" + (f", weights {run.run.fingerprint}" if run.run else "")
    elif style_judge == "llm":
        style_judge = str(cfg.evaluation.llm_judge)
    return f"\nStyle is judged by: {style_judge}.\n"


def classifier_run(cfg: DictConfig) -> ModelRef:
    """The run that ``evaluation.classifier`` names. Raises MannersError where there is none."""
    name = cfg.evaluation.classifier
    if name != "latest":
        return model_ref.resolve_model(name, cfg, ("reward",), "evaluation.classifier")
    runs = run_dir.all_runs(cfg.output_dir, f"{CLASSIFIER_EXPERIMENT}-*")
    finished = [path for path, state in runs if state.status == "finished"]
    if not finished:
        raise MannersError(
            f"style_judge=classifier: {Path(cfg.output_dir).resolve()}/runs has no finished run of the classifier yet. "
            f"Train it: python train.py experiment={CLASSIFIER_EXPERIMENT}. Or name a run: evaluation.classifier=RUN.",
            "evaluation.classifier",
        )
    newest = max(finished, key=lambda path: (path / run_dir.STATE_FILE).stat().st_mtime_ns)
    return model_ref.resolve_model(newest.name, cfg, ("reward",), "evaluation.classifier")
