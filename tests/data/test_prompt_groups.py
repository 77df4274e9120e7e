"""Replies that share their prompt's row score, and teach, as they do in rows of their own."""

import pytest
import torch

from manners.data.prompt_groups import MAX_REPLIES_PER_ROW, PromptGroup, collate_groups, group_by_prompt
from manners.data.reward_examples import RewardExample, collate_examples, scored_examples
from manners.data.tokenize import prompt_text
from manners.data.types import ScoredReply
from manners.methods.reward import RewardModule
from manners.models.reward_model import normalized_scores, supports_shared_prompts
from tests.families import DECODERS, classifier

PAD = 0
ASKED, OTHER = [5, 9, 33, 2], [8, 1, 90]
REPLIES = [[7, 7, 11], [12], [13, 44, 6, 1, 2]]


def passage(prompt, reply, **more):
    return RewardExample([*prompt, *reply], prompt=len(prompt), **more)


SCORED = [
    passage(ASKED, REPLIES[0], target=1.0),
    passage(OTHER, REPLIES[1], target=-1.0),
    passage(ASKED, REPLIES[1], target=0.5),
    passage(ASKED, REPLIES[2], target=-0.2),
    RewardExample([3, 4, 5], target=0.1),
]
PAIRS = [
    passage(ASKED, REPLIES[0], rejected=passage(ASKED, REPLIES[1]), margin=0.3),
    passage(OTHER, REPLIES[2], rejected=passage(OTHER, REPLIES[0]), margin=0.1),
    passage(ASKED, REPLIES[0], rejected=passage(ASKED, REPLIES[2]), margin=0.5),
]

SETTINGS = {"total_steps": 1, "learning_rate": 1e-3, "lr_scheduler_type": "constant", "warmup_steps": 0}
SETTINGS |= {"weight_decay": 0.0, "max_grad_norm": 0.0, "accumulate": 1, "logging_steps": 1}


def laid_out(passages, share=True):
    found = [PromptGroup([passages[i] for i in group], share) for group in group_by_prompt(passages, share)]
    return found, collate_groups(found, PAD, share)


def test_the_row_is_the_prompt_and_then_each_reply():
    """By hand."""
    [family], batch = laid_out([SCORED[0], SCORED[2]])
    assert batch["input_ids"].tolist() == [[5, 9, 33, 2, 7, 7, 11, 12]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 4, 5, 6, 4]]
    assert batch["ends"].tolist() == [[0, 6], [0, 7]]
    assert batch["targets"].tolist() == [1.0, 0.5]
    assert batch["allowed"][0, 0, 6].tolist() == [True] * 7 + [False]
    assert batch["allowed"][0, 0, 7].tolist() == [True] * 4 + [False] * 3 + [True]
    assert int(batch["tokens"]) == family.length == 8 and family.num_targets == 2


def test_rows_apart_need_room_for_the_longest_and_are_read_one_and_all():
    [family], batch = laid_out(PAIRS[:1], share=False)
    lengths = [len(PAIRS[0].input_ids), len(PAIRS[0].rejected.input_ids)]
    assert tuple(batch["input_ids"].shape) == (2, family.length) == (2, max(lengths))
    assert int(batch["tokens"]) == family.tokens == sum(lengths)


