"""Examples → batches: none lost, no attention across packed examples, and the same batches after a restart."""

import random
from collections import Counter
from functools import partial
from itertools import pairwise

import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from manners.data.batching import ResumableBatches, collate, pack, validation_batches
from manners.data.tokenize import IGNORE_INDEX, TokenizedExample

PAD = 0
collate_rows = partial(collate, pad=PAD)


def example(*ids, prompt=1):
    """An example whose first ``prompt`` tokens carry no loss."""
    return TokenizedExample(list(ids), [IGNORE_INDEX] * prompt + list(ids[prompt:]))


def examples(count, seed=0, max_length=40):
    """``count`` examples of random lengths; the first token of each is its number."""
    rng = random.Random(seed)
    rows = []
    for i in range(count):
        length = rng.randint(2, max_length)
        ids = [1000 + i, *[rng.randint(1, 99) for _ in range(length - 1)]]
        rows.append(example(*ids, prompt=rng.randint(1, length - 1)))
    return rows


def make_batches(data, batch_size=4, steps=10, accumulate=1, seed=1, group_by_length=True, **changes):
    return ResumableBatches(data, batch_size, collate_rows, steps, accumulate, seed, group_by_length, **changes)


def numbers(batches):
    """The numbers of the examples in each batch."""
    return [[int(i) - 1000 for i in batch["input_ids"][:, 0]] for batch in batches]


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


# --- Padding ---


def test_collate_pads_right_with_ignore_index():
    batch = collate([example(5, 6, 7), example(8, 9)], PAD)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 9, PAD]]
    assert batch["labels"].tolist() == [[IGNORE_INDEX, 6, 7], [IGNORE_INDEX, 9, IGNORE_INDEX]]
    assert batch["tokens"] == 5
    assert "position_ids" not in batch and "attention_mask" not in batch


def test_collate_keeps_the_loss_of_a_stop_token_used_as_padding():
    batch = collate([example(5, 6, 7, 8), example(5, 6, PAD)], PAD)
    assert batch["input_ids"][1].tolist() == [5, 6, PAD, PAD]
    assert batch["labels"][1].tolist() == [IGNORE_INDEX, 6, PAD, IGNORE_INDEX]


def test_padding_does_not_change_the_logits_before_it():
    model = MODELS["qwen2"]()
    short, long = example(5, 6, 7), example(8, 9, 10, 11, 12, 13)
    batch = collate([short, long], PAD)
    with torch.no_grad():
        padded = model(batch["input_ids"], use_cache=False).logits[0, :3]
        alone = model(torch.tensor([short.input_ids]), use_cache=False).logits[0]
    torch.testing.assert_close(padded, alone, atol=1e-5, rtol=0)


# --- Order ---


