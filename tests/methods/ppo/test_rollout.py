"""Rollouts: replies, their masks and log-probabilities, and the microbatches that are made of them."""

import math

import pytest
import torch

from manners.data.tokenize import prompt_text
from manners.data.types import Prompt
from manners.methods.ppo.rollout import encode_prompts, microbatches, sample_table
from tests.methods.ppo.cases import frequent_stop_ids, make_policy, make_prompts, sample_rollout


@pytest.fixture
def batch(small_qwen2, tokenizer):
    return sample_rollout(make_policy(small_qwen2), tokenizer)


def test_rollout_ends_replies_at_eos_or_at_the_limit(batch, tokenizer):
    stop_ids = set(frequent_stop_ids(tokenizer))
    for ids, has_eos, mask, text in zip(batch.reply_ids, batch.has_eos.tolist(), batch.mask, batch.texts, strict=True):
        assert has_eos == (ids[-1] in stop_ids)
        assert not stop_ids & set(ids[:-1])
        assert has_eos or len(ids) == 8
        assert mask.tolist() == [i < len(ids) for i in range(batch.mask.shape[1])]
        assert text == tokenizer.decode(ids, skip_special_tokens=True).strip()
    assert 0 < batch.has_eos.sum() < 8
    assert len({len(ids) for ids in batch.reply_ids}) >= 2


@pytest.mark.parametrize("temperature", [0.8, 1.7])
def test_rollout_logprobs_and_values_equal_the_plain_models(small_qwen2, tokenizer, temperature):
    """One reply at a time through the plain model; the rollout sorts its rows by length and batches them."""
    policy = make_policy(small_qwen2)
    with torch.no_grad():
        for name, p in policy.named_parameters():
            if "lora_B" in name or "value_head" in name:
                p.normal_(std=0.3)
    batch = sample_rollout(policy, tokenizer, temperature=temperature)
    for row, (prompt, reply) in enumerate(zip(batch.prompt_ids, batch.reply_ids, strict=True)):
        positions = slice(len(prompt) - 1, len(prompt) + len(reply) - 1)
        with torch.no_grad():
            output = policy.model(torch.tensor([prompt + reply]), output_hidden_states=True)
            base_logits = small_qwen2(torch.tensor([prompt + reply])).logits[0, positions]
        logprobs, ref_logprobs = (
            torch.log_softmax(logits / temperature, -1)[range(len(reply)), reply]
            for logits in (output.logits[0, positions], base_logits)
        )
        values = policy.value_head(output.hidden_states[-1][0, positions])[:, 0]
        for table, expected in (
            (batch.logprobs, logprobs),
            (batch.ref_logprobs, ref_logprobs),
            (batch.values, values),
        ):
            assert torch.allclose(table[row, : len(reply)], expected, atol=1e-4)
            assert not table[row, len(reply) :].any()
    assert (batch.logprobs - batch.ref_logprobs).abs().max() > 0.1


def test_rollout_asks_the_reference_only_where_it_may_differ(small_qwen2, tokenizer, monkeypatch):
    policy, asked = make_policy(small_qwen2), []
    reference_logprobs = policy.reference_logprobs
    monkeypatch.setattr(policy, "reference_logprobs", lambda *args: asked.append(1) or reference_logprobs(*args))
    batch = sample_rollout(policy, tokenizer)
    assert torch.equal(batch.ref_logprobs, batch.logprobs) and batch.logprobs.any() and not asked
    with torch.no_grad():
        next(p for n, p in policy.named_parameters() if "lora_B" in n).normal_()
    batch = sample_rollout(policy, tokenizer)
    assert asked and not torch.equal(batch.ref_logprobs, batch.logprobs)


def test_greedy_rollout_has_finite_logprobs(small_qwen2, tokenizer):
    batch = sample_rollout(make_policy(small_qwen2), tokenizer, temperature=0.0)
    assert all(table.isfinite().all() for table in (batch.logprobs, batch.ref_logprobs, batch.entropy))
    assert batch.logprobs[batch.mask].max() < 0


@pytest.mark.parametrize("max_tokens", [1, 40, 64, 10**6])
def test_microbatches_hold_each_row_once_within_max_tokens(batch, max_tokens):
    rows = [6, 0, 3, 5, 7]
    parts = list(microbatches(batch, rows, max_tokens, pad_token_id=0))
    assert sorted(r for part in parts for r in part.rows) == sorted(rows)
    assert all(part.ids.numel() <= max_tokens or len(part.rows) == 1 for part in parts)
    assert (len(parts) == 1) == (max_tokens == 10**6)
    for part in parts:
        for i, row in enumerate(part.rows):
            ids = batch.prompt_ids[row] + batch.reply_ids[row]
            assert part.ids[i].tolist() == ids + [0] * (part.ids.shape[1] - len(ids))
            assert part.ids[i, 1:][part.response_mask[i]].tolist() == batch.reply_ids[row]


def test_encode_prompts_opens_the_reply_and_drops_old_turns(tokenizer):
    messages = [
        {"role": "user", "content": "What is a cat?"},
        {"role": "assistant", "content": "An animal."},
        {"role": "user", "content": "Thank you!"},
    ]
    [full], [cut] = (encode_prompts([Prompt(messages)], tokenizer, max_length) for max_length in (100, 14))
    assert tokenizer.decode(full) == prompt_text(messages, tokenizer)
    assert tokenizer.decode(full).endswith("<|im_start|>assistant\n")
    assert tokenizer.decode(cut) == prompt_text(messages[2:], tokenizer)


def test_sample_table_has_one_record_per_reply(batch):
    kl = torch.arange(8.0) / 3
    rewards = {"model": [i / 7 for i in range(8)], "abstains": [math.nan] * 8}
    records = sample_table(batch, rewards, {"why": list("abcdefgh")}, kl, 3)
    assert len(records) == 3
    assert records[2] == {
        "prompt": make_prompts(8)[2].messages[-1]["content"],
        "reply": batch.texts[2],
        "model": 0.286,
        "abstains": None,
        "kl": 0.667,
        "tokens": len(batch.reply_ids[2]),
        "has_eos": bool(batch.has_eos[2]),
        "why": "c",
    }
    assert len(sample_table(batch, {}, {}, kl, 99)) == 8
