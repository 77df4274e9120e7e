"""Reward models: scores are independent of batch and padding, and equal those of plain transformers."""

import math
from types import SimpleNamespace

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

from manners.errors import MannersError
from manners.methods.reward import bradley_terry_loss, make_reward_func, ranking_loss, regression_loss
from manners.models import reward_model
from manners.models.lora import prepare_for_training
from manners.models.reward_model import ScoreNormalizer, normalized_scores
from tests.families import DECODERS, VOCAB, classifier, language_model

ROWS = [[5, 9, 33, 2, 7], [8, 1, 90, 4, 61, 12, 13, 44, 6], [77], [15, 16, 17, 18, 19, 1]]
FAMILIES = [*DECODERS, "bert"]


def padded_batch(rows, pad=0, side="right", extra_width=0):
    width = max(map(len, rows)) + extra_width
    ids, mask = torch.full((len(rows), width), pad), torch.zeros((len(rows), width), dtype=torch.long)
    for i, row in enumerate(rows):
        at = slice(0, len(row)) if side == "right" else slice(width - len(row), width)
        ids[i, at], mask[i, at] = torch.tensor(row), 1
    return {"input_ids": ids, "attention_mask": mask}


def scores_one_by_one(model):
    """Plain transformers' output for each row by itself, without padding."""
    with torch.no_grad():
        return torch.cat([model(torch.tensor([row])).logits[:, 0] for row in ROWS])


def scores(model, **padding):
    with torch.no_grad():
        return normalized_scores(model, padded_batch(ROWS, **padding))


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_independent_of_padding(family, side):
    """Of its side, its length and its token: rows 1 and 3 contain the token 1 as well."""
    model = classifier(family)
    expected = scores_one_by_one(model)
    assert expected.std() > 0.05
    for pad, extra_width in ((0, 0), (1, 0), (41, 5)):
        assert torch.allclose(scores(model, pad=pad, side=side, extra_width=extra_width), expected, atol=1e-4)