@pytest.mark.parametrize("group_by_length", [True, False])
@pytest.mark.parametrize("count", [1, 3, 8, 23, 450])  # 450 is more than one window of batches of four
def test_every_example_comes_exactly_once_an_epoch(count, group_by_length):
    per_epoch = -(-count // 4)
    batches = numbers(make_batches(examples(count), steps=3 * per_epoch, group_by_length=group_by_length))
    assert len(batches) == 3 * per_epoch
    for epoch in range(3):
        given = [i for batch in batches[epoch * per_epoch : (epoch + 1) * per_epoch] for i in batch]
        assert sorted(given) == list(range(count))


@pytest.mark.parametrize("group_by_length", [True, False])
def test_order_depends_on_seed_and_epoch_only(group_by_length):
    data, how = examples(23), {"steps": 12, "group_by_length": group_by_length}
    one = numbers(make_batches(data, **how))
    assert one == numbers(make_batches(data, **how))
    assert one != numbers(make_batches(data, **how, seed=2))
    assert one[:6] != one[6:]  # an epoch is six batches


def test_longer_run_begins_like_a_shorter_one():
    data = examples(23)
    assert numbers(make_batches(data, steps=20))[:7] == numbers(make_batches(data, steps=7))


@pytest.mark.parametrize("num_processes", [1, 2])
def test_microbatches_hold_the_rows_of_their_batch_in_order(num_processes):
    """Eleven examples, four on each process, two in a microbatch: of the last three, a microbatch may have none."""
    data = examples(11)
    for rank in range(num_processes):
        how = {"steps": 3, "accumulate": 2, "rank": rank, "num_processes": num_processes}
        whole, split = make_batches(data, **how), make_batches(data, **how, microbatch_size=2)
        assert (len(split), split.accumulate) == (2 * len(whole), 4)
        microbatches = list(split)
        for i, batch in enumerate(whole):
            parts = microbatches[2 * i : 2 * i + 2]
            own = [part for part in parts if "is_filler" not in part]
            assert [[row for rows in numbers(own) for row in rows]] == numbers([batch])
            assert max(map(len, numbers(parts))) <= 2
            assert all(part["step_num_targets"] == batch["step_num_targets"] for part in parts)


@pytest.mark.parametrize(("batch_size", "microbatch_size", "rows"), [(6, 4, [3, 3]), (6, 1, [1] * 6), (4, 9, [4])])
def test_microbatches_are_as_even_as_can_be(batch_size, microbatch_size, rows):
    batches = make_batches(examples(12), batch_size, steps=1, microbatch_size=microbatch_size)
    assert [len(batch["input_ids"]) for batch in batches] == rows


def test_run_in_microbatches_resumes_where_it_was():
    make = lambda: make_batches(examples(11), steps=3, accumulate=2, microbatch_size=2)  # noqa: E731
    whole, resumed = make(), make()
    rest = [batch for i, batch in enumerate(whole) if i >= 4]
    resumed.load_state_dict({"position": 4, "num_microbatches": 2})
    assert all(map(equal, rest, resumed)) and resumed.position == len(resumed)


def test_run_resumes_with_another_microbatch_size():
    make = lambda rows: make_batches(examples(11), steps=3, accumulate=2, microbatch_size=rows)  # noqa: E731
    whole, resumed = make(1), make(1)
    state = make(4).state_dict() | {"position": 2}  # after one step
    resumed.load_state_dict(state)
    assert all(map(equal, list(whole)[8:], resumed))


def test_order_leaves_global_random_state_unchanged():
    random.seed(5)
    torch.manual_seed(5)
    expected = random.Random(5).random(), torch.rand(1, generator=torch.Generator().manual_seed(5))
    list(make_batches(examples(23)))
    assert (random.random(), torch.rand(1)) == expected


def non_padding_fraction(batches):
    return sum(int(b["tokens"]) for b in batches) / sum(b["input_ids"].numel() for b in batches)


def test_group_by_length_pads_less_and_still_mixes_lengths():
    data = examples(400)
    grouped, mixed = (list(make_batches(data, steps=100, group_by_length=by)) for by in (True, False))
    # Lengths are even from 2 to 40: 21 in the mean, and the longest of four about 2 + 38 * 4/5 = 32.
    # Of 200 sorted ones four neighbours differ by 38 * 3/200, less than one token.
    assert non_padding_fraction(mixed) == pytest.approx(21 / 32, abs=0.05)
    assert non_padding_fraction(grouped) > 0.95
    lengths = [b["input_ids"].shape[1] for b in grouped]
    assert lengths not in (sorted(lengths), sorted(lengths, reverse=True))
    ups = sum(a < b for a, b in pairwise(lengths))
    assert 35 < ups < 65  # of 99: about half, since the batches are shuffled


def test_validation_batches_have_every_example_once_by_length():
    data = examples(23)
    batches = validation_batches(data, 4, collate_rows)
    assert sorted(i for batch in numbers(batches) for i in batch) == list(range(23))
    lengths = [b["input_ids"].shape[1] for b in batches]
    assert lengths == sorted(lengths)
    assert validation_batches([], 4, collate_rows) == []


# --- Accumulation and restarts ---


@pytest.mark.parametrize("accumulate", [1, 2, 3])
def test_step_num_targets_is_of_the_whole_optimizer_step(accumulate):
    batches = list(make_batches(examples(23), steps=8, accumulate=accumulate))  # some steps span two epochs
    assert len(batches) == 8 * accumulate
    for step in range(8):
        of_step = batches[step * accumulate : (step + 1) * accumulate]
        num_targets = sum(int((b["labels"][:, 1:] != IGNORE_INDEX).sum()) for b in of_step)
        assert [int(b["step_num_targets"]) for b in of_step] == [num_targets] * accumulate


@pytest.mark.parametrize("given", [0, 1, 5, 11, 24])
def test_restart_continues_with_the_very_same_batches(given):
    data = examples(23)
    whole = list(make_batches(data, steps=12, accumulate=2))
    first = make_batches(data, steps=12, accumulate=2)
    iterator = iter(first)
    before = [next(iterator) for _ in range(given)]
    resumed = make_batches(data, steps=12, accumulate=2)
    resumed.load_state_dict(first.state_dict())
    after = list(resumed)
    assert len(before) + len(after) == len(whole) == len(resumed) == 24
    assert all(equal(one, other) for one, other in zip(before + after, whole, strict=True))


# --- Packing ---


def segments(row):
    """The examples in a packed row, by their positions: each begins at 0."""
    starts = [i for i, position in enumerate(row.position_ids) if position == 0] + [len(row.input_ids)]
    return list(pairwise(starts))


def test_pack_joins_two_examples_in_a_row():
    first, second = TokenizedExample([5, 6, 7], [5, 6, 7]), TokenizedExample([8, 9], [8, 9], num_truncated=4)
    [row] = pack([second, first], 6)
    assert row.input_ids == [5, 6, 7, 8, 9]
    assert row.position_ids == [0, 1, 2, 0, 1]
    assert row.labels == [IGNORE_INDEX, 6, 7, IGNORE_INDEX, 9]  # 8 would be predicted from 7, which is not its own
    assert row.num_truncated == 4
    assert row.num_targets == first.num_targets + second.num_targets == 3


def test_pack_loses_nothing_and_keeps_to_max_length():
    data = examples(200)
    rows = pack(data, 64)
    assert max(len(row.input_ids) for row in rows) <= 64
    found = Counter()
    for row in rows:
        assert len(row.input_ids) == len(row.labels) == len(row.position_ids)
        for start, end in segments(row):
            assert row.position_ids[start:end] == list(range(end - start))
            found[tuple(row.input_ids[start:end]), tuple(row.labels[start:end])] += 1
    assert found == Counter((tuple(e.input_ids), tuple(e.labels)) for e in data)
    assert sum(row.num_targets for row in rows) == sum(e.num_targets for e in data)
    # No two rows would fit into one, so that little is left empty.
    assert sum(sorted(len(row.input_ids) for row in rows)[:2]) > 64


def test_padding_after_a_packed_row_restarts_positions():
    rows = [*pack([example(5, 6, 7), example(8, 9)], 6), *pack([example(10, 11)], 6)]
    batch = collate(rows, PAD)
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1], [0, 1, 0, 1, 2]]
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 9], [10, 11, PAD, PAD, PAD]]
    assert batch["labels"].tolist() == [
        [IGNORE_INDEX, 6, 7, IGNORE_INDEX, 9],
        [IGNORE_INDEX, 11, IGNORE_INDEX, IGNORE_INDEX, IGNORE_INDEX],
    ]


