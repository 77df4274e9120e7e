"""The longest batches of a run: what needs the most memory, for the prediction and for the probe alike."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from manners.data.batching import Batch, collate, pack
from manners.data.prompt_groups import collate_groups
from manners.data.tokenize import prompt_text, tokenize
from manners.data.types import Conversation, Message, Prompt, preference_pairs, scored_replies
from manners.evaluation.evaluate import stratified_sample
from manners.methods.ppo.rollout import encode_prompts
from manners.models.reward_model import ScoreNormalizer, supports_shared_prompts
from manners.pipeline.stages import ppo, reward
from manners.pipeline.stages.context import RunContext, build_prompts, total_steps


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


def lessons(run: RunContext, tokenizer: Any, network: Any) -> Lessons:
    """``network`` is the reward model, whose kind decides how its rows look; SFT needs none."""
    cfg, m = run.cfg, run.cfg.method
    kept_back = run.splits.validation or run.splits.test
    if m.name == "sft":
        made = [
            tokenize(chats, tokenizer, cfg.dataset.loss_roles, m.max_length) for chats in (run.splits.train, kept_back)
        ]
        if m.packing:
            made[0] = pack(made[0], m.max_length)
        together: Callable[[list[Any]], Batch] = partial(collate, pad=tokenizer.pad_token_id)
    else:
        share = supports_shared_prompts(network)
        units = (
            ScoreNormalizer()
            if m.loss == "pairwise"
            else ScoreNormalizer.from_scores([r.score for r in scored_replies(run.splits.train)])
        )
        made = [reward.build_examples(run, chats, tokenizer, units, share) for chats in (run.splits.train, kept_back)]  # type: ignore[misc]
        together = partial(collate_groups, pad=tokenizer.pad_token_id, share_prompt=share)
    train: list[Any] = made[0]
    longest = top(train, m.per_device_train_batch_size, lambda e: e.length)
    mean = sum(e.length for e in train) / len(train)
    return Lessons(
        longest,
        top(made[1], m.per_device_eval_batch_size, lambda e: e.length),
        together,
        total_steps(cfg, len(train)),
        mean / longest[0].length,
    )


def questions(run: RunContext, tokenizer: Any) -> Questions:
    cfg, s = run.cfg, run.cfg.method
    asked = build_prompts(cfg, run.splits.train)
    lengths = [len(ids) for ids in encode_prompts(asked, tokenizer, s.max_prompt_length)]
    copies = s.get("num_generations", 1)
    order = sorted(range(len(asked)), key=lambda i: -lengths[i])
    chosen = [order[i % len(order)] for i in range(s.batch_size // copies)]
    held_out = stratified_sample(build_prompts(cfg, run.splits.validation or run.splits.test), s.num_eval_prompts)
    whole = lengths[order[0]] + s.response_length
    return Questions(
        [asked[i] for i in chosen for _ in range(copies)],
        held_out,
        -(-s.total_episodes // s.batch_size),
        (sum(lengths) / len(lengths) + s.response_length) / whole,
    )


def shortened(run: RunContext) -> RunContext:
    """The run with only the longest of its held-out rows: as many as are answered at once before training."""
    at_once = ppo.KL_SAMPLE_PROMPTS if run.cfg.method.sample_type == "prompt" else run.cfg.evaluation.batch_size
    rows = run.splits.test or run.splits.validation
    rows = top(rows, at_once, lambda chat: sum(len(m["content"]) for m in chat.messages))
    return replace(run, splits=replace(run.splits, test=rows))


def examined(run: RunContext) -> list[tuple[list[Message], str]]:
    """Replies that a reward model reads at once after its training, all of them the longest."""
    rows = run.splits.test or run.splits.validation
    if run.cfg.method.loss == "pairwise":
        found = [(p.messages, r) for p in preference_pairs(rows) for r in (p.chosen, p.rejected)]
    else:
        found = [(r.messages, r.reply) for r in scored_replies(rows)]
    return top(found, 1024, lambda one: len(one[1]) + sum(len(m["content"]) for m in one[0]))


def prompts(run: RunContext, chats: Sequence[Conversation], tokenizer: Any) -> list[list[int]]:
    """Token ids of what ``chats`` give the model to answer."""
    role = "user" if run.cfg.dataset.loss_roles == "user" else "assistant"
    texts = [prompt_text(p.messages, tokenizer, role) for p in build_prompts(run.cfg, list(chats))]
    return list(tokenizer(texts, add_special_tokens=False)["input_ids"]) if texts else []


def top(found: Sequence[Any], count: int, length: Callable[[Any], int]) -> list[Any]:
    return sorted(found, key=length, reverse=True)[:count]
