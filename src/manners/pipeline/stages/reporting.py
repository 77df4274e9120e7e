"""Evaluate before training, and report what changed: tables, figures and the model, in the run directory and MLflow."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from manners.data.clusters import cluster_ids
from manners.data.loading import build_prompts
from manners.data.mixture import DATASET
from manners.data.types import Prompt, distinct_prompts
from manners.evaluation.evaluate import LOSS_BATCH_SIZE, EvalResult
from manners.evaluation.generate import cut_prompts_line
from manners.evaluation.metrics.reward_quality import PairwiseQuality, RegressionQuality
from manners.evaluation.metrics.reward_sanity import SanityResult
from manners.evaluation.reports import figures, reward_figures, reward_report
from manners.evaluation.reports.before_after import before_after_markdown, before_after_rows, show_before_after
from manners.models import loading
from manners.pipeline.stages.context import RunContext, console
from manners.pipeline.style_judge import judge_line, load_errors, load_judge


def evaluate_before(run: RunContext, evaluate: Callable[[], EvalResult]) -> EvalResult:
    """The result before training. A resumed run reads it from its state instead of computing it again."""
    if "num_prompts" not in (run.directory.state.before or {}):  # which an older version did not save
        run.directory.update_state(before=evaluate().to_json())
    before = EvalResult.from_json(run.directory.state.before or {})
    run.logger.log(before.metrics("before"), 0)
    return before


def test_prompts(run: RunContext) -> list[Prompt]:
    """The prompts of the test rows. Greedy decoding answers equal ones alike, so that they count once."""
    prompts = build_prompts(run.cfg.dataset, run.test_rows)
    return prompts if run.cfg.evaluation.do_sample else distinct_prompts(prompts)


def report_cut_prompts(run: RunContext, model: Any, tokenizer: Any) -> None:
    """Print how many prompts do not fit: those of the evaluation, and those that PPO and RLOO train on."""
    cfg, m = run.cfg, run.cfg.method
    room = loading.max_positions(model.config) - cfg.evaluation.max_new_tokens
    checks = [(run.test_rows, room, f"evaluation.max_new_tokens={cfg.evaluation.max_new_tokens}")]
    if "max_prompt_length" in m:
        checks.append((run.splits.train, m.max_prompt_length, f"method.max_prompt_length={m.max_prompt_length}"))
    role = "user" if cfg.dataset.loss_roles == "user" else "assistant"
    for rows, length, option in checks:
        prompts = [p.messages for p in build_prompts(cfg.dataset, rows)]
        if line := cut_prompts_line(prompts, tokenizer, role, length, option):
            console.print(line, style="yellow", highlight=False)


def evaluate_settings(run: RunContext) -> dict[str, Any]:
    """Keyword arguments of ``evaluate`` and of the generation in it, with the clusters of the test rows."""
    cfg = run.cfg
    e, judge = cfg.evaluation, load_judge(cfg.dataset.style_judge, cfg)
    return {
        "example_clusters": cluster_ids(run.loss_rows, cfg.dataset.prefix_words),
        "example_datasets": [row.metadata.get(DATASET, "") for row in run.loss_rows],
        "style_judge": judge,
        "judge_errors": load_errors(cfg.dataset, judge),
        "text_stats": cfg.dataset.text_stats,
        "role": "user" if cfg.dataset.loss_roles == "user" else "assistant",
        "num_shown": e.prompts,
        "max_prompts": e.test_prompts,
        "loss_batch_size": min(LOSS_BATCH_SIZE, cfg.method.get("per_device_eval_batch_size", LOSS_BATCH_SIZE)),
        "max_new_tokens": e.max_new_tokens,
        "batch_size": e.batch_size,
        "do_sample": e.do_sample,
        "temperature": e.temperature,
        "seed": cfg.seed,
    }


def report_before_after(
    run: RunContext, before: EvalResult, after: EvalResult, summary: str, pictures: list[Path]
) -> None:
    """The report of a language model, to the terminal, the run directory and MLflow; ``summary`` is its first line."""
    if not run.cfg.sweep.parent:  # a sweep prints a table of its own
        show_before_after(console, before, after, summary)
    text = before_after_markdown(run.path.name, before, after, summary)
    text += judge_line(run.cfg.dataset.style_judge, run.cfg)
    if before.style_accuracy:
        pictures = [*pictures, figures.accuracy_figure(before, after, run.path / "style_accuracy.png")]
    run.logger.table(before_after_rows(before, after), "before_after.json")
    log_report(run, "before_after.md", text, after.to_json(), pictures)


@dataclass(frozen=True)
class RewardEvaluation:
    """A reward model on held-out rows; of pairs there are no true scores."""

    quality: RegressionQuality | PairwiseQuality
    worst: list[dict[str, str]]
    predicted: list[float] = field(default_factory=list)
    true: list[float] = field(default_factory=list)


def report_reward_model(
    run: RunContext, evaluation: RewardEvaluation, sanity: SanityResult, best_step: int, by_dataset: Sequence[str] = ()
) -> None:
    """The report of a reward model, to the terminal, the run directory and MLflow.

    ``by_dataset`` is a line on each dataset of a mixture.
    """
    quality = evaluation.quality
    pictures = [figures.learning_curve(run.path / "metrics.jsonl", best_step, run.path / "learning_curve.png")]
    if isinstance(quality, RegressionQuality):
        pictures += [
            reward_figures.score_scatter(evaluation.predicted, evaluation.true, run.path / "predicted.png"),
            reward_figures.calibration_figure(quality, evaluation.predicted, run.path / "calibration.png"),
        ]
    if not run.cfg.sweep.parent:
        reward_report.show_reward_report(console, quality, sanity, evaluation.worst)
    for line in by_dataset:
        console.print(line, highlight=False, soft_wrap=True)
    text = reward_report.reward_markdown(run.path.name, quality, sanity, evaluation.worst)
    text += "".join(f"\n- {line}" for line in by_dataset) + "\n" * bool(by_dataset)
    run.logger.table(evaluation.worst, "worst_errors.json")
    log_report(run, "reward_report.md", text, asdict(quality) | {"sanity": asdict(sanity)}, pictures)


def log_report(run: RunContext, name: str, text: str, result: dict[str, Any], pictures: list[Path]) -> None:
    """Write the report and ``after.json``, and send them, the figures and the model to MLflow."""
    (run.path / name).write_text(text)
    (run.path / "after.json").write_text(json.dumps(result, indent=1, ensure_ascii=False))
    run.logger.artifact(run.path / name)
    run.logger.artifact(run.path / "after.json")
    run.logger.describe(text)
    for picture in pictures:
        run.logger.artifact(picture, "figures")
    run.logger.artifact(run.path / "model")
