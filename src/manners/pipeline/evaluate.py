"""The program behind evaluate.py: models side by side, on the same prompts, with the same metrics."""

import json
import math
import re
import warnings
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

from manners.config import schema, validate
from manners.data import loading
from manners.data.clusters import cluster_ids
from manners.data.mixture import DATASET
from manners.data.rendering import TemplateRefusal
from manners.data.template_check import renderable_rows
from manners.data.tokenize import prompt_ids, tokenize
from manners.data.types import Conversation, Message, Prompt, distinct_prompts, has_category, prompts_of
from manners.errors import MannersError
from manners.evaluation import multi_turn
from manners.evaluation.best_of_n import best_of_n
from manners.evaluation.evaluate import (
    EOS_NAME,
    LOSS_NAME,
    MAX_LOSS_LENGTH,
    Generation,
    accuracy_by_group,
    answer,
    answer_prompts,
    commonest_sentence,
    corrected_rate,
    counted_and_shown,
    counted_text,
    eos_by_dataset,
    fact_accuracy,
    loss_by_dataset,
    make_generations,
    metric_key,
    per_example_nll,
    style_accuracy,
)
from manners.evaluation.generate import cut_prompts_line
from manners.evaluation.metrics.assistant_style import politeness
from manners.evaluation.metrics.lm_eval_tasks import Benchmarks, check_reply_lengths
from manners.evaluation.metrics.text_stats import count_text_stats, distribution_distance
from manners.evaluation.reports import side_by_side
from manners.evaluation.reports.side_by_side import ModelResult
from manners.evaluation.reports.table import markdown_report
from manners.evaluation.reports.text_stats_figure import draw_text_stats
from manners.evaluation.stats import Estimate, bootstrap_ratio, mean, rate
from manners.models.loading import context_length
from manners.pipeline import benchmarks, dependencies, model_ref
from manners.pipeline.model_ref import LoadedModel, ModelRef
from manners.pipeline.style_judge import check_categories, judge_line, load_errors, load_judge
from manners.rewards import combine
from manners.runtime import run_dir
from manners.runtime.device import inference_device
from manners.tracking import store
from manners.tracking.traces import AssessedReply, Assessment

console = Console()


def evaluate_models(cfg: DictConfig, tasks: Benchmarks | None = None) -> Path:
    """Evaluate the models of ``cfg.run``, and the base of each; the directory of the report is returned.

    They answer the benchmarks ``tasks`` too. Raises MannersError for names that mean nothing, too many models, or a
    dataset without held-out rows.
    """
    warnings.filterwarnings("ignore", category=FutureWarning)  # of libraries about each other
    warnings.filterwarnings("ignore", message="Already unmerged")
    device = inference_device(cfg.hardware)
    names = [cfg.run] if isinstance(cfg.run, str) else list(cfg.run)
    refs = with_own_names([model_ref.resolve_model(name, cfg) for name in names])
    model_ref.use_experiment_of(refs, cfg)
    dataset = dataset_of(cfg, refs)
    columns = len(names) * (2 if cfg.best_of > 1 else 1)
    columns += cfg.base * len({base_name(ref) for ref in refs}) * (2 if dataset.prompted_baseline else 1)
    if columns > len(side_by_side.COLORS):
        raise MannersError(
            f"run={names}: with their bases {columns} columns, and a figure has room for {len(side_by_side.COLORS)}.",
            "run",
        )
    evaluator = Evaluator(cfg, dataset, refs, device.kind, tasks)
    results: list[ModelResult] = []
    for ref in refs:
        loaded = model_ref.load_model_ref(ref, device.kind)
        base = f"{base_name(ref)} (before)"
        with device.autocast():
            if cfg.base and loaded.has_base and base not in [result.name for result in results]:
                results.append(evaluator.evaluate(base, loaded, before_training=True))
                if evaluator.can_prompt_baseline(loaded):
                    name, system = f"{base_name(ref)} (prompted)", evaluator.dataset.prompted_baseline
                    results.append(evaluator.evaluate(name, loaded, before_training=True, system=system))
            results.append(evaluator.evaluate(loaded.name, loaded, before_training=False))
            if cfg.best_of > 1:
                results.append(evaluator.evaluate_best_of(loaded))
    return write_report(cfg, results, evaluator)