def test_scores_skip_padding_within_a_row():
    model = classifier("gpt2")
    ids, mask = torch.tensor([[0, 5, 0, 9, 33, 0]]), torch.tensor([[0, 1, 0, 1, 1, 0]])
    with torch.no_grad():
        expected = model(torch.tensor([[5, 9, 33]])).logits
        output = normalized_scores(model, {"input_ids": ids, "attention_mask": mask})
    assert torch.allclose(output, expected[:, 0], atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_saved_model_scores_match_plain_transformers(family, tmp_path):
    """Loaded by its auto class and given a right-padded batch with a mask, as anybody would use the folder."""
    pad = 0
    language = language_model(family) if family != "bert" else classifier("bert").base_model
    language.save_pretrained(tmp_path / "base")
    torch.manual_seed(0)
    model = reward_model.load_reward_base(str(tmp_path / "base"), SimpleNamespace(pad_token_id=pad)).eval()
    model.save_pretrained(tmp_path / "model")
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model").eval()
    batch = padded_batch(ROWS, pad)
    with torch.no_grad():
        expected = plain(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    assert expected.shape == (4, 1)
    assert torch.allclose(scores(model), expected[:, 0], atol=1e-4)
    assert torch.allclose(scores(reward_model.load_reward_model(tmp_path / "model")), expected[:, 0], atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_saved_adapter_includes_the_head(family, tmp_path):
    model = classifier(family)
    model.config.pad_token_id = 0
    model.save_pretrained(tmp_path / "base")
    adapted = trained_lora(tmp_path / "base")
    trained = scores(adapted)
    adapted.save_pretrained(tmp_path / "model")
    assert torch.allclose(scores(reward_model.load_reward_model(tmp_path / "model")), trained, atol=1e-3)
    assert not torch.allclose(scores(classifier(family)), trained, atol=0.05)


# --- Layers that the checkpoint lacks ---


def trained_lora(base, kind="lora", attn_implementation="sdpa"):
    """A new reward model on ``base``, with everything that trains changed at random."""
    model = reward_model.load_reward_base(
        str(base), SimpleNamespace(pad_token_id=0), attn_implementation=attn_implementation
    )
    model = prepare_for_training(
        model, kind, 4, 8, 0.0, "all-linear", task_type="SEQ_CLS", modules_to_save=reward_model.head_modules(model)
    )
    torch.manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p)) if p.requires_grad else None
    return model.eval()


SIZE = {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
SIZE |= {"intermediate_size": 64, "initializer_range": 0.3, "bos_token_id": None, "eos_token_id": None}
DISTILBERT = {"vocab_size": VOCAB, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64, "initializer_range": 0.3}
ENCODERS = [  # architecture, attention, whether its base is saved with a pooler, what is drawn at random
    ("Bert", SIZE, "sdpa", {"add_pooling_layer": False}, ["bert.pooler", "classifier"]),
    ("Bert", SIZE, "sdpa", {}, ["classifier"]),
    ("DistilBert", DISTILBERT, "sdpa", {}, ["classifier", "pre_classifier"]),
    ("Roberta", SIZE, "sdpa", {"add_pooling_layer": False}, ["classifier"]),
    ("Electra", SIZE | {"embedding_size": 16}, "sdpa", {}, ["classifier"]),
    ("ModernBert", SIZE | {"pad_token_id": 0}, "sdpa", {}, ["classifier", "head"]),
    ("DebertaV2", SIZE, "eager", {}, ["classifier", "pooler"]),
    ("Gemma2", SIZE | {"num_key_value_heads": 2, "head_dim": 8}, "eager", {}, ["score"]),
]


@pytest.mark.parametrize("kind", ["lora", "none"])
@pytest.mark.parametrize("family, size, attention, options, new", ENCODERS)
def test_layers_drawn_at_random_are_saved(tmp_path, family, size, attention, options, new, kind):
    config = getattr(transformers, f"{family}Config")(**size)
    torch.manual_seed(0)
    getattr(transformers, f"{family}Model")(config, **options).save_pretrained(tmp_path / "base")
    model = trained_lora(tmp_path / "base", kind, attention)
    assert reward_model.unwrapped(model).new_modules == new
    model.save_pretrained(tmp_path / "model")
    reloaded = [
        reward_model.load_reward_model(tmp_path / "model", None, implementation)
        for implementation in (attention, None)  # what is remembered, and what transformers takes by itself
    ]
    assert reloaded[0].config._attn_implementation == attention
    for again in reloaded:
        assert torch.allclose(scores(again), scores(model), atol=1e-3)
    assert scores(model).std() > 1e-3


def test_unsupported_attention_is_named_with_what_to_set(tmp_path):
    transformers.DebertaV2Model(transformers.DebertaV2Config(**SIZE)).save_pretrained(tmp_path)
    with pytest.raises(MannersError, match=r"set model\.attn_implementation=eager"):
        reward_model.load_reward_base(str(tmp_path), SimpleNamespace(pad_token_id=0), attn_implementation="sdpa")


def test_reward_base_without_part_of_its_trunk_is_refused(tmp_path):
    classifier("bert").bert.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights["embeddings.word_embeddings.weight"] = torch.zeros(VOCAB, 16)  # of another size: would be drawn anew
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(MannersError, match=r"word_embeddings\.weight and 0 more"):
        reward_model.load_reward_base(str(tmp_path), SimpleNamespace(pad_token_id=0))


def test_reward_folder_without_all_its_layers_is_refused(tmp_path):
    """A plain encoder, and an adapter as peft saves it by itself: with the classifier, without the pooler."""
    config = transformers.BertConfig(**SIZE)
    transformers.BertModel(config, add_pooling_layer=False).save_pretrained(tmp_path / "base")
    with pytest.raises(MannersError, match=r"no weights of bert\.pooler, classifier"):
        reward_model.load_reward_model(tmp_path / "base")
    base = reward_model.load_reward_base(str(tmp_path / "base"), SimpleNamespace(pad_token_id=0))
    adapter = prepare_for_training(base, "lora", 4, 8, 0.0, "all-linear", task_type="SEQ_CLS")
    adapter.save_pretrained(tmp_path / "adapter")
    with pytest.raises(MannersError, match=r"no weights of bert\.pooler\."):
        reward_model.load_reward_model(tmp_path / "adapter")


def test_bert_scores_use_token_type_ids():
    model = classifier("bert")
    batch = padded_batch(ROWS[:2])
    token_type_ids = torch.zeros_like(batch["input_ids"])
    token_type_ids[:, 3:] = 1
    with torch.no_grad():
        output = normalized_scores(model, batch | {"token_type_ids": token_type_ids})
        expected = model(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], token_type_ids=token_type_ids
        ).logits
        without = normalized_scores(model, batch)
    assert torch.allclose(output, expected[:, 0])
    assert not torch.allclose(output, without, atol=0.01)


@pytest.mark.parametrize("family", FAMILIES)
def test_init_score_head_makes_first_scores_of_order_one(family):
    size = {"hidden_size": 1024, "num_attention_heads": 4, "num_hidden_layers": 1}
    model = classifier(family, **size)
    torch.manual_seed(0)
    reward_model.init_score_head(model)
    head = reward_model.score_head(model)
    assert head.weight.shape == (1, 1024)
    assert head.weight.std().item() == pytest.approx(1 / math.sqrt(1025), rel=0.1)
    assert abs(head.weight.mean().item()) < 4 / 1025
    assert head.bias is None or not head.bias.any()


def test_score_head_refuses_a_model_without_one():
    with pytest.raises(MannersError, match="Qwen2ForCausalLM has no head"):
        reward_model.score_head(language_model("qwen2"))


def test_reward_func_scores_each_reply_in_order(tokenizer):
    """Called with TRL's arguments, as PPO does; replies are sorted by length and batched inside."""
    model = classifier("qwen2", vocab_size=len(tokenizer)).train()
    pairs = [(f"Question {i}?", "word " * (7 * i % 5)) for i in range(9)]
    prompts = [[{"role": "user", "content": question}] for question, _ in pairs]
    completions = [[{"role": "assistant", "content": reply.strip()}] for _, reply in pairs]
    reward_func = make_reward_func(model, tokenizer, 64, ScoreNormalizer(1.0, 2.0))
    rewards = reward_func(prompts=prompts, completions=completions, completion_ids=[[1]] * 9, ended=[True] * 9)
    for prompt, completion, score in zip(prompts, completions, rewards, strict=True):
        text = tokenizer.apply_chat_template(prompt + completion, tokenize=False).rstrip("\n")
        with torch.no_grad():
            expected = model(torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])).logits
        assert score == pytest.approx(1.0 + 2.0 * float(expected), abs=2e-3)
    assert len({round(score, 3) for score in rewards}) == 9
    assert model.training