def test_only_replies_to_one_prompt_meet_and_no_more_than_a_row_holds():
    assert group_by_prompt(SCORED, share=True) == [[0, 2, 3], [1], [4]]
    assert group_by_prompt(SCORED, share=False) == [[0], [1], [2], [3], [4]]
    assert group_by_prompt(PAIRS, share=True) == [[0, 2], [1]]
    many = [passage(ASKED, [i]) for i in range(MAX_REPLIES_PER_ROW + 3)]
    assert [len(group) for group in group_by_prompt(many, share=True)] == [MAX_REPLIES_PER_ROW, 3]
    pairs = [passage(ASKED, [i], rejected=passage(ASKED, [99])) for i in range(MAX_REPLIES_PER_ROW)]
    assert [len(group) for group in group_by_prompt(pairs, share=True)] == [MAX_REPLIES_PER_ROW // 2] * 2
    texts = [RewardExample([3, 4]), RewardExample([3, 5])]  # no prompt, so none in common
    assert group_by_prompt(texts, share=True) == [[0], [1]]


@pytest.mark.parametrize("passages", [SCORED, PAIRS], ids=["scored", "pairs"])
@pytest.mark.parametrize("family", DECODERS)
def test_a_shared_row_scores_and_teaches_as_rows_alone(family, passages):
    """Every score, the loss and every gradient."""
    network = classifier(family).eval()
    assert supports_shared_prompts(network)
    found, shared = laid_out(passages)
    assert "ends" in shared and len(shared["input_ids"]) < len(passages)
    alone = collate_examples([p for f in found for p in f.passages], PAD)
    kind = "pairwise" if passages is PAIRS else "mse"
    module = RewardModule(network, kind, log=lambda *_: None, **SETTINGS)
    results = []
    for batch in (alone, shared):
        network.zero_grad()
        loss, right, count = module.step(batch)
        loss.backward()
        gradient = torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])
        with torch.no_grad():
            results.append((normalized_scores(network, batch), loss.detach(), gradient, right, count))
    for a, b in zip(*results, strict=True):
        assert torch.allclose(torch.as_tensor(a), torch.as_tensor(b), atol=1e-4)
    assert results[0][0].std() > 0.01


def test_the_order_of_replies_counts_alike_however_prompts_fall_into_batches():
    """A prompt's replies stand in one row, so two batches teach what one would; the order adds to it."""
    others = [passage(OTHER, REPLIES[0], target=0.4), passage(OTHER, REPLIES[2], target=0.9)]
    parts = [[SCORED[0], SCORED[2], SCORED[3]], others]
    network = classifier("qwen2").eval()

    def taught(order, *batches):
        module = RewardModule(network, "mse", order, log=lambda *_: None, **SETTINGS)
        network.zero_grad()
        losses = [module.step(laid_out(batch)[1])[0] for batch in batches]
        sum(losses).backward()
        return float(sum(losses)), network.score.weight.grad.clone()

    whole, apart, plain = taught(0.7, parts[0] + parts[1]), taught(0.7, *parts), taught(0.0, *parts)
    assert whole[0] == pytest.approx(apart[0], rel=1e-5) and whole[0] > plain[0] + 0.1
    assert torch.allclose(whole[1], apart[1], atol=1e-4) and not torch.allclose(whole[1], plain[1], atol=1e-2)


def test_what_is_read_of_the_data_shares_its_prompts(tokenizer):
    """Also where the prompt was cut to the same tokens; a reply too long to leave it whole stands alone."""
    asked = [{"role": "user", "content": "What is a cat, and where does the lion live?"}]
    rows = [ScoredReply(asked, reply, 0.0) for reply in ("Yes.", "No.", "A cat is an animal. " * 3)]
    rows.append(ScoredReply([], "Hi", 0.0))
    read = scored_examples(rows, tokenizer, 512, True, 0.0, 1.0)
    opening = tokenizer(prompt_text(asked, tokenizer), add_special_tokens=False)["input_ids"]
    assert [p.prompt for p in read] == [len(opening)] * 3 + [0]
    assert group_by_prompt(read, share=True) == [[0, 1, 2], [3]]
    cut = scored_examples(rows, tokenizer, len(opening), True, 0.0, 1.0)
    assert group_by_prompt(cut, share=True) == [[0, 1], [2], [3]]


def test_padding_in_a_shared_row_changes_nothing():
    network = classifier("qwen2").eval()
    _, batch = laid_out(SCORED)
    with torch.no_grad():
        wanted = normalized_scores(network, batch)
        other = {**batch, "input_ids": batch["input_ids"].masked_fill(batch["input_ids"] == PAD, 41)}
        assert torch.allclose(normalized_scores(network, other), wanted, atol=1e-5)


def test_encoders_and_kernels_without_a_mask_get_a_row_for_each_reply():
    assert not supports_shared_prompts(classifier("bert"))
    network = classifier("qwen2")
    network.config._attn_implementation = "flash_attention_2"
    assert not supports_shared_prompts(network)
    _, batch = laid_out(SCORED, share=False)
    assert len(batch["input_ids"]) == len(SCORED) and "ends" not in batch