def with_own_names(refs: Sequence[ModelRef]) -> list[ModelRef]:
    """The models, a number added to a name that another has: results are kept by name."""
    taken: set[str] = set()
    named = []
    for ref in refs:
        numbered = (f"{ref.name}{f' #{i}' if i > 1 else ''}" for i in range(1, len(refs) + 1))
        name = next(name for name in numbered if name not in taken)
        taken.add(name)
        named.append(replace(ref, name=name))
    return named


def dataset_of(cfg: DictConfig, refs: Sequence[ModelRef]) -> DictConfig:
    """The dataset of the command, or that of the first run. Raises MannersError where there is neither."""
    if cfg.dataset is not None:
        return cfg.dataset
    own = {ref.name: ref.config.dataset for ref in refs if ref.config is not None}
    if not own:
        raise MannersError("none of these models is a run of ours: name the prompts, dataset=strictbot.", "dataset")
    name, dataset = next(iter(own.items()))
    measured_by = ("path", "eval_prompts_file", "style_judge", "judge_labels", "prompted_baseline")
    if differing := [key for key in measured_by if any(d.get(key) != dataset.get(key) for d in own.values())]:
        keys = ", ".join(f"dataset.{key}" for key in differing)
        console.print(
            f"the runs differ in {keys}: all are measured by those of {name}", style="yellow", highlight=False
        )
    return OmegaConf.merge(OmegaConf.structured(schema.DatasetConfig), dataset)  # type: ignore[return-value]


def base_name(ref: ModelRef) -> str:
    return Path(str(ref.config.model.name)).name if ref.config else ref.name