# --- ScoreNormalizer ---


def test_score_normalizer_by_hand_and_saved(tmp_path):
    normalizer = ScoreNormalizer.from_scores([1.0, 2.0, 3.0, 6.0])
    assert (normalizer.mean, normalizer.scale) == pytest.approx((3.0, math.sqrt(14 / 3)))
    assert normalizer.to_target(6.0) == pytest.approx(3 / math.sqrt(14 / 3))
    assert normalizer.to_score(normalizer.to_target(6.0)) == pytest.approx(6.0)
    normalizer.save(tmp_path)
    assert ScoreNormalizer.load(tmp_path) == normalizer


@pytest.mark.parametrize("scores", [[0.5, 0.5], [0.1, 0.1, 0.1], [0.7] * 10, [-3.3] * 1000, [4.0]])
def test_score_normalizer_refuses_equal_scores(scores):
    """In floating point, the mean of 0.1 three times is not exactly 0.1."""
    with pytest.raises(MannersError, match="all scores are the same"):
        ScoreNormalizer.from_scores(scores)


def test_score_normalizer_accepts_almost_equal_scores():
    assert ScoreNormalizer.from_scores([1.0, 1.0 + 1e-9]).scale > 0


# --- Losses ---


def test_regression_loss_by_hand():
    outputs, targets = torch.tensor([0.5, -1.0, 3.0]), torch.tensor([0.0, -1.0, 0.0])
    assert float(regression_loss(outputs, targets, "mse")) == pytest.approx(0.25 + 0 + 9)
    assert float(regression_loss(outputs, targets, "huber")) == pytest.approx(
        0.125 + 0 + (3 - 0.5)
    )  # ½x², then |x| − ½


def test_ranking_loss_by_hand():
    """Three replies to prompt 0, two with equal targets to prompt 2, one to prompt 1."""
    scores = torch.tensor([1.0, 0.0, 2.0, 5.0, 7.0, 9.0])
    targets = torch.tensor([1.0, 0.5, -0.2, 0.3, 0.3, -4.0])
    prompts = torch.tensor([0, 0, 0, 2, 2, 1])
    softplus = lambda x: math.log1p(math.exp(x))  # noqa: E731
    pairs = [softplus(-2.0), softplus(2.0), softplus(4.0)]  # one pair in the right order, two in the wrong one
    assert float(ranking_loss(scores, targets, prompts)) == pytest.approx(3 * sum(pairs) / 3)
    assert float(ranking_loss(scores[3:], targets[3:], prompts[3:])) == 0.0


def test_bradley_terry_loss_by_hand():
    chosen, rejected, margins = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 2.0]), torch.tensor([0.5, 1.0])
    expected = math.log(1 + math.exp(-0.5)) + math.log(1 + math.exp(3.0))
    assert float(bradley_terry_loss(chosen, rejected, margins)) == pytest.approx(expected)
    assert float(bradley_terry_loss(torch.zeros(1), torch.zeros(1), torch.zeros(1))) == pytest.approx(math.log(2))
    assert float(bradley_terry_loss(torch.zeros(1), torch.tensor([500.0]), torch.zeros(1))) == pytest.approx(500.0)
