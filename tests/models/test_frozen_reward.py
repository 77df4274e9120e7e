"""The head of a reward model on a frozen base: its features, its training and its files."""

import pytest
import torch

from manners.data.prompt_groups import PromptGroup, collate_groups, group_by_prompt
from manners.data.reward_examples import RewardExample
from manners.errors import MannersError
from manners.methods.reward import collate_features, predict_scores, read_features
from manners.models.frozen_reward import FrozenRewardModel, ScoreHead, load_frozen_reward_model, span_means
from manners.models.reward_model import load_reward_model, normalized_scores
from tests.families import DECODERS, language_model

PROMPT, OTHER = [5, 9, 33, 2], [8, 1, 90]
REPLIES = [[7, 7, 11], [12], [13, 44, 6, 1, 2]]
EXAMPLES = [
    RewardExample([*prompt, *reply], prompt_length=len(prompt), target=target)
    for prompt, reply, target in (
        (PROMPT, REPLIES[0], 1.0),
        (OTHER, REPLIES[1], -1.0),
        (PROMPT, REPLIES[1], 0.5),
        (PROMPT, REPLIES[2], -0.2),
    )
]
PAIRS = [
    RewardExample([*PROMPT, *REPLIES[0]], prompt_length=4, margin=0.3, rejected=EXAMPLES[3]),
    RewardExample([*OTHER, *REPLIES[2]], prompt_length=3, margin=0.1, rejected=EXAMPLES[1]),
]


def frozen(family, layers=6):
    """A random decoder of six layers under a head; and the whole decoder."""
    whole = language_model(family, num_hidden_layers=layers).base_model
    trunk = language_model(family, num_hidden_layers=layers).base_model
    trunk.config._attn_implementation = "sdpa"
    torch.manual_seed(1)
    return FrozenRewardModel(trunk, "base", None), whole


def groups_of(examples, share):
    return [PromptGroup([examples[i] for i in group], share) for group in group_by_prompt(examples, share)]


@torch.no_grad()
def expected_features(whole, example):
    """From the hidden states of the whole decoder, a row for itself; of six layers, the third is read."""
    ids, n = torch.tensor([example.input_ids]), example.prompt_length
    hidden = whole(ids, output_hidden_states=True).hidden_states[3][0]
    return torch.cat([hidden[n:].mean(0), hidden[:n].mean(0)])


@pytest.mark.parametrize("family", DECODERS)
@pytest.mark.parametrize("share", [True, False])
def test_features_are_means_over_reply_and_prompt(family, share):
    model, whole = frozen(family)
    assert model.num_layers == 3
    items = read_features(model, groups_of(EXAMPLES, share), pad=0, share=share)
    for item in items:
        assert torch.allclose(item.features[0], expected_features(whole, item.example), atol=5e-5)
    assert sorted(item.example.target for item in items) == sorted(e.target for e in EXAMPLES)


@pytest.mark.parametrize("share", [True, False])
def test_features_of_pairs_belong_to_chosen_and_rejected(share):
    model, whole = frozen("llama")
    items = read_features(model, groups_of(PAIRS, share), pad=0, share=share)
    for item in items:
        assert torch.allclose(item.features[0], expected_features(whole, item.example), atol=5e-5)
        assert torch.allclose(item.features[1], expected_features(whole, item.example.rejected), atol=5e-5)
    batch = collate_features(items)
    assert torch.equal(batch["features"][0], items[0].features[0])
    assert torch.equal(batch["features"][len(items)], items[0].features[1])
    assert batch["margins"].tolist() == pytest.approx([item.example.margin for item in items])


def test_mean_of_no_prompt_is_zero():
    hidden = torch.arange(12.0).reshape(1, 4, 3)
    means = span_means(hidden, torch.tensor([[0, 0, 1, 3], [0, 2, 2, 2]]))
    assert means.tolist() == [[4.5, 5.5, 6.5, 0, 0, 0], [0, 0, 0, 1.5, 2.5, 3.5]]


def test_head_standardizes_and_trains_nothing_but_itself():
    model, _ = frozen("qwen2")
    features = torch.cat([item.features for item in read_features(model, groups_of(EXAMPLES, True), 0, True)])
    model.head.standardize_by(features)
    inputs = []
    model.head.layers.register_forward_pre_hook(lambda _module, args: inputs.append(args[0]))
    model.head.eval()(features)
    assert torch.allclose(inputs[0].mean(0), torch.zeros(64), atol=1e-5)
    assert torch.allclose(inputs[0].std(0), torch.ones(64), atol=1e-2)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained and all(name.startswith("head.") for name in trained)


def test_scores_of_a_batch_are_the_heads_on_its_features():
    model, whole = frozen("llama")
    model.eval()
    batch = collate_groups(groups_of(EXAMPLES, True), 0, True)
    expected = model.head(
        torch.stack([expected_features(whole, e) for g in groups_of(EXAMPLES, True) for e in g.examples])
    )
    assert torch.allclose(normalized_scores(model, batch), expected, atol=1e-5)
    items = read_features(model, groups_of(EXAMPLES, True), 0, True)
    assert torch.allclose(normalized_scores(model.head, collate_features(items)), expected, atol=1e-5)


def test_scores_are_computed_in_32_bits_under_autocast():
    head = ScoreHead(8).eval()
    features = torch.randn(3, 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(head(features), head(features)) and head(features).dtype == torch.float32


def test_saved_head_scores_alike_on_its_base(tmp_path, tokenizer):
    from manners.models.frozen_reward import load_frozen_base

    model = load_frozen_base("tiny", None, None)
    model.head.standardize_by(torch.randn(9, 2 * model.config.hidden_size))
    model.save_pretrained(tmp_path / "model")
    replies = [([{"role": "user", "content": "Is a cat an animal?"}], text) for text in ("Yes.", "No, it is a tree.")]
    scores = predict_scores(model, tokenizer, 64, replies)
    assert predict_scores(load_reward_model(tmp_path / "model"), tokenizer, 64, replies) == pytest.approx(scores)
    assert scores[0] != pytest.approx(scores[1])
    assert not any(p.requires_grad for p in load_frozen_reward_model(tmp_path / "model", None).parameters())


def test_saved_head_reads_the_layers_that_it_was_trained_on(tmp_path, monkeypatch):
    """Whatever the default has become since."""
    from manners.models import frozen_reward

    model = frozen_reward.load_frozen_base("tiny", None, None)
    model.save_pretrained(tmp_path)
    monkeypatch.setattr(frozen_reward, "DEPTH", 1.0)
    assert load_frozen_reward_model(tmp_path, None).num_layers == model.num_layers
    assert frozen_reward.load_frozen_base("tiny", None, None).num_layers > model.num_layers


def test_decoder_without_a_list_of_layers_is_refused():
    trunk = language_model("llama").base_model
    trunk.more = torch.nn.ModuleList()
    with pytest.raises(MannersError, match="adapter=frozen: LlamaModel has no list of layers"):
        FrozenRewardModel(trunk, "base", None)
