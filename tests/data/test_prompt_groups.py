"""Replies that share a row with their prompt get the scores and gradients that rows of their own would give."""

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    BloomConfig,
    Gemma3TextConfig,
    MistralConfig,
    Qwen2Config,
)

from manners.data.prompt_groups import MAX_REPLIES_PER_ROW, PromptGroup, collate_groups, group_by_prompt
from manners.data.reward_examples import RewardExample, collate_examples, scored_examples
from manners.data.tokenize import prompt_text
from manners.data.types import ScoredReply
from manners.methods.reward import RewardModule
from manners.models.reward_model import normalized_scores, supports_shared_prompts
from tests.families import DECODERS, classifier

PAD = 0
PROMPT, OTHER_PROMPT = [5, 9, 33, 2], [8, 1, 90]
REPLIES = [[7, 7, 11], [12], [13, 44, 6, 1, 2]]


def example(prompt, reply, **fields):
    return RewardExample([*prompt, *reply], prompt_length=len(prompt), **fields)


SCORED = [
    example(PROMPT, REPLIES[0], target=1.0),
    example(OTHER_PROMPT, REPLIES[1], target=-1.0),
    example(PROMPT, REPLIES[1], target=0.5),
    example(PROMPT, REPLIES[2], target=-0.2),
    RewardExample([3, 4, 5], target=0.1),
]
PAIRS = [
    example(PROMPT, REPLIES[0], rejected=example(PROMPT, REPLIES[1]), margin=0.3),
    example(OTHER_PROMPT, REPLIES[2], rejected=example(OTHER_PROMPT, REPLIES[0]), margin=0.1),
    example(PROMPT, REPLIES[0], rejected=example(PROMPT, REPLIES[2]), margin=0.5),
]

SETTINGS = {"total_steps": 1, "learning_rate": 1e-3, "lr_scheduler_type": "constant", "warmup_steps": 0}
SETTINGS |= {"weight_decay": 0.0, "max_grad_norm": 0.0, "accumulate": 1, "logging_steps": 1}


def grouped(examples, share_prompt=True):
    indices = group_by_prompt(examples, share_prompt)
    groups = [PromptGroup([examples[i] for i in group], share_prompt) for group in indices]
    return groups, collate_groups(groups, PAD, share_prompt)


def test_collate_groups_row_is_the_prompt_then_each_reply():
    [group], batch = grouped([SCORED[0], SCORED[2]])
    assert batch["input_ids"].tolist() == [[5, 9, 33, 2, 7, 7, 11, 12]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 4, 5, 6, 4]]
    assert batch["reply_ends"].tolist() == [[0, 6], [0, 7]]
    assert batch["targets"].tolist() == [1.0, 0.5]
    assert batch["attention_mask_4d"][0, 0, 6].tolist() == [True] * 7 + [False]
    assert batch["attention_mask_4d"][0, 0, 7].tolist() == [True] * 4 + [False] * 3 + [True]
    assert int(batch["tokens"]) == group.length == 8 and group.num_targets == 2


def test_separate_rows_have_the_longest_length_and_all_tokens():
    [group], batch = grouped(PAIRS[:1], share_prompt=False)
    lengths = [len(PAIRS[0].input_ids), len(PAIRS[0].rejected.input_ids)]
    assert tuple(batch["input_ids"].shape) == (2, group.length) == (2, max(lengths))
    assert int(batch["tokens"]) == group.tokens == sum(lengths)


def test_group_by_prompt_limits_the_replies_per_row():
    assert group_by_prompt(SCORED, share_prompt=True) == [[0, 2, 3], [1], [4]]
    assert group_by_prompt(SCORED, share_prompt=False) == [[0], [1], [2], [3], [4]]
    assert group_by_prompt(PAIRS, share_prompt=True) == [[0, 2], [1]]
    many = [example(PROMPT, [i]) for i in range(MAX_REPLIES_PER_ROW + 3)]
    assert [len(group) for group in group_by_prompt(many, share_prompt=True)] == [MAX_REPLIES_PER_ROW, 3]
    pairs = [example(PROMPT, [i], rejected=example(PROMPT, [99])) for i in range(MAX_REPLIES_PER_ROW)]
    assert [len(group) for group in group_by_prompt(pairs, share_prompt=True)] == [MAX_REPLIES_PER_ROW // 2] * 2
    texts = [RewardExample([3, 4]), RewardExample([3, 5])]  # without a prompt there is none to share
    assert group_by_prompt(texts, share_prompt=True) == [[0], [1]]


@pytest.mark.parametrize("examples", [SCORED, PAIRS], ids=["scored", "pairs"])
@pytest.mark.parametrize("architecture", DECODERS)
def test_shared_row_gives_scores_and_gradients_of_separate_rows(architecture, examples):
    """Every score, the loss and every gradient."""
    network = classifier(architecture).eval()
    assert supports_shared_prompts(network)
    groups, shared = grouped(examples)
    assert "reply_ends" in shared and len(shared["input_ids"]) < len(examples)
    separate = collate_examples([e for group in groups for e in group.examples], PAD)
    kind = "pairwise" if examples is PAIRS else "mse"
    module = RewardModule(network, kind, log=lambda *_: None, **SETTINGS)
    results = []
    for batch in (separate, shared):
        network.zero_grad()
        loss, num_correct, count = module.compute_loss(batch)
        loss.backward()
        gradient = torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])
        with torch.no_grad():
            results.append((normalized_scores(network, batch), loss.detach(), gradient, num_correct, count))
    for a, b in zip(*results, strict=True):
        assert torch.allclose(torch.as_tensor(a), torch.as_tensor(b), atol=1e-4)
    assert results[0][0].std() > 0.01


