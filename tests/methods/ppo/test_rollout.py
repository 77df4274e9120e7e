"""What a rollout says of its replies, and how rows are put together for the model."""

import pytest
import torch

from manners.data.tokenize import prompt_text
from manners.data.types import Prompt
from manners.methods.ppo.rollout import encode_prompts, micro_batches, sample_table
from tests.methods.ppo.cases import early_stops, policy, prompts, rolled_out


@pytest.fixture
def rolled(small_qwen2, tokenizer):
    return rolled_out(policy(small_qwen2), tokenizer, early_stops(tokenizer))


def test_replies_end_at_their_stop_token_or_at_the_limit(rolled, tokenizer):
    stops = set(early_stops(tokenizer))
    for ids, ended, mask, text in zip(rolled.reply_ids, rolled.ended.tolist(), rolled.mask, rolled.texts, strict=True):
        assert ended == (ids[-1] in stops)
        assert not stops & set(ids[:-1])
        assert ended or len(ids) == 8
        assert mask.tolist() == [i < len(ids) for i in range(rolled.mask.shape[1])]
        assert text == tokenizer.decode(ids, skip_special_tokens=True).strip()
    assert 0 < rolled.ended.sum() < 8
    assert len({len(ids) for ids in rolled.reply_ids}) >= 2


@pytest.mark.parametrize("temperature", [0.8, 1.7])
def test_numbers_stand_in_the_row_and_column_of_their_token(small_qwen2, tokenizer, temperature):
    """Against the plain model, one reply at a time; the rollout sorts its rows by length and batches them."""
    actor = policy(small_qwen2)
    with torch.no_grad():
        for name, p in actor.named_parameters():
            if "lora_B" in name or "value_head" in name:
                p.normal_(std=0.3)
    rolled = rolled_out(actor, tokenizer, early_stops(tokenizer), temperature=temperature)
    for row, (prompt, reply) in enumerate(zip(rolled.prompt_ids, rolled.reply_ids, strict=True)):
        at = slice(len(prompt) - 1, len(prompt) + len(reply) - 1)
        with torch.no_grad():
            out = actor.model(torch.tensor([prompt + reply]), output_hidden_states=True)
            before = small_qwen2(torch.tensor([prompt + reply])).logits[0, at]
        wanted = [torch.log_softmax(logits / temperature, -1)[range(len(reply)), reply]
                  for logits in (out.logits[0, at], before)]  # fmt: skip
        values = actor.value_head(out.hidden_states[-1][0, at])[:, 0]
        for table, want in zip((rolled.logprobs, rolled.ref_logprobs, rolled.values), [*wanted, values], strict=True):
            assert torch.allclose(table[row, : len(reply)], want, atol=1e-4)
            assert not table[row, len(reply) :].any()
    assert (rolled.logprobs - rolled.ref_logprobs).abs().max() > 0.1


def test_greedy_replies_have_finite_numbers(small_qwen2, tokenizer):
    rolled = rolled_out(policy(small_qwen2), tokenizer, early_stops(tokenizer), temperature=0.0)
    assert all(table.isfinite().all() for table in (rolled.logprobs, rolled.ref_logprobs, rolled.entropy))
    assert rolled.logprobs[rolled.mask].max() < 0


@pytest.mark.parametrize("tokens", [1, 40, 64, 10**6])
def test_micro_batches_hold_every_row_once_and_no_more_slots_than_allowed(rolled, tokens):
    rows = [6, 0, 3, 5, 7]
    parts = list(micro_batches(rolled, rows, tokens, pad=0))
    assert sorted(r for part in parts for r in part.rows) == sorted(rows)
    assert all(part.ids.numel() <= tokens or len(part.rows) == 1 for part in parts)
    assert (len(parts) == 1) == (tokens == 10**6)
    for part in parts:
        for i, row in enumerate(part.rows):
            whole = rolled.prompt_ids[row] + rolled.reply_ids[row]
            assert part.ids[i].tolist() == whole + [0] * (part.ids.shape[1] - len(whole))
            assert part.ids[i, 1:][part.chosen[i]].tolist() == rolled.reply_ids[row]


def test_prompts_open_the_reply_and_lose_their_oldest_tokens(tokenizer):
    chat = [
        {"role": "user", "content": "What is a cat?"},
        {"role": "assistant", "content": "An animal."},
        {"role": "user", "content": "Thank you!"},
    ]
    [whole], [cut] = (encode_prompts([Prompt(chat)], tokenizer, longest) for longest in (100, 12))
    assert tokenizer.decode(whole) == prompt_text(chat, tokenizer)
    assert tokenizer.decode(whole).endswith("<|im_start|>assistant\n")
    assert len(cut) == 12 and cut == whole[-12:]


def test_a_table_of_replies_is_plain_records(rolled):
    kl = torch.arange(8.0) / 3
    records = sample_table(rolled, {"model": [i / 7 for i in range(8)]}, kl, 3)
    assert len(records) == 3
    assert records[2] == {
        "prompt": prompts(8)[2].messages[-1]["content"],
        "reply": rolled.texts[2],
        "model": 0.286,
        "kl": 0.667,
        "tokens": len(rolled.reply_ids[2]),
        "ended": bool(rolled.ended[2]),
    }
    assert len(sample_table(rolled, {}, kl, 99)) == 8
