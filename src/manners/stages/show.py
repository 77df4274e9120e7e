"""Show what changed, and keep it: table, figures and model in the run folder and in MLflow."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from manners.evaluation import figures, report, reward_figures, reward_report
from manners.evaluation.measure import ROWS_AT_ONCE, Measured
from manners.evaluation.regression import Pairwise, Regression
from manners.evaluation.sanity import Sanity
from manners.stages.run import Run, console


def rows_at_once(cfg: DictConfig) -> int:
    """Held-out rows whose loss is taken together: no more than a validation of the training takes."""
    return min(ROWS_AT_ONCE, cfg.method.get("per_device_eval_batch_size", ROWS_AT_ONCE))


def measure_settings(cfg: DictConfig) -> dict[str, Any]:
    e = cfg.evaluation
    return {
        "judged": cfg.dataset.judge != "none",
        "card": cfg.dataset.card,
        "role": "user" if cfg.dataset.train_on == "user" else "assistant",
        "show": e.prompts,
        "test_prompts": e.test_prompts,
        "rows_at_once": rows_at_once(cfg),
        "max_new_tokens": e.max_new_tokens,
        "batch_size": e.batch_size,
        "do_sample": e.do_sample,
        "temperature": e.temperature,
        "seed": cfg.seed,
    }


def before_after(run: Run, before: Measured, after: Measured, pictures: list[Path]) -> None:
    """The report of a language model, with its figures, to the terminal, the run folder and MLflow."""
    if not run.cfg.sweep.parent:  # which has a table of its own
        report.show(console, before, after)
    text = report.markdown(run.path.name, before, after)
    (run.path / "before_after.md").write_text(text)
    (run.path / "after.json").write_text(json.dumps(after.to_json(), indent=1, ensure_ascii=False))
    if before.fit:
        pictures = [*pictures, figures.manner(before, after, run.path / "manner.png")]
    run.tracker.artifact(run.path / "before_after.md")
    run.tracker.artifact(run.path / "after.json")
    run.tracker.table(report.rows(before, after), "before_after.json")
    run.tracker.describe(text)
    keep(run, pictures)


@dataclass(frozen=True)
class Exam:
    """A reward model on held-out rows; of pairs there are no true scores."""

    quality: Regression | Pairwise
    worst: list[dict[str, str]]
    predicted: list[float] = field(default_factory=list)
    true: list[float] = field(default_factory=list)


def reward(run: Run, exam: Exam, sane: Sanity, best_step: int) -> None:
    """The report of a reward model."""
    pictures = [figures.learning_curve(run.path / "metrics.jsonl", best_step, run.path / "learning_curve.png")]
    if isinstance(exam.quality, Regression):
        pictures.append(reward_figures.scatter(exam.predicted, exam.true, run.path / "predicted.png"))
        pictures.append(reward_figures.calibration(exam.quality, exam.predicted, run.path / "calibration.png"))
    if not run.cfg.sweep.parent:
        reward_report.show(console, exam.quality, sane, exam.worst)
    text = reward_report.markdown(run.path.name, exam.quality, sane, exam.worst)
    (run.path / "reward_report.md").write_text(text)
    (run.path / "after.json").write_text(json.dumps(exam.quality.to_json() | {"sanity": sane.to_json()}, indent=1))
    run.tracker.artifact(run.path / "reward_report.md")
    run.tracker.artifact(run.path / "after.json")
    run.tracker.table(exam.worst, "worst_errors.json")
    run.tracker.describe(text)
    keep(run, pictures)


def keep(run: Run, pictures: list[Path]) -> None:
    for picture in pictures:
        run.tracker.artifact(picture, "figures")
    run.tracker.artifact(run.path / "model")
