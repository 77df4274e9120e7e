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

from manners import config, hardware, speaker, store
from manners.data import readers
from manners.data.encode import encode
from manners.data.rows import Chat, Prompt, prompts
from manners.errors import MannersError
from manners.evaluation import card_figure, cards, side_by_side, turns
from manners.evaluation.manner import politeness
from manners.evaluation.measure import Answer, evenly, listen, losses, whole_text
from manners.evaluation.side_by_side import Heard
from manners.evaluation.stats import Estimate, ratio, share
from manners.methods import rewards
from manners.speaker import Chosen, Speaker

console = Console()
MOST = 5  # models side by side
LONGEST = 512  # tokens of a held-out row that count


def run(cfg: DictConfig) -> Path:
    """Ask, count, score and show; returns the folder of the report."""
    warnings.filterwarnings("ignore", category=FutureWarning)  # what libraries tell each other
    warnings.filterwarnings("ignore", message="Already unmerged")
    device = hardware.resolve(cfg.hardware.accelerator, cfg.hardware.precision, cfg.hardware.num_threads).kind
    names = [cfg.run] if isinstance(cfg.run, str) else list(cfg.run)
    chosen = [speaker.choose(name, cfg) for name in names]
    if len(names) + cfg.base * len({base_name(one) for one in chosen}) > MOST:
        raise MannersError(f"run={names}: with their bases more than {MOST} models, which no figure shows well.", "run")
    data = dataset_of(cfg, chosen)
    splits = readers.read(data)
    role = "user" if data.train_on == "user" else "assistant"
    asked = prompts(splits.test or splits.validation, role, data.prompt_words)[: cfg.evaluation.test_prompts]
    if not asked:
        raise MannersError(f"dataset.path={data.path} holds no rows out: set dataset.test_share above 0.")
    shown = readers.eval_prompts(data) or evenly(asked, cfg.evaluation.prompts)
    judge = Judge(cfg, data, splits.test or splits.validation, chosen, device, role)
    heard: list[Heard] = []
    for one in chosen:
        loaded = speaker.load(one, device)
        if cfg.base and loaded.trained and (base := f"{base_name(one)} (before)") not in [h.name for h in heard]:
            heard.append(hear(base, loaded, True, asked, shown, judge))
        heard.append(hear(loaded.name, loaded, False, asked, shown, judge))
    return publish(cfg, heard, judge, asked)


def dataset_of(cfg: DictConfig, chosen: Sequence[Chosen]) -> DictConfig:
    """The dataset that the command names, or that of the first run which was trained on one."""
    if cfg.dataset is not None:
        return cfg.dataset
    for one in chosen:
        if one.config is not None:
            return OmegaConf.merge(OmegaConf.structured(config.Dataset), one.config.dataset)  # type: ignore[return-value]
    raise MannersError("none of these models is a run of ours: name the prompts, dataset=strictbot.", "dataset")


def base_name(one: Chosen) -> str:
    return Path(str(one.config.model.name)).name if one.config else one.name


class Judge:
    """What is asked of every model alike, and what is made of its replies."""

    def __init__(
        self, cfg: DictConfig, data: DictConfig, held_out: list[Chat], chosen: Sequence[Chosen], device: str, role: str
    ):
        self.cfg, self.judged, self.card = cfg, data.judge != "none", data.card
        self.held_out, self.train_on = held_out, data.train_on
        e = cfg.evaluation
        self.settings: dict[str, Any] = {
            "max_new_tokens": e.max_new_tokens,
            "batch_size": e.batch_size,
            "do_sample": e.do_sample,
            "temperature": e.temperature,
            "seed": cfg.seed,
            "role": role,
        }
        source = speaker.choose_reward(cfg, chosen)
        self.model = speaker.scorer(source, device) if source else None
        spec = OmegaConf.to_container(cfg.rewards, resolve=True)
        self.functions = rewards.build(spec, None) if spec else {}  # type: ignore[arg-type]

    def scores(self, asked: Sequence[Prompt], answers: Sequence[Answer]) -> dict[str, list[float]]:
        """What each reward makes of each reply, by the reward's name."""
        replies = [a.reply for a in answers]
        found = {}
        if self.model:
            found["reward model"] = self.model([(p.messages, r) for p, r in zip(asked, replies, strict=True)])
        if self.functions:
            ended = [a.ended for a in answers]
            found |= rewards.total(self.functions, asked, replies, [[] for _ in replies], ended)[1]
        return found

    def numbers(self, asked: Sequence[Prompt], answers: Sequence[Answer]) -> dict[str, Estimate]:
        found = {"replies that end by themselves": share(sum(a.ended for a in answers), len(answers))}
        if self.judged:
            found["manner fits"] = share(sum(bool(a.fits) for a in answers), len(answers))
        facts = [a.right for a in answers if a.right is not None]
        if facts:  # does the manner change the content?
            found["names the right fact"] = share(sum(facts), len(facts))
        return found | {name: mean(values) for name, values in self.scores(asked, answers).items()}

    def loss(self, model: Any, tokenizer: Any) -> Estimate:
        """Nats a token of the held-out rows, in the model's own tokens."""
        return ratio(*losses(model, encode(self.held_out, tokenizer, self.train_on, LONGEST)))

    def by_turn(self, model: Any, tokenizer: Any, asked: Sequence[Prompt]) -> dict[str, turns.Fading]:
        sides = turns.questions(asked, self.cfg.turns, self.cfg.chats, self.cfg.seed) if self.cfg.turns else []
        if not sides:
            return {}
        found: dict[str, list[Sequence[float]]] = {}
        for chats, answers in turns.converse(model, tokenizer, sides, self.judged, **self.settings):
            measured = {"politeness": [politeness(a.reply) for a in answers]} | self.scores(chats, answers)
            if self.judged:
                measured = {"manner fits": [float(bool(a.fits)) for a in answers]} | self.scores(chats, answers)
            for name, values in measured.items():
                found.setdefault(name, []).append(values)
        return {name: turns.fading(np.array(values).T) for name, values in found.items()}


