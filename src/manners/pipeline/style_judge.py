"""The style judge that a config names: by rules, by a classifier that was trained here, or by an LLM."""

from pathlib import Path

from omegaconf import DictConfig

from manners.data.sources import local_path
from manners.errors import MannersError
from manners.evaluation.judges import Judge, classifier, judge_by_rules, llm
from manners.evaluation.judges.errors import JudgeErrors, measure_errors, read_labels
from manners.pipeline import model_ref
from manners.pipeline.model_ref import ModelRef
from manners.runtime import run_dir

CLASSIFIER_EXPERIMENT = "style_classifier"


def load_judge(style_judge: str, cfg: DictConfig, device: str = "cpu") -> Judge | None:
    """The judge of ``dataset.style_judge``, or None. Raises MannersError for a classifier that is not there."""
    if style_judge == "none":
        return None
    if style_judge == "classifier":
        return classifier.make_judge(model_ref.load_scorer(classifier_run(cfg), device))
    if style_judge == "llm":
        return llm.make_judge(cfg.evaluation.llm_judge, cfg.evaluation.llm_base_url)
    return judge_by_rules


def load_errors(dataset: DictConfig, judge: Judge | None) -> JudgeErrors | None:
    """The errors of a judge on the labeled replies that the dataset names, or None. Raises MannersError."""
    if judge is None or dataset.judge_labels is None:
        return None
    file = local_path(dataset.judge_labels, "dataset.judge_labels")
    if file is None or not file.is_file():
        raise MannersError(f"dataset.judge_labels={dataset.judge_labels} is not a file.", "dataset.judge_labels")
    return measure_errors(judge, read_labels(file))


def judge_name(style_judge: str, cfg: DictConfig) -> str:
    """The judge with what tells it from others of its kind, for reports."""
    if style_judge == "classifier":
        run = classifier_run(cfg)
        return f"classifier {run.name} (weights {run.run.fingerprint if run.run else ''})"
    return f"{cfg.evaluation.llm_judge}" if style_judge == "llm" else style_judge


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
