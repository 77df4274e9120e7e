"""``evaluate.py``: models side by side, on the same prompts, by the same counts."""

import json
import re
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from manners.config import schema
from manners.data import loading
from manners.data.tokenize import tokenize
from manners.data.types import Conversation, Prompt, prompts_of
from manners.errors import MannersError
from manners.evaluation import multi_turn
from manners.evaluation.evaluate import Generation, counted_text, generate_replies, per_example_nll, stratified_sample
from manners.evaluation.metrics import text_stats
from manners.evaluation.metrics.assistant_style import politeness
from manners.evaluation.reports import side_by_side, text_stats_figure
from manners.evaluation.reports.side_by_side import ModelResult
from manners.evaluation.stats import Estimate, bootstrap_ratio, proportion
from manners.pipeline import model_ref
from manners.pipeline.model_ref import LoadedModel, ModelRef
from manners.rewards import combine
from manners.runtime.device import resolve_device
from manners.tracking import store

console = Console()
MAX_MODELS = 5  # models side by side
MAX_LENGTH = 512  # tokens of a held-out row that count


def evaluate_models(cfg: DictConfig) -> Path:
    """Ask, count, score and show; returns the folder of the report."""
    warnings.filterwarnings("ignore", category=FutureWarning)  # what libraries tell each other
    warnings.filterwarnings("ignore", message="Already unmerged")
    device = resolve_device(cfg.hardware.accelerator, cfg.hardware.precision, cfg.hardware.num_threads).kind
    names = [cfg.run] if isinstance(cfg.run, str) else list(cfg.run)
    chosen = [model_ref.resolve_model(name, cfg) for name in names]
    if len(names) + cfg.base * len({base_name(one) for one in chosen}) > MAX_MODELS:
        raise MannersError(
            f"run={names}: with their bases more than {MAX_MODELS} models, which no figure shows well.",
            "run",
        )
    data = dataset_of(cfg, chosen)
    splits = loading.load_splits(data)
    role = "user" if data.loss_roles == "user" else "assistant"
    asked = prompts_of(splits.test or splits.validation, role, data.prefix_words)[: cfg.evaluation.test_prompts]
    if not asked:
        raise MannersError(f"dataset.path={data.path} holds no rows out: set dataset.test_share above 0.")
    shown = loading.eval_prompts(data) or stratified_sample(asked, cfg.evaluation.prompts)
    judge = Evaluator(cfg, data, splits.test or splits.validation, chosen, device, role)
    heard: list[ModelResult] = []
    for one in chosen:
        loaded = model_ref.load_model_ref(one, device)
        if cfg.base and loaded.num_targets and (base := f"{base_name(one)} (before)") not in [h.name for h in heard]:
            heard.append(evaluate_model(base, loaded, True, asked, shown, judge))
        heard.append(evaluate_model(loaded.name, loaded, False, asked, shown, judge))
    return write_report(cfg, heard, judge, asked)


def dataset_of(cfg: DictConfig, chosen: Sequence[ModelRef]) -> DictConfig:
    """The dataset that the command names, or that of the first run which was trained on one."""
    if cfg.dataset is not None:
        return cfg.dataset
    for one in chosen:
        if one.config is not None:
            return OmegaConf.merge(OmegaConf.structured(schema.DatasetConfig), one.config.dataset)  # type: ignore[return-value]
    raise MannersError("none of these models is a run of ours: name the prompts, dataset=strictbot.", "dataset")


def base_name(one: ModelRef) -> str:
    return Path(str(one.config.model.name)).name if one.config else one.name


class Evaluator:
    """What is asked of every model alike, and what is made of its replies."""

    def __init__(
        self,
        cfg: DictConfig,
        data: DictConfig,
        held_out: list[Conversation],
        chosen: Sequence[ModelRef],
        device: str,
        role: str,
    ):
        self.cfg, self.judged, self.card = cfg, data.style_judge != "none", data.text_stats
        self.held_out, self.loss_roles = held_out, data.loss_roles
        e = cfg.evaluation
        self.settings: dict[str, Any] = {
            "max_new_tokens": e.max_new_tokens,
            "batch_size": e.batch_size,
            "do_sample": e.do_sample,
            "temperature": e.temperature,
            "seed": cfg.seed,
            "role": role,
        }
        source = model_ref.resolve_reward_model(cfg, chosen)
        self.model = model_ref.load_scorer(source, device) if source else None
        spec = OmegaConf.to_container(cfg.rewards, resolve=True)
        self.functions = combine.build_components(spec, None) if spec else {}  # type: ignore[arg-type]

    def scores(self, asked: Sequence[Prompt], answers: Sequence[Generation]) -> dict[str, list[float]]:
        """What each reward makes of each reply, by the reward's name."""
        replies = [a.reply for a in answers]
        found = {}
        if self.model:
            found["reward model"] = self.model([(p.messages, r) for p, r in zip(asked, replies, strict=True)])
        if self.functions:
            ended = [a.ended for a in answers]
            found |= combine.combine_rewards(self.functions, asked, replies, [[] for _ in replies], ended)[1]
        return found

    def numbers(self, asked: Sequence[Prompt], answers: Sequence[Generation]) -> dict[str, Estimate]:
        found = {"replies that end by themselves": proportion(sum(a.ended for a in answers), len(answers))}
        if self.judged:
            found["manner fits"] = proportion(sum(bool(a.fits) for a in answers), len(answers))
        facts = [a.right for a in answers if a.right is not None]
        if facts:  # does the manner change the content?
            found["names the right fact"] = proportion(sum(facts), len(facts))
        return found | {name: bootstrap_mean(values) for name, values in self.scores(asked, answers).items()}

    def loss(self, model: Any, tokenizer: Any) -> Estimate:
        """Nats a token of the held-out rows, in the model's own tokens."""
        return bootstrap_ratio(*per_example_nll(model, tokenize(self.held_out, tokenizer, self.loss_roles, MAX_LENGTH)))

    def by_turn(self, model: Any, tokenizer: Any, asked: Sequence[Prompt]) -> dict[str, multi_turn.TurnTrend]:
        sides = (
            multi_turn.draw_questions(asked, self.cfg.turns, self.cfg.chats, self.cfg.seed) if self.cfg.turns else []
        )
        if not sides:
            return {}
        found: dict[str, list[Sequence[float]]] = {}
        for chats, answers in multi_turn.run_conversations(model, tokenizer, sides, self.judged, **self.settings):
            measured = {"politeness": [politeness(a.reply) for a in answers]} | self.scores(chats, answers)
            if self.judged:
                measured = {"manner fits": [float(bool(a.fits)) for a in answers]} | self.scores(chats, answers)
            for name, values in measured.items():
                found.setdefault(name, []).append(values)
        return {name: multi_turn.turn_trend(np.array(values).T) for name, values in found.items()}


