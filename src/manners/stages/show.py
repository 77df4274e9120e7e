"""Show what changed, and keep it: table, figures and model in the run folder and in MLflow."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from manners.data import rows
from manners.evaluation import figures, report, reward_figures, reward_report
from manners.evaluation.measure import Measured
from manners.evaluation.regression import Pairwise, Regression
from manners.evaluation.sanity import Sanity
from manners.stages.run import Run, console

Score = Callable[..., list[float]]


def measure_settings(cfg: DictConfig) -> dict[str, Any]:
    e = cfg.evaluation
    return {
        "judged": cfg.dataset.judge != "none",
        "show": e.prompts,
        "test_prompts": e.test_prompts,
        "max_new_tokens": e.max_new_tokens,
        "batch_size": e.batch_size,
        "do_sample": e.do_sample,
        "temperature": e.temperature,
        "seed": cfg.seed,
    }


def before_after(run: Run, before: Measured, after: Measured, pictures: list[Path]) -> None:
    """The report of a language model, with its figures, to the terminal, the run folder and MLflow."""
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


def reward(run: Run, examined: Regression | Pairwise, sane: Sanity, score: Score, best_step: int) -> None:
    """The report of a reward model."""
    curve = figures.learning_curve(run.path / "metrics.jsonl", best_step, run.path / "learning_curve.png")
    pictures, chats = [curve], run.splits.test or run.splits.validation
    if isinstance(examined, Pairwise):
        pairs = rows.pairs(chats)
        chosen, rejected = (
            score([(p.messages, reply) for p, reply in zip(pairs, replies, strict=True)])
            for replies in ([p.chosen for p in pairs], [p.rejected for p in pairs])
        )
        worst = reward_report.pair_rows(pairs, chosen, rejected)
    else:
        held_out = rows.scored(chats)
        predicted, true = score([(r.messages, r.reply) for r in held_out]), [r.score for r in held_out]
        worst = reward_report.rows(held_out, predicted)
        pictures.append(reward_figures.scatter(predicted, true, run.path / "predicted.png"))
        pictures.append(reward_figures.calibration(examined, predicted, run.path / "calibration.png"))
    reward_report.show(console, examined, sane, worst)
    text = reward_report.markdown(run.path.name, examined, sane, worst)
    (run.path / "reward_report.md").write_text(text)
    (run.path / "after.json").write_text(json.dumps(examined.to_json() | {"sanity": sane.to_json()}, indent=1))
    run.tracker.artifact(run.path / "reward_report.md")
    run.tracker.artifact(run.path / "after.json")
    run.tracker.table(worst, "worst_errors.json")
    run.tracker.describe(text)
    keep(run, pictures)


def keep(run: Run, pictures: list[Path]) -> None:
    for picture in pictures:
        run.tracker.artifact(picture, "figures")
    run.tracker.artifact(run.path / "model")