def random_model(config, kind):
    """Two layers of random weights, larger than a fresh model's so that attention to other examples shows."""
    torch.manual_seed(0)
    model = kind(config).eval()
    with torch.no_grad():
        for weights in model.parameters():
            weights.normal_(std=0.2)
    return model


SHAPE = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
MODELS = {
    "qwen2": lambda: random_model(Qwen2Config(**SHAPE, num_key_value_heads=2), Qwen2ForCausalLM),
    "llama": lambda: random_model(LlamaConfig(**SHAPE, num_key_value_heads=2), LlamaForCausalLM),
    "gpt2": lambda: random_model(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4), GPT2LMHeadModel),
    "gptneox": lambda: random_model(GPTNeoXConfig(**SHAPE), GPTNeoXForCausalLM),
}
LENGTHS = [(9, 6, 5), (7, 4)]  # two packed rows, of 20 and of 11 tokens


@pytest.fixture(scope="module", params=list(MODELS))
def packed(request):
    """A model, a padded batch of two packed rows, and for each example its place there and its logits when alone."""
    model = MODELS[request.param]()
    rng = random.Random(0)
    rows = [pack([example(*[rng.randint(1, 63) for _ in range(n)]) for n in row], 20)[0] for row in LENGTHS]
    places = []
    for i, row in enumerate(rows):
        for start, end in segments(row):
            with torch.no_grad():
                alone = model(torch.tensor([row.input_ids[start:end]]), use_cache=False).logits[0]
            places.append((i, start, end, alone))
    assert [end - start for _, start, end, _ in places] == [9, 6, 5, 7, 4]
    return model, collate(rows, PAD), places


def test_packed_logits_equal_those_of_each_example_alone(packed):
    model, batch, places = packed
    with torch.no_grad():
        logits = model(batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits
    for row, start, end, alone in places:
        torch.testing.assert_close(logits[row, start:end], alone, atol=1e-5, rtol=0)


def test_one_packed_row_by_itself_equals_each_example_alone(packed):
    model, batch, places = packed
    with torch.no_grad():
        logits = model(batch["input_ids"][:1], position_ids=batch["position_ids"][:1], use_cache=False).logits
    for _, start, end, alone in [place for place in places if place[0] == 0]:
        torch.testing.assert_close(logits[0, start:end], alone, atol=1e-5, rtol=0)


def test_packed_logits_differ_without_position_ids(packed):
    """The control: if this were equal too, the tests above would show nothing."""
    model, batch, places = packed
    with torch.no_grad():
        logits = model(batch["input_ids"], use_cache=False).logits
    for row, start, end, alone in places:
        gap = (logits[row, start:end] - alone).abs().max()
        assert gap < 1e-5 if start == 0 else gap > 1e-2
