"""What a run will hold in memory at its fullest, part by part: its steps played on the longest batches.

The code that is played is the code that trains: losses, actor, rewards and optimizer are the run's own.
"""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from omegaconf import DictConfig
from transformers.cache_utils import Cache

from manners.data.batching import Batch, collate, length_batches
from manners.data.tokenize import tokenize
from manners.fits import longest, shapes
from manners.fits.ledger import CACHE, DECODING, Ledger
from manners.methods.optim import adamw
from manners.methods.ppo.loss import microbatch_loss
from manners.methods.ppo.rollout import Rollout, collate_rows, encode_prompts
from manners.methods.ppo.trainer import make_optimizer
from manners.methods.reward import MAX_TOKENS, bradley_terry_loss, regression_loss
from manners.methods.sft import sft_loss
from manners.models import reward_model as reward_models
from manners.models.generation import next_logits, sample_token
from manners.models.kv_cache import prefill
from manners.models.logprobs import token_nll
from manners.models.lora import merged_for_generation, trainable_parameters
from manners.models.policy import Policy
from manners.pipeline.stages import reporting
from manners.pipeline.stages.context import RunContext, configured_tokenizer
from manners.pipeline.stages.ppo import method_config

ACTIVATIONS, GRADIENTS, OPTIMIZER = "activations", "gradients", "optimizer"
TRAINING, VALIDATING, ANSWERING = "a training step", "validation", "answers before and after"
STEPS = 2  # the second finds the optimizer's states and the gradients of the first


@dataclass(frozen=True)
class Played:
    ledger: Ledger
    steps: int  # of the whole run: optimizer steps, or PPO's iterations
    share: float  # mean length of a row over the longest


def rehearse(run: RunContext, reward_cfg: DictConfig | None = None) -> Played:
    """The fullest moment of each phase. ``reward_cfg`` made the reward model that PPO loads beside the policy."""
    tokenizer = configured_tokenizer(run.cfg)
    if run.cfg.method.name == "sft":
        return sft(run, tokenizer)
    return reward(run, tokenizer) if run.cfg.method.name == "reward" else ppo(run, tokenizer, reward_cfg)


def sft(run: RunContext, tokenizer: Any) -> Played:
    cfg = run.cfg
    work = longest.lessons(run, tokenizer, None)
    model = shapes.language_model(cfg, run.device, len(tokenizer))
    with Ledger(model.config.get_text_config().vocab_size) as ledger:
        shapes.imagine(model, ledger)
        answer(ledger, run, model, tokenizer)
        learn(ledger, run, model, work, lambda batch: sft_loss(model, batch)[0])
    return Played(ledger, work.steps, work.share)


