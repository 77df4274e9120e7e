"""The replies that a distillation samples, batch by batch, in a file that a killed command continues."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from manners.data.types import Conversation, Message, Prompt, data_digest
from manners.evaluation.evaluate import Generation, make_generations
from manners.evaluation.generate import generate_texts
from manners.pipeline import model_ref
from manners.pipeline.evaluate import with_system
from manners.pipeline.model_ref import ModelRef
from manners.pipeline.style_judge import judge_line, load_judge
from manners.runtime.device import inference_device
from manners.runtime.model_files import model_digest
from manners.runtime.progress import progress

Score = Callable[[Sequence[tuple[list[Message], str]]], list[float]]
ACCEPTED = "accepted"
NO_PART_OF_THE_REPLIES = ("tracking", "experiment_name", "output_dir", "hardware", "out")


@dataclass(frozen=True)
class Asked:
    """A row whose last turn the model writes anew."""

    split: str
    row: Conversation

    @property
    def prompt(self) -> Prompt:
        return Prompt(self.row.messages[:-1], self.row.messages[-1]["content"], self.row.metadata)


class SampleFile:
    """Batches of replies, one a line, below a line that says what they depend on."""

    def __init__(self, path: Path, fingerprint: str):
        """Read what a killed command has left in ``path``; what another command has left there is deleted."""
        self.path = path
        self.batches: list[dict[str, Any]] = []
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lines = path.read_bytes().split(b"\n") if path.exists() else []
        if lines[:1] == [fingerprint.encode()]:
            complete = lines[: max(len(lines) - 1, 1)]  # what follows the last line break is half a batch
            self.batches = [json.loads(line) for line in complete[1:]]
            os.truncate(path, sum(len(line) + 1 for line in complete))
        else:
            path.write_bytes(fingerprint.encode() + b"\n")

    def append(self, batch: dict[str, Any]) -> None:
        """Add a batch, which is on disk when this returns."""
        self.batches.append(batch)
        with self.path.open("ab") as file:
            file.write(json.dumps(batch, ensure_ascii=False).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())


def fingerprint_of(cfg: DictConfig, ref: ModelRef, rows: Sequence[Conversation]) -> str:
    """What the replies depend on: options, rows, and the weights of the model and of the reward model."""
    options: Any = OmegaConf.to_container(cfg, resolve=True)
    options = {key: value for key, value in options.items() if key not in NO_PART_OF_THE_REPLIES}
    reward = model_ref.resolve_reward_model(cfg, [ref])
    weights = [digest_of(one) for one in (ref, reward) if one]
    judge = judge_line(cfg.dataset.style_judge, cfg)  # with the weights of a classifier
    text = json.dumps([options, data_digest(rows), weights, judge], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def digest_of(ref: ModelRef) -> str:
    return ref.run.fingerprint if ref.run and ref.run.fingerprint else model_digest(ref.path)


def sample_batches(
    cfg: DictConfig, ref: ModelRef, asked: Sequence[Asked], system: str, skip: int
) -> Iterator[dict[str, Any]]:
    """The batches after the first ``skip``: ``kept``, pairs of an index of ``asked`` and its reply, and all ``fates``.

    Each batch has a seed of its own, so that it does not matter where a command was killed.
    """
    n = cfg.num_generations
    at_once = max(1, cfg.batch_size // n)
    batches = [range(len(asked))[start : start + at_once] for start in range(0, len(asked), at_once)]
    if skip == len(batches):
        return
    device = inference_device(cfg.hardware)
    loaded = model_ref.load_model_ref(ref, device.kind)
    judge = load_judge(cfg.dataset.style_judge, cfg, device.kind)
    reward = model_ref.resolve_reward_model(cfg, [ref])
    score = model_ref.load_scorer(reward, device.kind) if reward else None
    with device.autocast(), progress(len(batches), "sampling", completed=skip) as bar:
        for number in range(skip, len(batches)):
            prompts = [asked[i].prompt for i in batches[number] for _ in range(n)]
            replies = generate_texts(
                loaded.model,
                loaded.tokenizer,
                [prompt.messages for prompt in with_system(prompts, system)],
                cfg.max_new_tokens,
                cfg.batch_size,
                do_sample=True,
                temperature=cfg.temperature,
                seed=cfg.seed + number,
            )
            judged = make_generations(prompts, replies, judge)
            must_fit = judge is not None and score is None  # with a reward model, what no judge knows is scored
            fates = [fate_of(generation, must_fit) for generation in judged]
            kept = []
            for place, i in enumerate(batches[number]):
                own = slice(place * n, (place + 1) * n)
                fitting = [g.reply for g, fate in zip(judged[own], fates[own], strict=True) if fate == ACCEPTED]
                best = best_reply(asked[i].prompt, fitting, score, cfg.min_reward)
                kept += [(i, best)] if best is not None else []
            bar.update(number + 1)
            yield {"kept": kept, "fates": fates}


def fate_of(generation: Generation, must_fit: bool) -> str:
    """Whether a reply may be kept, or why not. ``must_fit`` leaves out the replies to prompts without a category."""
    if not generation.has_eos:
        return "does not end"
    if not generation.reply:
        return "empty"
    if generation.matches_style is None and must_fit:
        return "its row has no category to judge it by"
    return "does not fit" if generation.matches_style is False else ACCEPTED


def best_reply(prompt: Prompt, replies: Sequence[str], score: Score | None, minimum: float | None) -> str | None:
    """The reply with the highest score, if it is at least ``minimum``; without a reward model the first."""
    if not replies or score is None:
        return next(iter(replies), None)
    scores = score([(prompt.messages, reply) for reply in replies])
    best = max(range(len(replies)), key=scores.__getitem__)
    return replies[best] if minimum is None or scores[best] >= minimum else None