class Evaluator:
    """The prompts, metrics and settings that are the same for every model."""

    def __init__(
        self,
        cfg: DictConfig,
        dataset: DictConfig,
        refs: Sequence[ModelRef],
        device: str,
        tasks: Benchmarks | None = None,
    ):
        splits = loading.load_splits(dataset)
        for line in splits.left_out:
            console.print(line, highlight=False, markup=False, soft_wrap=True)
        self.cfg, self.dataset, self.benchmarks = cfg, dataset, tasks
        self.style_judge = load_judge(dataset.style_judge, cfg, device)
        self.judge_errors = load_errors(dataset, self.style_judge)
        self.rows: list[Conversation] = splits.test or splits.validation
        check_categories(dataset.style_judge, self.rows)
        self.check_rows(refs)
        warn_of_changed_data(refs)
        self.warn_of_training_rows(refs)
        prompts = prompts_of(self.rows, self.role, dataset.prefix_words)
        if not cfg.evaluation.do_sample:  # equal prompts have equal replies, and count once
            prompts = distinct_prompts(prompts)
        self.prompts = prompts[: cfg.evaluation.test_prompts]
        if not self.prompts:
            raise MannersError(f"dataset.path={dataset.path} has no held-out rows: set dataset.test_share above 0.")
        self.clusters = cluster_ids(self.prompts)
        self.fixed_prompts = loading.eval_prompts(dataset)
        e = cfg.evaluation
        self.generation: dict[str, Any] = {
            "max_new_tokens": e.max_new_tokens,
            "batch_size": e.batch_size,
            "do_sample": e.do_sample,
            "temperature": e.temperature,
            "seed": cfg.seed,
            "role": self.role,
        }
        reward_model = model_ref.resolve_reward_model(cfg, refs)
        self.score = model_ref.load_scorer(reward_model, device) if reward_model else None
        self.rewards = combine.build_components(cfg.rewards, None, device) if cfg.rewards else {}
        combine.try_components(self.rewards, self.prompts)

    def check_rows(self, refs: Sequence[ModelRef]) -> None:
        """Leave out the rows that a model's chat template refuses, before any model is loaded.

        Raises MannersError for such a row unless ``dataset.on_invalid_row`` is "skip", and for a context without room
        for prompts.
        """
        max_new_tokens = self.cfg.evaluation.max_new_tokens
        refused: list[str] = []
        for ref in refs:
            tokenizer, context = model_ref.tokenizer_of(ref), context_length(*model_ref.base_of(ref))
            validate.check_room_for_prompts(self.cfg, context, ref.name)
            if self.benchmarks:
                check_reply_lengths(self.benchmarks, ref.name, context)
            rows, skipped = renderable_rows(self.rows, tokenizer, self.dataset.loss_roles, self.dataset.on_invalid_row)
            self.rows, refused = rows, [*refused, *skipped]
            prompts = [p.messages for p in prompts_of(rows, self.role, self.dataset.prefix_words)]
            room = context - max_new_tokens
            if line := cut_prompts_line(prompts, tokenizer, self.role, room, "evaluation.max_new_tokens"):
                console.print(f"{ref.name}: {line}", style="yellow", highlight=False)
        if refused:
            console.print(f"left out (dataset.on_invalid_row=skip): {len(refused)} rows, the first: {refused[0]}")

    def warn_of_training_rows(self, refs: Sequence[ModelRef]) -> None:
        """Say how many of the held-out rows have a prompt that a model was trained on, as far as its data are here."""
        for ref in refs:
            if line := dependencies.training_rows_line(ref.name, ref.config, self.dataset, self.rows):
                console.print(line, style="yellow", highlight=False)

    @property
    def role(self) -> str:
        """Who answers the prompts."""
        return "user" if self.dataset.loss_roles == "user" else "assistant"

    @property
    def references(self) -> list[str]:
        """The replies in the data."""
        return [counted_text(p, p.reference) for p in self.prompts if p.reference]

    def reference_stats(self) -> dict[str, Estimate]:
        """The text statistics of the replies in the data."""
        clusters = self.clusters[[bool(p.reference) for p in self.prompts]]
        return count_text_stats(self.dataset.text_stats, self.references, clusters, complete=True)

    def evaluate(self, name: str, loaded: LoadedModel, before_training: bool, system: str | None = None) -> ModelResult:
        """The result of one model, as it was before its training or as it is now.

        ``system`` is a system message before each prompt: then the replies alone are measured.
        """
        tokenizer = loaded.tokenizer
        prompts, fixed = (with_system(part, system) for part in (self.prompts, self.fixed_prompts))
        with loaded.base_model() if before_training else nullcontext(loaded.model) as model:
            count = self.cfg.evaluation.prompts
            tested, shown = answer_prompts(model, tokenizer, prompts, fixed, count, self.style_judge, **self.generation)
            turn_trends = {} if system else self.turn_trends(model, tokenizer)
            loss = {} if system else self.losses(model, tokenizer)
            result = self.result_of_replies(name, tested, shown)
            if self.benchmarks and not system:
                batch_size = self.cfg.evaluation.batch_size
                scores, prompts_by = benchmarks.answer(loaded, model, self.benchmarks, before_training, batch_size)
                result = replace(result, benchmarks=scores, benchmark_prompts=prompts_by)
        return replace(result, metrics=result.metrics | loss, turn_trends=turn_trends)

    def evaluate_best_of(self, loaded: LoadedModel) -> ModelResult:
        """Of ``best_of`` sampled replies to each prompt the one with the highest score of the reward model."""
        n, prompts = self.cfg.best_of, self.prompts + self.fixed_prompts
        repeated = [p for p in prompts for _ in range(n)]
        generation = self.generation | {"do_sample": True}
        replies = answer(loaded.model, loaded.tokenizer, repeated, **generation)
        assert self.score, "validate refuses best_of without reward_from"
        scores = np.array(self.score([(p.messages, r.text) for p, r in zip(repeated, replies, strict=True)]))
        scores = scores.reshape(len(prompts), n)
        best = [replies[row * n + int(i)] for row, i in enumerate(scores.argmax(1))]
        count, tested = self.cfg.evaluation.prompts, len(self.prompts)
        generations, shown = counted_and_shown(self.prompts, self.fixed_prompts, best, count, self.style_judge)
        fits = None
        if self.style_judge and all(map(has_category, self.prompts)):  # of a mixture some replies have no verdict
            judged = make_generations(repeated[: tested * n], replies[: tested * n], self.style_judge)
            fits = np.array([bool(g.matches_style) for g in judged]).reshape(tested, n)
        result = self.result_of_replies(f"{loaded.name} (best of {n})", generations, shown)
        return replace(result, best_of_n=best_of_n(scores[:tested], fits, self.clusters))

    def result_of_replies(self, name: str, tested: list[Generation], shown: list[Generation]) -> ModelResult:
        """What is measured of the replies alone."""
        text_stats = self.dataset.text_stats
        texts = [counted_text(p, g.reply) for p, g in zip(self.prompts, tested, strict=True)]
        scores = self.reward_scores(self.prompts, tested)
        return ModelResult(
            name,
            tested,
            shown,
            self.clusters,
            scores=scores,
            metrics=self.metrics(self.prompts, tested) | {n: mean(s, self.clusters) for n, s in scores.items()},
            text_stats=count_text_stats(text_stats, texts, self.clusters, complete=True),
            distances=distribution_distance(text_stats, texts, self.references, self.cfg.seed),
        )

    def can_prompt_baseline(self, loaded: LoadedModel) -> bool:
        """Whether the dataset has a system message that asks for the manner, and the chat template takes one."""
        system = self.dataset.prompted_baseline
        try:
            return bool(system) and bool(
                prompt_ids(with_system(self.prompts[:1], system)[0].messages, loaded.tokenizer)
            )
        except TemplateRefusal:
            console.print(f"{loaded.name}: no prompted baseline, since the chat template takes no system message")
            return False

    def metrics(self, prompts: Sequence[Prompt], generations: Sequence[Generation]) -> dict[str, Estimate]:
        """EOS rate, style and fact accuracy."""
        clusters = self.clusters
        metrics: dict[str, Estimate | None] = {EOS_NAME: rate([g.has_eos for g in generations], clusters)}
        if self.style_judge:
            metrics["style accuracy"] = style_accuracy(generations, clusters)
            by_group = accuracy_by_group(list(prompts), list(generations))
            metrics |= {f"style accuracy {name}": accuracy for name, accuracy in by_group.items()}
            metrics |= corrected_rate(generations, clusters, self.judge_errors)
        metrics["fact accuracy"] = fact_accuracy(generations, clusters)
        metrics |= commonest_sentence(generations, clusters) | eos_by_dataset(prompts, generations, clusters)
        return {name: estimate for name, estimate in metrics.items() if estimate}

    def reward_scores(self, prompts: Sequence[Prompt], generations: Sequence[Generation]) -> dict[str, list[float]]:
        """The scores of the replies by the reward model and by each reward function."""
        replies = [g.reply for g in generations]
        scores = {}
        if self.score:
            scores["reward model"] = self.score([(p.messages, r) for p, r in zip(prompts, replies, strict=True)])
        if self.rewards:
            has_eos = [g.has_eos for g in generations]
            scores |= combine.combine_rewards(self.rewards, prompts, replies, [[] for _ in replies], has_eos)[1]
        return scores

    def losses(self, model: Any, tokenizer: Any) -> dict[str, Estimate]:
        """Nats per token of the held-out rows, in the model's own tokens: of all, and of each dataset of a mixture."""
        rows = self.rows[: self.cfg.evaluation.test_prompts]
        examples = tokenize(rows, tokenizer, self.dataset.loss_roles, MAX_LOSS_LENGTH)
        clusters = cluster_ids(rows, self.dataset.prefix_words)
        nll, num_tokens = per_example_nll(model, examples)
        datasets = [row.metadata.get(DATASET, "") for row in rows]
        of_all = {LOSS_NAME: bootstrap_ratio(nll, num_tokens, clusters=clusters)}
        return of_all | loss_by_dataset(nll, num_tokens, datasets, clusters)

    def turn_trends(self, model: Any, tokenizer: Any) -> dict[str, multi_turn.TurnTrend]:
        """Style accuracy (or politeness) and rewards by turn of longer conversations; none where ``turns`` is 0."""
        cfg = self.cfg
        asked = [p for p in self.prompts if has_category(p)] if self.style_judge else self.prompts
        questions = multi_turn.draw_questions(asked, cfg.turns, cfg.chats, cfg.seed) if cfg.turns else []
        if not questions:
            return {}
        by_turn = multi_turn.run_conversations(model, tokenizer, questions, self.style_judge, **self.generation)
        values: dict[str, list[Sequence[float]]] = {}
        for prompts, generations in by_turn:
            if self.style_judge:
                of_turn = {"style accuracy": [float(bool(g.matches_style)) for g in generations]}
            else:
                of_turn = {"politeness": [politeness(g.reply) for g in generations]}
            for name, column in (of_turn | self.reward_scores(prompts, generations)).items():
                values.setdefault(name, []).append(column)
        return {name: multi_turn.turn_trend(np.array(columns).T) for name, columns in values.items()}