def reward(run: RunContext, tokenizer: Any) -> Played:
    cfg, kind = run.cfg, run.cfg.method.loss
    network = shapes.scorer(cfg, run.device, tokenizer.pad_token_id)
    work = longest.lessons(run, tokenizer, network)

    def loss(batch: Batch) -> torch.Tensor:
        scores = reward_models.normalized_scores(network, batch)
        if kind == "pairwise":
            return bradley_terry_loss(*scores.chunk(2), batch["margins"])  # type: ignore[call-arg]
        return regression_loss(scores, batch["targets"].float(), kind)

    with Ledger(network.config.get_text_config().vocab_size) as ledger:
        shapes.imagine(network, ledger)
        learn(ledger, run, network, work, loss)
        many = work.train[:1] * max(MAX_TOKENS // work.train[0].length, 1)
        with torch.no_grad(), ledger.booking(ACTIVATIONS, "examination"):
            network.eval()
            reward_models.normalized_scores(network, work.together(many))
    return Played(ledger, work.steps, work.share)


def ppo(run: RunContext, tokenizer: Any, reward_cfg: DictConfig | None) -> Played:
    """PPO and RLOO: an iteration whose replies are all as long as they may be."""
    cfg, s = run.cfg, method_config(run.cfg)
    asked = longest.questions(run, tokenizer)
    shape = shapes.language_model(cfg, run.device, len(tokenizer))
    with torch.device("meta"):
        actor = Policy(shape, getattr(s, "critic", "none"), run.device.precision == "bf16")
        beside = reward_cfg and shapes.scorer(reward_cfg, run.device, tokenizer.pad_token_id, adapted=False)
    with Ledger(shape.config.get_text_config().vocab_size) as ledger:
        shapes.imagine(actor, ledger)
        if beside is not None:
            shapes.imagine(beside.requires_grad_(False), ledger, shapes.REWARD)
        answer(ledger, run, actor.model, tokenizer)
        asked_ids = encode_prompts(asked.train, tokenizer, s.max_prompt_length)
        rolled = played(asked_ids, asked.train, s.response_length)
        everyone = list(range(len(asked_ids)))
        minibatch = sorted(everyone, key=lambda r: -rolled.lengths[r])[: -(-len(everyone) // s.num_mini_batches)]
        part = collate_rows(rolled, fullest(rolled, minibatch, s.microbatch_tokens), 0)
        zeros = torch.zeros(rolled.mask.shape)
        optimizer = make_optimizer(actor, s)
        params = prepare(run, optimizer, ledger)
        with ledger.booking(ACTIVATIONS, TRAINING):
            actor.train()
            for _ in range(STEPS):
                optimizer.zero_grad()
                microbatch_loss(actor, rolled, part, zeros, zeros, s)[0].backward()
                step(ledger, optimizer, params, s.max_grad_norm)
        # From the second iteration on gradients and optimizer states are there while the policy answers.
        held_out = encode_prompts(asked.held_out, tokenizer, s.max_prompt_length) if asked.held_out else []
        for ids, phase in ((held_out, "evaluation"), (asked_ids, "sampling")):
            if ids:
                decode(ledger, run, actor.model, ids, s.response_length, phase)
        with torch.no_grad(), ledger.booking(ACTIVATIONS, "reading the replies"):
            part = collate_rows(rolled, fullest(rolled, everyone, s.microbatch_tokens), 0)
            actor.judge(part.ids, part.chosen, s.temperature)
            actor.reference_logprobs(part.ids, part.chosen, s.temperature)
        if beside is not None:
            score(ledger, beside, max(rolled.lengths), reward_cfg)
    return Played(ledger, asked.iterations, asked.share)


def learn(
    ledger: Ledger, run: RunContext, model: Any, work: longest.Lessons, loss: Callable[[Batch], torch.Tensor]
) -> None:
    """An optimizer step as Lightning makes it: the gradients of the step before go only after the forward pass."""
    m, cast = run.cfg.method, autocast(run)
    optimizer = adamw([{"params": list(trainable_parameters(model).values())}], "adamw_torch_fused")
    params = prepare(run, optimizer, ledger)
    model.train()
    parts = run.cfg.hardware.parts
    rows = work.train[: -(-len(work.train) // parts)]  # the longest come first
    with ledger.booking(ACTIVATIONS, TRAINING):
        for _ in range(STEPS):
            for micro in range(min(m.gradient_accumulation_steps * parts, 2)):
                with cast:
                    found = loss(work.together(rows))
                if micro == 0:
                    optimizer.zero_grad()
                found.backward()
                del found
            step(ledger, optimizer, params, m.max_grad_norm)
    with torch.no_grad(), cast, ledger.booking(ACTIVATIONS, VALIDATING):
        model.eval()
        loss(work.together(work.validation))


def autocast(run: RunContext) -> torch.autocast:
    kind = torch.float16 if run.device.precision == "fp16" else torch.bfloat16
    return torch.autocast("cpu", kind, enabled=run.device.precision != "32")


def prepare(run: RunContext, optimizer: torch.optim.Optimizer, ledger: Ledger) -> list[torch.Tensor]:
    """The weights that are trained. Their gradients will be booked as such."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    for p in params:
        p.register_post_accumulate_grad_hook(lambda p: ledger.rebook(p.grad, GRADIENTS))
    for group in optimizer.param_groups:
        group["foreach"] = run.device.kind == "cuda"  # where torch updates all weights at once
    if run.cfg.method.optim == "paged_adamw_8bit":
        shapes.eight_bits(optimizer, params)
    return params


def step(ledger: Ledger, optimizer: torch.optim.Optimizer, params: list[torch.Tensor], max_grad_norm: float) -> None:
    torch.nn.utils.clip_grad_norm_(params, max_grad_norm or 1.0)
    with ledger.booking(OPTIMIZER):
        optimizer.step()


def answer(ledger: Ledger, run: RunContext, model: Any, tokenizer: Any) -> None:
    """The model answers held-out prompts, and its loss on held-out rows is taken."""
    e, m, rows = run.cfg.evaluation, run.cfg.method, longest.shortened(run).splits.test
    ids = longest.prompts(run, rows, tokenizer)
    if ids:
        decode(ledger, run, model, ids[: e.batch_size], e.max_new_tokens, ANSWERING)
    length = m.get("max_length") or m.max_prompt_length + m.response_length
    examples = tokenize(rows, tokenizer, run.cfg.dataset.loss_roles, length)
    batch = collate(longest.top(examples, reporting.loss_batch_size(run.cfg), lambda x: x.length), pad=0)
    with torch.no_grad(), ledger.booking(ACTIVATIONS, ANSWERING):
        sft_loss(model.eval(), batch)
        if m.sample_type == "prompt" and ids:
            if len(ids) > e.batch_size:
                decode(ledger, run, model, ids, m.response_length, ANSWERING)
            other = shapes.language_model(run.cfg, run.device, 0, adapted=False)
            shapes.imagine(other, ledger, "the base, to compare with")
            width = max(map(len, ids)) + m.response_length
            read = torch.zeros((max(4096 // width, 1), width), dtype=torch.long)
            chosen = torch.zeros((len(read), width - 1), dtype=torch.bool)
            chosen[:, -m.response_length :] = True
            token_nll(other, read, chosen)


def decode(ledger: Ledger, run: RunContext, model: Any, prompts: list[list[int]], tokens: int, phase: str) -> None:
    """The prompts are read, and then the last of ``tokens`` tokens of their replies is sampled."""
    cast = autocast(run) if run.cfg.method.sample_type == "prompt" else nullcontext()
    whole = merged_for_generation(model) if run.device.kind == "cpu" else nullcontext()

    def forward(ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, cache: Cache) -> torch.Tensor:
        with ledger.booking(DECODING):  # what is made here is not the cache's
            return next_logits(model, ids, mask, positions, cache)

    with torch.no_grad(), ledger.booking(DECODING, phase), whole, cast:
        model.eval()
        with ledger.booking(CACHE):
            cache, _, mask = prefill(prompts, 0, tokens, "cpu", forward)
        layers: Any = cache.layers
        for layer in layers:
            layer.show(len(prompts), mask.shape[1] + tokens - 2)  # as the last token but one leaves it
        ids, mask = mask[:, -1:], torch.ones((len(prompts), mask.shape[1] + tokens - 1), dtype=torch.long)
        sample_token(forward(ids, mask, mask.sum(1, keepdim=True) - 1, cache), 1.0, torch.zeros(len(prompts)))


def played(prompt_ids: list[list[int]], prompts: list[Any], tokens: int) -> Rollout:
    """A rollout whose replies are all ``tokens`` long."""
    count = len(prompt_ids)
    tables = [torch.zeros(count, tokens) for _ in range(4)]
    mask = torch.ones((count, tokens), dtype=torch.bool)
    replies = [[0] * tokens] * count
    return Rollout(prompts, prompt_ids, replies, [""] * count, torch.ones(count, dtype=torch.bool), mask, *tables)


def fullest(rolled: Rollout, rows: list[int], slots: int) -> list[int]:
    """The micro-batch of most slots."""
    lengths = [rolled.lengths[r] for r in rows]
    batch = max(length_batches(lengths, slots), key=lambda rows: len(rows) * max(lengths[r] for r in rows))
    return [rows[i] for i in batch]


def score(ledger: Ledger, network: Any, length: int, reward_cfg: DictConfig | None) -> None:
    assert reward_cfg is not None
    length = min(length, reward_cfg.method.max_length)
    shape = (max(MAX_TOKENS // length, 1), length)
    batch = {"input_ids": torch.zeros(shape, dtype=torch.long), "attention_mask": torch.ones(shape, dtype=torch.long)}
    with torch.no_grad(), ledger.booking(ACTIVATIONS, "scoring"):
        reward_models.normalized_scores(network.eval(), batch)