def evaluate_model(
    name: str, loaded: LoadedModel, before: bool, asked: Sequence[Prompt], shown: Sequence[Prompt], judge: Evaluator
) -> ModelResult:
    """One model on all prompts; ``before`` its training or after it."""
    with loaded.before() if before else nullcontext(loaded.model) as model:
        answers = generate_replies(model, loaded.tokenizer, [*asked, *shown], judge.judged, **judge.settings)
        fading = judge.by_turn(model, loaded.tokenizer, asked)
        loss, told = judge.loss(model, loaded.tokenizer), run_lm_eval(judge.cfg, model, loaded.tokenizer)
    ours, theirs = answers[: len(asked)], answers[len(asked) :]
    replies, data = [counted_text(p, a.reply) for p, a in zip(asked, ours, strict=True)], reference_replies(asked)
    return ModelResult(
        name,
        ours,
        theirs,
        numbers=judge.numbers(asked, ours) | {"held-out loss, nats/token": loss},
        card=text_stats.text_stats(judge.card, replies, whole=True),
        apart=text_stats.distribution_distance(judge.card, replies, data, judge.cfg.seed),
        fading=fading,
        benchmarks=told,
    )


def reference_replies(asked: Sequence[Prompt]) -> list[str]:
    """The data's own replies."""
    return [counted_text(p, p.reference) for p in asked if p.reference]


def run_lm_eval(cfg: DictConfig, model: Any, tokenizer: Any) -> dict[str, Estimate]:
    """Standard benchmarks by lm-eval, where some are asked for."""
    if not cfg.lm_eval:
        return {}
    from manners.evaluation.metrics import lm_eval

    return lm_eval.run_lm_eval(model, tokenizer, list(cfg.lm_eval), cfg.evaluation.batch_size, None)


def bootstrap_mean(values: Sequence[float]) -> Estimate:
    return bootstrap_ratio(np.array(values, dtype=float), np.ones(len(values)))


def write_report(cfg: DictConfig, heard: list[ModelResult], judge: Evaluator, asked: Sequence[Prompt]) -> Path:
    """Tables and figures: to the terminal, a folder, and a run of its own in the tracking store."""
    reference = text_stats.text_stats(judge.card, reference_replies(asked), whole=True)
    title = "evaluation of " + ", ".join(h.name for h in heard if not h.name.endswith("(before)"))
    folder = new_evaluation_dir(cfg, heard)
    side_by_side.show_replies(console, heard, cfg.evaluation.prompts)
    side_by_side.show_comparison(console, heard, reference)
    card = side_by_side.card_markdown(title, heard, reference)
    (folder / "report_card.md").write_text(card)
    (folder / "before_after.md").write_text(side_by_side.replies_markdown(title, heard))
    with (folder / "replies.jsonl").open("w") as file:
        for h in heard:
            for prompt, answer in zip(asked, h.answers, strict=True):
                record = {"model": h.name, "messages": prompt.messages} | asdict(answer)
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
    if heard[0].card:
        text_stats_figure.draw_text_stats({h.name: h.card for h in heard}, folder / "card.png")
    if any(h.fading for h in heard):
        side_by_side.turn_trend_figure(heard, folder / "turns.png")
    metrics = {f"{slug(h.name)}/{slug(k)}": v for h in heard for k, v in h.metrics().items()}
    tags = {"manners.method": "evaluate", "mlflow.note.content": card[:7900]}
    store.log_evaluation(cfg, folder.name, tags, metrics, folder, report_tables(heard, reference))
    console.print(f"\nreport, figure and all replies: {folder}", highlight=False, soft_wrap=True)
    return folder


def report_tables(heard: list[ModelResult], reference: dict[str, Estimate]) -> dict[str, dict[str, list[str]]]:
    """The report card and all replies, by columns, for the tracking store's own tables."""
    names = [h.name for h in heard]
    lines = side_by_side.comparison_rows(heard, reference)
    card = dict(zip(["measure", *names, "in the data"], map(list, zip(*lines, strict=True)), strict=True))
    said = {h.name: [a.reply for a in h.answers] for h in heard}
    return {"report_card": card, "replies": {"prompt": [a.prompt for a in heard[0].answers]} | said}


def new_evaluation_dir(cfg: DictConfig, heard: list[ModelResult]) -> Path:
    name = slug(heard[-1].name)
    taken = len(list((Path(cfg.output_dir) / "evaluations").glob(f"{name}-*")))
    folder = Path(cfg.output_dir) / "evaluations" / f"{name}-{taken + 1}"
    folder.mkdir(parents=True)
    return folder


def slug(text: str) -> str:
    return re.sub(r"[^\w.-]+", "_", text).strip("_")
