"""Rows that begin alike are read once: the numbers and the gradients of separate rows, for fewer tokens."""

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed.fsdp import FSDPModule
from transformers import AutoModelForCausalLM, BloomConfig, MistralConfig

from manners.models.policy import Policy
from manners.models.shared_prefixes import (
    lay_out,
    row_paths,
    shared_reading,
    sorted_rows,
    supports_prefix,
    supports_shared_prefixes,
)
from tests.families import DECODERS, VOCAB, language_model
from tests.models.test_policy import TEMPERATURE, lora, make_batch, perturb

SYSTEM, PROMPTS = [7, 8, 9, 10, 11, 12], [[20, 21, 22, 23], [20, 24], [30, 31, 32, 33, 34, 35]]


def replies_to_prompts(copies=3):
    """Rows of a system message, a prompt and a reply, in an order that has nothing to do with the prompts."""
    generator = torch.Generator().manual_seed(3)
    rows, starts = [], []
    for copy_number in range(copies):
        for prompt in PROMPTS:
            reply = torch.randint(40, VOCAB, (2 + copy_number,), generator=generator).tolist()
            rows.append([*SYSTEM, *prompt, *reply])
            starts.append(len(SYSTEM) + len(prompt))
    return make_batch(rows, starts)


def prompts_of_their_own():
    """Rows that have nothing but a system message in common."""
    rows = [[*SYSTEM, *range(20 + 5 * i, 25 + 5 * i)] for i in range(4)]
    return make_batch(rows, [len(SYSTEM) + 1] * 4)


ROWS_THAT_SHARE = {"prompts": replies_to_prompts, "system": prompts_of_their_own}


def test_rows_share_a_prefix_and_need_no_mask_for_it():
    for name, rows in ROWS_THAT_SHARE.items():
        ids, mask = rows()
        reading, _ = shared_reading(ids, F.pad(mask, (0, 1)))
        assert reading.prefix.tolist() == SYSTEM
        assert ("attention_mask" in reading.extra) == (name == "prompts")


@pytest.mark.parametrize("rows", ROWS_THAT_SHARE)
@pytest.mark.parametrize("critic", ["head", "adapter"])
@pytest.mark.parametrize("family", DECODERS)
def test_numbers_and_gradients_are_those_of_separate_rows(family, critic, rows):
    policy = Policy(lora(language_model(family)), critic)
    perturb(policy.model, std=0.05)
    perturb(policy.value_head)
    ids, mask = ROWS_THAT_SHARE[rows]()
    weights = torch.randn(3, int(mask.sum()), generator=torch.Generator().manual_seed(5))
    results = []
    for shares in (True, False):
        policy.shares_prefixes = shares
        policy.zero_grad()
        output = policy(ids, mask, TEMPERATURE)
        numbers = torch.stack([output.logprobs, output.entropy, output.values])
        (weights * numbers).sum().backward()
        gradient = torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None])
        results.append((numbers.detach(), policy.reference_logprobs(ids, mask, TEMPERATURE), gradient))
    for shared, separate in zip(*results, strict=True):
        assert separate.abs().max() > 0.1
        assert torch.allclose(shared, separate, atol=1e-4 * float(separate.abs().max()))


@pytest.mark.parametrize("rows", ROWS_THAT_SHARE)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_whole_network_trains_as_by_separate_rows(rows, checkpointing):
    policy = Policy(copy.deepcopy(language_model("qwen2")), "none").train()
    ids, mask = ROWS_THAT_SHARE[rows]()
    if checkpointing:  # whose layers would forget what they were given of the prefix
        policy.model.gradient_checkpointing_enable()
    assert (policy.reading(ids, mask).prefix is None) == checkpointing
    gradients = []
    for shares in (True, False):
        policy.shares_prefixes = shares
        policy.zero_grad()
        policy(ids, mask, TEMPERATURE).logprobs.sum().backward()
        gradients.append(policy.model.get_input_embeddings().weight.grad.clone())
    assert torch.allclose(*gradients, atol=1e-4 * float(gradients[1].abs().max()))


def test_each_distinct_prefix_is_read_once():
    """In one sequence there are as many tokens as the rows have distinct prefixes."""
    ids, mask = replies_to_prompts(copies=8)
    for with_prefix in (True, False):
        reading, _ = shared_reading(ids, F.pad(mask, (0, 1)), with_prefix)
        assert reading.ids.numel() < 0.5 * ids.numel()
        assert with_prefix == (reading.prefix is not None)
    assert shared_reading(ids, F.pad(mask, (0, 1)))[0].prefix.tolist() == SYSTEM
    lengths = mask.int().mul(torch.arange(1, mask.shape[1] + 1)).amax(1)
    order, common = sorted_rows(ids, lengths)
    layout = lay_out(lengths[order].tolist(), common, room=10**6)
    assert layout.sizes == [
        len({tuple(r[:k]) for r, n in zip(ids.tolist(), lengths, strict=True) for k in range(1, n + 1)})
    ]


