"""Reward models: a score is that of the reply alone, whatever stands beside it, and that of plain transformers."""

import math
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from manners.errors import MannersError
from manners.methods.reward import bradley_terry_loss, make_reward_func, ranking_loss, regression_loss
from manners.models import reward_model
from manners.models.lora import prepare_for_training
from manners.models.reward_model import ScoreNormalizer, normalized_scores
from tests.families import DECODERS, classifier, language_model

ROWS = [[5, 9, 33, 2, 7], [8, 1, 90, 4, 61, 12, 13, 44, 6], [77], [15, 16, 17, 18, 19, 1]]
EVERY = [*DECODERS, "bert"]


def padded(rows, pad=0, side="right", beyond=0):
    width = max(map(len, rows)) + beyond
    ids, mask = torch.full((len(rows), width), pad), torch.zeros((len(rows), width), dtype=torch.long)
    for i, row in enumerate(rows):
        at = slice(0, len(row)) if side == "right" else slice(width - len(row), width)
        ids[i, at], mask[i, at] = torch.tensor(row), 1
    return {"input_ids": ids, "mask": mask}


def alone(network):
    """Plain transformers' own answer to each row by itself, which has no padding."""
    with torch.no_grad():
        return torch.cat([network(torch.tensor([row])).logits[:, 0] for row in ROWS])


def scores(network, **how):
    with torch.no_grad():
        return normalized_scores(network, padded(ROWS, **how))


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("family", EVERY)
def test_a_score_does_not_depend_on_padding(family, side):
    """Neither where it stands, nor how much of it there is, nor what it is: row 1 and 3 hold the token 1 as well."""
    network = classifier(family)
    wanted = alone(network)
    assert wanted.std() > 0.05
    for pad, beyond in ((0, 0), (1, 0), (41, 5)):
        assert torch.allclose(scores(network, pad=pad, side=side, beyond=beyond), wanted, atol=1e-4)


def test_a_gap_within_a_row_is_closed_too():
    network = classifier("gpt2")
    ids, mask = torch.tensor([[0, 5, 0, 9, 33, 0]]), torch.tensor([[0, 1, 0, 1, 1, 0]])
    with torch.no_grad():
        wanted = network(torch.tensor([[5, 9, 33]])).logits
        found = normalized_scores(network, {"input_ids": ids, "mask": mask})
    assert torch.allclose(found, wanted[:, 0], atol=1e-4)


@pytest.mark.parametrize("family", EVERY)
def test_scores_of_a_saved_model_are_those_of_plain_transformers(family, tmp_path):
    """Loaded by its own class, given a right-padded batch with a mask: what anybody would do with the folder."""
    pad = 0
    language = language_model(family) if family != "bert" else classifier("bert").base_model
    language.save_pretrained(tmp_path / "base")
    torch.manual_seed(0)
    network = reward_model.load_reward_base(str(tmp_path / "base"), SimpleNamespace(pad_token_id=pad)).eval()
    network.save_pretrained(tmp_path / "model")
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model").eval()
    batch = padded(ROWS, pad)
    with torch.no_grad():
        wanted = plain(input_ids=batch["input_ids"], attention_mask=batch["mask"]).logits
    assert wanted.shape == (4, 1)
    assert torch.allclose(scores(network), wanted[:, 0], atol=1e-4)
    assert torch.allclose(scores(reward_model.load_reward_model(tmp_path / "model")), wanted[:, 0], atol=1e-4)


@pytest.mark.parametrize("family", EVERY)
def test_an_adapter_saves_the_head_too(family, tmp_path):
    network = classifier(family)
    network.config.pad_token_id = 0
    network.save_pretrained(tmp_path / "base")
    network = reward_model.load_reward_base(str(tmp_path / "base"), SimpleNamespace(pad_token_id=0))
    adapted = prepare_for_training(network, "lora", 4, 8, 0.0, "all-linear", task_type="SEQ_CLS")
    torch.manual_seed(1)
    with torch.no_grad():
        for p in adapted.parameters():
            if p.requires_grad:
                p.add_(0.1 * torch.randn_like(p))
    adapted.eval()
    trained = scores(adapted)
    adapted.save_pretrained(tmp_path / "model")
    assert torch.allclose(scores(reward_model.load_reward_model(tmp_path / "model")), trained, atol=1e-3)
    assert not torch.allclose(scores(classifier(family)), trained, atol=0.05)


def test_bert_is_told_which_segment_is_which():
    network = classifier("bert")
    batch = padded(ROWS[:2])
    segments = torch.zeros_like(batch["input_ids"])
    segments[:, 3:] = 1
    with torch.no_grad():
        found = normalized_scores(network, batch | {"segments": segments})
        wanted = network(input_ids=batch["input_ids"], attention_mask=batch["mask"], token_type_ids=segments).logits
        without = normalized_scores(network, batch)
    assert torch.allclose(found, wanted[:, 0])
    assert not torch.allclose(found, without, atol=0.01)