def hear(
    name: str, loaded: Speaker, before: bool, asked: Sequence[Prompt], shown: Sequence[Prompt], judge: Judge
) -> Heard:
    """One model on all prompts; ``before`` its training or after it."""
    with loaded.before() if before else nullcontext(loaded.model) as model:
        answers = listen(model, loaded.tokenizer, [*asked, *shown], judge.judged, **judge.settings)
        fading = judge.by_turn(model, loaded.tokenizer, asked)
        loss, told = judge.loss(model, loaded.tokenizer), benchmark(judge.cfg, model, loaded.tokenizer)
    ours, theirs = answers[: len(asked)], answers[len(asked) :]
    replies, data = [whole_text(p, a.reply) for p, a in zip(asked, ours, strict=True)], own(asked)
    return Heard(
        name,
        ours,
        theirs,
        numbers=judge.numbers(asked, ours) | {"held-out loss, nats/token": loss},
        card=cards.count(judge.card, replies, whole=True),
        apart=cards.apart(judge.card, replies, data, judge.cfg.seed),
        fading=fading,
        benchmarks=told,
    )


def own(asked: Sequence[Prompt]) -> list[str]:
    """The data's own replies."""
    return [whole_text(p, p.reference) for p in asked if p.reference]


def benchmark(cfg: DictConfig, model: Any, tokenizer: Any) -> dict[str, Estimate]:
    """Standard benchmarks by lm-eval, where some are asked for."""
    if not cfg.lm_eval:
        return {}
    from manners.evaluation import benchmarks

    return benchmarks.run(model, tokenizer, list(cfg.lm_eval), cfg.evaluation.batch_size, None)


def mean(values: Sequence[float]) -> Estimate:
    return ratio(np.array(values, dtype=float), np.ones(len(values)))


def publish(cfg: DictConfig, heard: list[Heard], judge: Judge, asked: Sequence[Prompt]) -> Path:
    """Tables and figures: to the terminal, a folder, and a run of its own in the tracking store."""
    reference = cards.count(judge.card, own(asked), whole=True)
    title = "evaluation of " + ", ".join(h.name for h in heard if not h.name.endswith("(before)"))
    folder = new_folder(cfg, heard)
    side_by_side.show_replies(console, heard, cfg.evaluation.prompts)
    side_by_side.show(console, heard, reference)
    card = side_by_side.card_markdown(title, heard, reference)
    (folder / "report_card.md").write_text(card)
    (folder / "before_after.md").write_text(side_by_side.replies_markdown(title, heard))
    with (folder / "replies.jsonl").open("w") as file:
        for h in heard:
            for prompt, answer in zip(asked, h.answers, strict=True):
                record = {"model": h.name, "messages": prompt.messages} | asdict(answer)
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
    if heard[0].card:
        card_figure.draw({h.name: h.card for h in heard}, folder / "card.png")
    if any(h.fading for h in heard):
        side_by_side.fading_figure(heard, folder / "turns.png")
    metrics = {f"{slug(h.name)}/{slug(k)}": v for h in heard for k, v in h.metrics().items()}
    tags = {"manners.method": "evaluate", "mlflow.note.content": card[:7900]}
    store.record(cfg, folder.name, tags, metrics, folder, tables(heard, reference))
    console.print(f"\nreport, figure and all replies: {folder}", highlight=False, soft_wrap=True)
    return folder


def tables(heard: list[Heard], reference: dict[str, Estimate]) -> dict[str, dict[str, list[str]]]:
    """The report card and all replies, by columns, for the tracking store's own tables."""
    names = [h.name for h in heard]
    lines = side_by_side.lines(heard, reference)
    card = dict(zip(["measure", *names, "in the data"], map(list, zip(*lines, strict=True)), strict=True))
    said = {h.name: [a.reply for a in h.answers] for h in heard}
    return {"report_card": card, "replies": {"prompt": [a.prompt for a in heard[0].answers]} | said}


def new_folder(cfg: DictConfig, heard: list[Heard]) -> Path:
    name = slug(heard[-1].name)
    taken = len(list((Path(cfg.output_dir) / "evaluations").glob(f"{name}-*")))
    folder = Path(cfg.output_dir) / "evaluations" / f"{name}-{taken + 1}"
    folder.mkdir(parents=True)
    return folder


def slug(text: str) -> str:
    return re.sub(r"[^\w.-]+", "_", text).strip("_")