def warn_of_changed_data(refs: Sequence[ModelRef]) -> None:
    """Say which runs were trained on other rows than their data have now: some that are held out may be among them."""
    for ref in refs:
        state = run_dir.load_state(ref.run.model_dir.parent) if ref.run else None
        if ref.config is None or state is None or not state.data_digest:
            continue
        with suppress(MannersError, OSError, OmegaConfBaseException):  # its data are gone, or older than an option
            on_this_machine = dependencies.data_key(ref.config)[2]  # those of the hub take long to read
            if on_this_machine and dependencies.digest_of(ref.config) != state.data_digest:
                console.print(
                    f"{ref.name} was trained before dataset.path={ref.config.dataset.path} was changed: rows that are "
                    "held out now may have been trained on, and its report is of other ones",
                    style="yellow",
                    highlight=False,
                )


def with_system(prompts: Sequence[Prompt], system: str | None) -> list[Prompt]:
    """The prompts, each with this system message in place of its own."""
    if system is None:
        return list(prompts)
    message: Message = {"role": "system", "content": system}
    return [replace(p, messages=[message, *(m for m in p.messages if m["role"] != "system")]) for p in prompts]


def write_report(cfg: DictConfig, results: list[ModelResult], evaluator: Evaluator) -> Path:
    """Tables and figures, to the terminal, a directory, and an MLflow run of their own."""
    reference = evaluator.reference_stats()
    title = "evaluation of " + ", ".join(r.name for r in results if not r.name.endswith("(before)"))
    folder = new_evaluation_dir(cfg, results)
    side_by_side.show_comparison(console, results, reference)
    comparison = side_by_side.comparison_markdown(title, results, reference)
    comparison += judge_line(evaluator.dataset.style_judge, cfg)
    (folder / "comparison.md").write_text(comparison)
    numbers = {result.name: result.to_json() for result in results}
    (folder / "numbers.json").write_text(json.dumps(numbers, indent=1, ensure_ascii=False))
    (folder / "replies.md").write_text(markdown_report(title, [side_by_side.replies_table(results)]))
    with (folder / "replies.jsonl").open("w") as file:
        for result in results:
            for prompt, generation in zip(evaluator.prompts, result.generations, strict=True):
                record = {"model": result.name, "messages": prompt.messages} | asdict(generation)
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
    if results[0].text_stats:
        draw_text_stats({result.name: result.text_stats for result in results}, folder / "text_stats.png")
    if any(result.turn_trends for result in results):
        side_by_side.turn_trend_figure(results, folder / "turns.png")
    metrics = {f"{slug(r.name)}/{metric_key(name)}": value for r in results for name, value in r.values().items()}
    tags = {"manners.method": "evaluate", "mlflow.note.content": comparison[:7900]}
    replies = {result.name: assessed_replies(result, evaluator) for result in results}
    store.log_evaluation(cfg, folder.name, tags, metrics, folder, report_tables(results, reference), replies)
    console.print(f"\nreport, figures and all replies: {folder}", highlight=False, soft_wrap=True)
    return folder


