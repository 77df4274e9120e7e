"""The longest batches of a run: what needs the most memory, for the prediction and for the probe alike."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from manners.data.batches import Batch, collate, pack
from manners.data.encode import encode, prompt_text
from manners.data.rows import Chat, Message, Prompt, pairs, scored
from manners.data.siblings import collate_families
from manners.evaluation.measure import evenly
from manners.methods.ppo.rollout import encode_prompts
from manners.models.reward import Units, shares_prompts
from manners.stages import online, reward
from manners.stages.run import Run, steps_of, waiting


@dataclass(frozen=True)
class Lessons:
    """What a Lightning run learns from: one micro-batch and one validation batch, of the longest examples."""

    train: list[Any]
    validation: list[Any]
    together: Callable[[list[Any]], Batch]
    steps: int  # optimizer steps of the whole run
    share: float  # mean length of an example over that of the longest


@dataclass(frozen=True)
class Questions:
    """What a PPO run asks: the longest prompts of an iteration, and of an evaluation on held-out ones."""

    train: list[Prompt]
    held_out: list[Prompt]
    iterations: int
    share: float  # mean length of prompt and reply over the longest, if every reply is as long as it may be


def lessons(run: Run, tokenizer: Any, network: Any) -> Lessons:
    """``network`` is the reward model, whose kind decides how its rows look; SFT needs none."""
    cfg, m = run.cfg, run.cfg.method
    kept_back = run.splits.validation or run.splits.test
    if m.name == "sft":
        made = [encode(chats, tokenizer, cfg.dataset.train_on, m.max_length) for chats in (run.splits.train, kept_back)]
        if m.packing:
            made[0] = pack(made[0], m.max_length)
        together: Callable[[list[Any]], Batch] = partial(collate, pad=tokenizer.pad_token_id)
    else:
        share = shares_prompts(network)
        units = Units() if m.loss == "pairwise" else Units.of([r.score for r in scored(run.splits.train)])
        made = [reward.lessons(run, chats, tokenizer, units, share) for chats in (run.splits.train, kept_back)]  # type: ignore[misc]
        together = partial(collate_families, pad=tokenizer.pad_token_id, share=share)
    train: list[Any] = made[0]
    longest = top(train, m.per_device_train_batch_size, lambda e: e.length)
    mean = sum(e.length for e in train) / len(train)
    return Lessons(
        longest,
        top(made[1], m.per_device_eval_batch_size, lambda e: e.length),
        together,
        steps_of(cfg, len(train)),
        mean / longest[0].length,
    )


def questions(run: Run, tokenizer: Any) -> Questions:
    cfg, s = run.cfg, run.cfg.method
    asked = waiting(cfg, run.splits.train)
    lengths = [len(ids) for ids in encode_prompts(asked, tokenizer, s.max_prompt_length)]
    copies = s.get("num_generations", 1)
    order = sorted(range(len(asked)), key=lambda i: -lengths[i])
    chosen = [order[i % len(order)] for i in range(s.batch_size // copies)]
    held_out = evenly(waiting(cfg, run.splits.validation or run.splits.test), s.eval_prompts)
    whole = lengths[order[0]] + s.response_length
    return Questions(
        [asked[i] for i in chosen for _ in range(copies)],
        held_out,
        -(-s.total_episodes // s.batch_size),
        (sum(lengths) / len(lengths) + s.response_length) / whole,
    )


def shortened(run: Run) -> Run:
    """The run with only the longest of its held-out rows: as many as are answered at once before training."""
    at_once = online.SAMPLED if run.cfg.method.view == "prompt" else run.cfg.evaluation.batch_size
    rows = run.splits.test or run.splits.validation
    rows = top(rows, at_once, lambda chat: sum(len(m["content"]) for m in chat.messages))
    return replace(run, splits=replace(run.splits, test=rows))


def examined(run: Run) -> list[tuple[list[Message], str]]:
    """Replies that a reward model reads at once after its training, all of them the longest."""
    rows = run.splits.test or run.splits.validation
    if run.cfg.method.loss == "pairwise":
        found = [(p.messages, r) for p in pairs(rows) for r in (p.chosen, p.rejected)]
    else:
        found = [(r.messages, r.reply) for r in scored(rows)]
    return top(found, 1024, lambda one: len(one[1]) + sum(len(m["content"]) for m in one[0]))


def prompts(run: Run, chats: Sequence[Chat], tokenizer: Any) -> list[list[int]]:
    """Token ids of what ``chats`` give the model to answer."""
    role = "user" if run.cfg.dataset.train_on == "user" else "assistant"
    texts = [prompt_text(p.messages, tokenizer, role) for p in waiting(run.cfg, list(chats))]
    return list(tokenizer(texts, add_special_tokens=False)["input_ids"]) if texts else []


def top(found: Sequence[Any], count: int, length: Callable[[Any], int]) -> list[Any]:
    return sorted(found, key=length, reverse=True)[:count]