def test_rows_with_little_in_common_stay_as_they_are():
    ids, mask = make_batch([[1, *range(start, start + 24)] for start in (2, 30, 60)], [3, 3, 3])
    assert shared_reading(ids, F.pad(mask, (0, 1))) is None
    assert torch.equal(Policy(language_model("qwen2")).reading(ids, mask).ids, ids)


ROWS = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=8), min_size=1, max_size=9)


@given(ROWS, st.integers(0, 20))
@settings(deadline=None)
def test_every_row_is_spelled_by_its_path(rows, more):
    ids, _ = make_batch(rows, [1] * len(rows))
    lengths, room = torch.tensor([len(row) for row in rows]), max(map(len, rows)) + more
    order, common = sorted_rows(ids, lengths)
    layout = lay_out(lengths[order].tolist(), common, room)
    assert sorted(order) == list(range(len(rows))) and max(layout.sizes) <= room
    spelled = {}
    for row, sequence, path in zip(
        order, layout.sequences, row_paths(lengths[order].tolist(), common, layout), strict=True
    ):
        assert path.tolist() == sorted(path.tolist())  # causal: a token comes after all that it attends to
        assert len(path) == len(rows[row]) and int(path.max()) < layout.sizes[sequence]
        for node, token in zip(path.tolist(), rows[row], strict=True):
            assert spelled.setdefault((sequence, node), token) == token
    assert len(spelled) == sum(layout.sizes)


@given(ROWS, st.data())
@settings(deadline=None)
def test_a_token_sees_its_own_row_alone(rows, data):
    starts = [data.draw(st.integers(1, len(row))) for row in rows]
    ids, mask = make_batch([[*row, 1] for row in rows], starts)
    found = shared_reading(ids, F.pad(mask, (0, 1)))
    if found is None:
        return
    reading, paths = found
    prefix = [] if reading.prefix is None else reading.prefix.tolist()
    (count, width), behind = reading.ids.shape, len(prefix)
    causal = torch.ones(width, behind + width, dtype=torch.bool).tril(behind).expand(count, 1, -1, -1)
    visible = reading.extra.get("attention_mask", causal)
    sequences = [prefix + row for row in reading.ids.tolist()]
    position_ids = reading.extra.get("position_ids", torch.arange(width).expand(count, -1))
    places = [list(range(behind)) + row for row in position_ids.tolist()]
    wanted = [row[: t + 1] for row, m in zip(ids.tolist(), mask.tolist(), strict=True) for t in range(len(m)) if m[t]]
    assert len(reading.positions) == len(wanted)
    for position, tokens in zip(reading.positions.tolist(), wanted, strict=True):
        i, t = divmod(position, width)
        seen = visible[i, 0, t].nonzero()[:, 0].tolist()
        assert [sequences[i][s] for s in seen] == tokens
        assert [places[i][s] for s in seen] == list(range(len(tokens)))
    laid = [token for sequence in sequences for token in sequence]
    for row, path in zip(ids.tolist(), paths, strict=True):
        assert [laid[i] for i in path.tolist()] == row[: len(path)]


@pytest.mark.parametrize("rope", ["dynamic", "longrope", "default"])
def test_no_sharing_where_rotations_depend_on_the_length(rope):
    model = copy.deepcopy(language_model("llama"))
    model.config.rope_parameters = {"rope_type": rope, "rope_theta": 1e4}
    assert supports_shared_prefixes(model) == (rope == "default")


def test_a_sharded_model_reads_no_prefix():
    model = copy.deepcopy(language_model("llama"))
    assert supports_prefix(model)
    model.model.layers[0].__class__ = type("Sharded", (FSDPModule, type(model.model.layers[0])), {})  # as fully_shard
    assert not supports_prefix(model)


def test_rows_that_are_only_cut_are_read_as_they_are():
    """Without a mask or positions of their own, which would take attention to its slower kernel."""
    ids, mask = make_batch([[start, *range(10, 40)] for start in (2, 3)], [1, 1])
    mask[:, 5:] = False
    reading, _ = shared_reading(ids, F.pad(mask, (0, 1)))
    assert reading.extra == {} and reading.prefix is None and reading.ids.shape == (2, 5)


@pytest.mark.parametrize("family", [*DECODERS, "window", "alibi", "flash"])
def test_where_a_prefix_can_be_shared(family):
    """Not with a sliding window, positions that the model counts by itself, or attention that takes no mask."""
    if family == "window":
        size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
        config = MistralConfig(vocab_size=VOCAB, sliding_window=3, num_key_value_heads=2, **size)
        model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    elif family == "alibi":
        model = AutoModelForCausalLM.from_config(BloomConfig(vocab_size=VOCAB, hidden_size=32, n_layer=1, n_head=4))
        model.config._attn_implementation = "sdpa"
    else:
        model = language_model("qwen2" if family == "flash" else family)
        if family == "flash":
            model.config._attn_implementation = "flash_attention_2"
    assert supports_shared_prefixes(model) == Policy(model).shares_prefixes == (family in DECODERS)