def test_ranking_loss_is_the_same_however_prompts_are_batched():
    """All replies to a prompt are in one row, so two batches give the loss of one; the ranking adds to it."""
    others = [example(OTHER_PROMPT, REPLIES[0], target=0.4), example(OTHER_PROMPT, REPLIES[2], target=0.9)]
    batches = [[SCORED[0], SCORED[2], SCORED[3]], others]
    network = classifier("qwen2").eval()

    def loss_and_gradient(ranking_coef, *batches):
        module = RewardModule(network, "mse", ranking_coef, log=lambda *_: None, **SETTINGS)
        network.zero_grad()
        losses = [module.compute_loss(grouped(batch)[1])[0] for batch in batches]
        sum(losses).backward()
        return float(sum(losses)), network.score.weight.grad.clone()

    one_batch, two_batches = loss_and_gradient(0.7, batches[0] + batches[1]), loss_and_gradient(0.7, *batches)
    without_ranking = loss_and_gradient(0.0, *batches)
    assert one_batch[0] == pytest.approx(two_batches[0], rel=1e-5) and one_batch[0] > without_ranking[0] + 0.1
    assert torch.allclose(one_batch[1], two_batches[1], atol=1e-4)
    assert not torch.allclose(one_batch[1], without_ranking[1], atol=1e-2)


def test_scored_examples_of_one_prompt_share_it(tokenizer):
    """Also if the prompt was truncated to the same tokens; a reply that leaves less room for it gets its own row."""
    prompt = [{"role": "user", "content": "What is a cat, and where does the lion live?"}]
    rows = [ScoredReply(prompt, reply, 0.0) for reply in ("Yes.", "No.", "A cat is an animal. " * 3)]
    rows.append(ScoredReply([], "Hi", 0.0))
    examples = scored_examples(rows, tokenizer, 512, True, float)
    prompt_ids = tokenizer(prompt_text(prompt, tokenizer), add_special_tokens=False)["input_ids"]
    assert [e.prompt_length for e in examples] == [len(prompt_ids)] * 3 + [0]
    assert group_by_prompt(examples, share_prompt=True) == [[0, 1, 2], [3]]
    truncated = scored_examples(rows, tokenizer, len(prompt_ids), True, float)
    assert group_by_prompt(truncated, share_prompt=True) == [[0, 1], [2], [3]]


def test_padding_in_a_shared_row_changes_nothing():
    network = classifier("qwen2").eval()
    _, batch = grouped(SCORED)
    with torch.no_grad():
        wanted = normalized_scores(network, batch)
        other = {**batch, "input_ids": batch["input_ids"].masked_fill(batch["input_ids"] == PAD, 41)}
        assert torch.allclose(normalized_scores(network, other), wanted, atol=1e-5)


def test_encoders_and_flash_attention_get_separate_rows():
    assert not supports_shared_prompts(classifier("bert"))
    network = classifier("qwen2")
    network.config._attn_implementation = "flash_attention_2"
    assert not supports_shared_prompts(network)
    _, batch = grouped(SCORED, share_prompt=False)
    assert len(batch["input_ids"]) == len(SCORED) and "reply_ends" not in batch


SIZE = {
    "vocab_size": 97, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "initializer_range": 0.3, "pad_token_id": PAD, "num_labels": 1,
}  # fmt: skip
WINDOWS = {
    "mistral": (MistralConfig, {"sliding_window": 3}),
    "qwen2": (Qwen2Config, {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1}),
    "gemma3": (Gemma3TextConfig, {"sliding_window": 3, "head_dim": 8}),
}


@pytest.mark.parametrize("family", WINDOWS)
def test_models_with_sliding_windows_get_separate_rows(family):
    """In a shared row the window of a reply would hold the other replies in place of the prompt."""
    config_class, window = WINDOWS[family]
    torch.manual_seed(0)
    network = AutoModelForSequenceClassification.from_config(
        config_class(**SIZE, **window), attn_implementation="sdpa"
    ).eval()
    assert not supports_shared_prompts(network)
    shared, separate = (grouped(SCORED[:4], share)[1] for share in (True, False))
    with torch.no_grad():
        order = torch.tensor([0, 2, 3, 1])  # by prompt
        wanted = normalized_scores(network, separate)[order]
        assert (normalized_scores(network, shared) - wanted).abs().max() > 0.01
    full = AutoModelForSequenceClassification.from_config(MistralConfig(**SIZE, sliding_window=None))
    assert supports_shared_prompts(full)


def test_models_with_alibi_get_separate_rows():
    config = BloomConfig(vocab_size=97, hidden_size=32, n_layer=1, n_head=4, num_labels=1)
    network = AutoModelForSequenceClassification.from_config(config)
    network.config._attn_implementation = "sdpa"
    assert not supports_shared_prompts(network)