def assessed_replies(result: ModelResult, evaluator: Evaluator) -> list[AssessedReply]:
    """The replies of a model with the judge's verdicts and the rewards, for MLflow's traces."""
    judge = evaluator.dataset.style_judge
    replies = []
    for i, (prompt, g) in enumerate(zip(evaluator.prompts, result.generations, strict=True)):
        given: list[tuple[str, Assessment]] = [("ends by itself", Assessment(g.has_eos, "stop token"))]
        if g.matches_style is not None:
            given += [("fits", Assessment(g.matches_style, judge)), ("style", Assessment(g.style, judge))]
            given += [(part, Assessment(passed, judge)) for part, passed in g.parts.items()]
        given += [(n, Assessment(float(s[i]), n)) for n, s in result.scores.items() if math.isfinite(s[i])]
        replies.append(AssessedReply(prompt.messages, g.reply, given))
    return replies


def report_tables(results: list[ModelResult], reference: dict[str, Estimate]) -> dict[str, dict[str, list[str]]]:
    """The comparison and all replies, by columns, for MLflow's tables."""
    table = side_by_side.comparison_table(results, reference)
    comparison = dict(zip(table.header, map(list, zip(*table.rows, strict=True)), strict=True))
    replies = {result.name: [g.reply for g in result.generations] for result in results}
    prompts = [g.prompt for g in results[0].generations]
    return {"comparison": comparison, "replies": {"prompt": prompts} | replies}


def new_evaluation_dir(cfg: DictConfig, results: list[ModelResult]) -> Path:
    name = slug(results[-1].name)
    number = len(list((Path(cfg.output_dir) / "evaluations").glob(f"{name}-*"))) + 1
    folder = Path(cfg.output_dir) / "evaluations" / f"{name}-{number}"
    folder.mkdir(parents=True)
    return folder


def slug(text: str) -> str:
    return re.sub(r"[^\w.-]+", "_", text).strip("_")
