"""The longest rows of a run: what needs the most memory, for the count and for the profile alike."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from manners.data.batching import collate, pack
from manners.data.loading import build_prompts
from manners.data.prompt_groups import collate_groups
from manners.data.tokenize import tokenize
from manners.data.types import Message, preference_pairs, scored_replies
from manners.evaluation.evaluate import stratified_sample
from manners.methods.ppo.rollout import encode_prompts
from manners.models.reward_model import ScoreNormalizer
from manners.pipeline.stages import ppo, reward
from manners.pipeline.stages.context import RunContext


@dataclass(frozen=True)
class WorstCaseBatch:
    """A training batch and an eval batch of the longest examples; for PPO and RLOO, of the longest prompts."""

    train: list[Any]
    eval: list[Any]
    length: int  # tokens of the longest row; for PPO and RLOO of the longest prompt and response
    targets: int  # tokens of a row with logits, at most
    num_rows: int  # of the training set
    mean_length: float  # of a row, over that of the longest
    collate: Any = None


def worst_case_batch(run: RunContext, tokenizer: Any) -> WorstCaseBatch:
    """The longest rows by their tokens, as the method of ``run`` reads them."""
    cfg, m, rows = run.cfg, run.cfg.method, (run.splits.train, run.eval_rows)
    if m.sample_type == "prompt":
        return _longest_prompts(run, tokenizer)
    if m.name == "sft":
        train, evaluation = (tokenize(r, tokenizer, cfg.dataset.loss_roles, m.max_length) for r in rows)
        train = pack(train, m.max_length) if m.packing else train
        return _longest_examples(m, train, evaluation, partial(collate, pad=tokenizer.pad_token_id))
    scores = [] if m.loss == "pairwise" else [r.score for r in scored_replies(run.splits.train)]
    normalizer = ScoreNormalizer.from_scores(scores) if scores else ScoreNormalizer()
    share = bool(cfg.model.decoder and cfg.model.attn_implementation == "sdpa")  # as supports_shared_prompts
    groups = [reward.build_examples(run, r, tokenizer, normalizer, share) for r in rows]
    collate_rows = partial(collate_groups, pad=tokenizer.pad_token_id, share_prompt=share)
    return _longest_examples(m, groups[0], groups[1], collate_rows)


def _longest_examples(method: Any, train: list[Any], evaluation: list[Any], collate_rows: Any) -> WorstCaseBatch:
    lengths = [e.length for e in train]
    return WorstCaseBatch(
        _longest(train, method.per_device_train_batch_size, lambda e: e.length),
        _longest(evaluation, method.per_device_eval_batch_size, lambda e: e.length),
        max(lengths),
        max(e.num_targets for e in train),
        len(train),
        sum(lengths) / len(lengths) / max(lengths),
        collate_rows,
    )


def _longest_prompts(run: RunContext, tokenizer: Any) -> WorstCaseBatch:
    m, prompts = run.cfg.method, build_prompts(run.cfg.dataset, run.splits.train)
    lengths = [len(ids) for ids in encode_prompts(prompts, tokenizer, m.max_prompt_length)]
    copies = m.get("num_generations", 1)
    order = _longest(range(len(prompts)), m.batch_size // copies, lambda i: lengths[i])
    chosen = [order[i % len(order)] for i in range(m.batch_size // copies)]
    eval_prompts = stratified_sample(build_prompts(run.cfg.dataset, run.eval_rows), m.num_eval_prompts)
    train = [prompts[i] for i in chosen for _ in range(copies)]
    length, mean = max(lengths) + m.response_length, sum(lengths) / len(lengths) + m.response_length
    return WorstCaseBatch(train, eval_prompts, length, m.response_length, len(prompts), mean / length)


def with_longest_test_rows(run: RunContext) -> RunContext:
    """The run with only the longest of its test rows: as many as are answered at once before training."""
    count = ppo.SAMPLED_AT_ONCE if run.cfg.method.sample_type == "prompt" else run.cfg.evaluation.batch_size
    rows = _longest(run.test_rows, count, lambda row: sum(len(m["content"]) for m in row.messages))
    return replace(run, splits=replace(run.splits, test=rows))


def longest_replies(run: RunContext, count: int = 1024) -> list[tuple[list[Message], str]]:
    """The longest test replies, which a reward model scores after its training."""
    if run.cfg.method.loss == "pairwise":
        replies = [(p.messages, r) for p in preference_pairs(run.test_rows) for r in (p.chosen, p.rejected)]
    else:
        replies = [(r.messages, r.reply) for r in scored_replies(run.test_rows)]
    return _longest(replies, count, lambda r: len(r[1]) + sum(len(m["content"]) for m in r[0]))


def _longest(rows: Sequence[Any], count: int, length: Callable[[Any], int]) -> list[Any]:
    return sorted(rows, key=length, reverse=True)[:count]