@pytest.mark.parametrize("family", EVERY)
def test_the_head_begins_with_a_spread_that_makes_first_scores_of_order_one(family):
    wide = {"hidden_size": 1024, "num_attention_heads": 4, "num_hidden_layers": 1}
    network = classifier(family, **wide)
    torch.manual_seed(0)
    reward_model.init_score_head(network)
    layer = reward_model.score_head(network)
    assert layer.weight.shape == (1, 1024)
    assert layer.weight.std().item() == pytest.approx(1 / math.sqrt(1025), rel=0.1)
    assert abs(layer.weight.mean().item()) < 4 / 1025
    assert layer.bias is None or not layer.bias.any()


def test_a_network_without_a_known_head_is_refused():
    with pytest.raises(MannersError, match="Qwen2ForCausalLM has no linear head"):
        reward_model.score_head(language_model("qwen2"))


def test_as_a_reward_it_scores_each_reply_by_itself_in_order(tokenizer):
    """Called by name with messages, as PPO calls it; sorted by length and batched on the way."""
    network = classifier("qwen2", vocab_size=len(tokenizer)).train()
    said = [(f"Question {i}?", "word " * (7 * i % 5)) for i in range(9)]
    prompts = [[{"role": "user", "content": question}] for question, _ in said]
    completions = [[{"role": "assistant", "content": reply.strip()}] for _, reply in said]
    function = make_reward_func(network, tokenizer, 64, ScoreNormalizer(1.0, 2.0))
    together = function(prompts=prompts, completions=completions, completion_ids=[[1]] * 9, ended=[True] * 9)
    for prompt, completion, score in zip(prompts, completions, together, strict=True):
        text = tokenizer.apply_chat_template(prompt + completion, tokenize=False).rstrip("\n")
        with torch.no_grad():
            wanted = network(torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])).logits
        assert score == pytest.approx(1.0 + 2.0 * float(wanted), abs=2e-3)
    assert len({round(score, 3) for score in together}) == 9
    assert network.training


# --- Units ---


def test_units_by_hand_and_back(tmp_path):
    units = ScoreNormalizer.of([1.0, 2.0, 3.0, 6.0])
    assert (units.mean, units.scale) == pytest.approx((3.0, math.sqrt(14 / 3)))
    units.save(tmp_path)
    assert ScoreNormalizer.load(tmp_path) == units


@pytest.mark.parametrize("same", [[0.5, 0.5], [0.1, 0.1, 0.1], [0.7] * 10, [-3.3] * 1000, [4.0]])
def test_scores_that_are_all_the_same_are_refused(same):
    """0.1 three times has a mean that is not quite 0.1."""
    with pytest.raises(MannersError, match="all scores are the same"):
        ScoreNormalizer.of(same)


def test_scores_that_hardly_differ_are_taken():
    assert ScoreNormalizer.of([1.0, 1.0 + 1e-9]).scale > 0


# --- Losses ---


def test_regression_by_hand():
    found, wanted = torch.tensor([0.5, -1.0, 3.0]), torch.tensor([0.0, -1.0, 0.0])
    assert float(regression_loss(found, wanted, "mse")) == pytest.approx(0.25 + 0 + 9)
    assert float(regression_loss(found, wanted, "huber")) == pytest.approx(0.125 + 0 + (3 - 0.5))  # ½x², then |x| − ½


def test_the_order_of_a_prompts_replies_by_hand():
    """Three replies to prompt 0, two to prompt 2, which are as good as each other, one to prompt 1."""
    scores = torch.tensor([1.0, 0.0, 2.0, 5.0, 7.0, 9.0])
    targets = torch.tensor([1.0, 0.5, -0.2, 0.3, 0.3, -4.0])
    prompts = torch.tensor([0, 0, 0, 2, 2, 1])
    softplus = lambda x: math.log1p(math.exp(x))  # noqa: E731
    pairs = [softplus(-2.0), softplus(2.0), softplus(4.0)]  # 1 over 0; 1 over 2, wrongly; 0 over 2, wrongly
    assert float(ranking_loss(scores, targets, prompts)) == pytest.approx(3 * sum(pairs) / 3)
    assert float(ranking_loss(scores[3:], targets[3:], prompts[3:])) == 0.0


def test_bradley_terry_by_hand():
    chosen, rejected, margins = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 2.0]), torch.tensor([0.5, 1.0])
    wanted = math.log(1 + math.exp(-0.5)) + math.log(1 + math.exp(3.0))
    assert float(bradley_terry_loss(chosen, rejected, margins)) == pytest.approx(wanted)
    assert float(bradley_terry_loss(torch.zeros(1), torch.zeros(1), torch.zeros(1))) == pytest.approx(math.log(2))
    assert float(bradley_terry_loss(torch.zeros(1), torch.tensor([500.0]), torch.zeros(1))) == pytest.approx(500.0)
