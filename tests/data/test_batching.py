"""Examples → batches: nothing lost, nothing leaked, and the same again after a restart."""

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
together = partial(collate, pad=PAD)


def example(*ids, prompt=1):
    """An example whose first ``prompt`` tokens carry no loss."""
    return TokenizedExample(list(ids), [IGNORE_INDEX] * prompt + list(ids[prompt:]))


def examples(count, seed=0, longest=40):
    """``count`` examples of random lengths; the first token of each is its own number."""
    rng = random.Random(seed)
    found = []
    for i in range(count):
        length = rng.randint(2, longest)
        ids = [1000 + i, *[rng.randint(1, 99) for _ in range(length - 1)]]
        found.append(example(*ids, prompt=rng.randint(1, length - 1)))
    return found


def batches(data, size=4, steps=10, accumulate=1, seed=1, by_length=True):
    return ResumableBatches(data, size, together, steps, accumulate, seed, by_length)


def who(found):
    """The numbers of the examples in each batch."""
    return [[int(i) - 1000 for i in batch["input_ids"][:, 0]] for batch in found]


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


# --- Padding ---


def test_rows_are_padded_on_the_right_and_padding_carries_no_loss():
    batch = collate([example(5, 6, 7), example(8, 9)], PAD)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 9, PAD]]
    assert batch["labels"].tolist() == [[IGNORE_INDEX, 6, 7], [IGNORE_INDEX, 9, IGNORE_INDEX]]
    assert batch["tokens"] == 5
    assert "position_ids" not in batch and "attention_mask" not in batch


def test_a_stop_token_that_is_also_the_padding_still_carries_loss():
    batch = collate([example(5, 6, 7, 8), example(5, 6, PAD)], PAD)
    assert batch["input_ids"][1].tolist() == [5, 6, PAD, PAD]
    assert batch["labels"][1].tolist() == [IGNORE_INDEX, 6, PAD, IGNORE_INDEX]


def test_padding_does_not_change_what_the_model_says_before_it():
    model = MODELS["qwen2"]()
    short, long = example(5, 6, 7), example(8, 9, 10, 11, 12, 13)
    batch = collate([short, long], PAD)
    with torch.no_grad():
        together = model(batch["input_ids"], use_cache=False).logits[0, :3]
        alone = model(torch.tensor([short.input_ids]), use_cache=False).logits[0]
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


# --- Order ---


@pytest.mark.parametrize("by_length", [True, False])
@pytest.mark.parametrize("count", [1, 3, 8, 23, 450])  # 450 is more than one window of batches of four
def test_every_example_comes_exactly_once_an_epoch(count, by_length):
    per_epoch = -(-count // 4)
    numbers = who(batches(examples(count), steps=3 * per_epoch, by_length=by_length))
    assert len(numbers) == 3 * per_epoch
    for epoch in range(3):
        given = [i for group in numbers[epoch * per_epoch : (epoch + 1) * per_epoch] for i in group]
        assert sorted(given) == list(range(count))


@pytest.mark.parametrize("by_length", [True, False])
def test_the_order_is_of_the_seed_and_the_epoch(by_length):
    data = examples(23)
    one = who(batches(data, steps=12, by_length=by_length))
    assert one == who(batches(data, steps=12, by_length=by_length))
    assert one != who(batches(data, steps=12, by_length=by_length, seed=2))
    assert one[:6] != one[6:]  # an epoch is six batches


def test_a_longer_run_begins_like_a_shorter_one():
    data = examples(23)
    assert who(batches(data, steps=20))[:7] == who(batches(data, steps=7))


@pytest.mark.parametrize("processes", [1, 2])
def test_rows_read_in_parts_are_those_of_the_whole_micro_batch_in_their_order(processes):
    """Eleven examples, four at once on each process: of the last three, some parts have none."""
    data = examples(11)
    for rank in range(processes):
        whole = ResumableBatches(data, 4, together, 3, 2, 1, True, rank, processes)
        parts = ResumableBatches(data, 4, together, 3, 2, 1, True, rank, processes, parts=3)
        assert (len(parts), parts.accumulate) == (3 * len(whole), 6)
        given = list(parts)
        for i, one in enumerate(whole):
            several = given[3 * i : 3 * i + 3]
            trained = [batch for batch in several if "idle" not in batch]
            assert [[row for rows in who(trained) for row in rows]] == who([one])
            assert max(map(len, who(several))) <= 2
            assert all(batch["step_num_targets"] == one["step_num_targets"] for batch in several)


def test_a_run_read_in_parts_goes_on_where_it_was():
    make = lambda: ResumableBatches(examples(11), 4, together, 3, 2, 1, True, parts=2)  # noqa: E731
    whole, cut = make(), make()
    rest = [batch for i, batch in enumerate(whole) if i >= 4]
    cut.load_state_dict({"position": 4})
    assert all(map(same, rest, cut)) and cut.position == len(cut)


def test_order_leaves_the_global_random_numbers_alone():
    random.seed(5)
    torch.manual_seed(5)
    expected = random.Random(5).random(), torch.rand(1, generator=torch.Generator().manual_seed(5))
    list(batches(examples(23)))
    assert (random.random(), torch.rand(1)) == expected


def fill(found):
    return sum(int(b["tokens"]) for b in found) / sum(b["input_ids"].numel() for b in found)


def test_grouping_by_length_leaves_less_padding_and_still_mixes_lengths():
    data = examples(400)
    grouped, mixed = list(batches(data, steps=100)), list(batches(data, steps=100, by_length=False))
    # Lengths are even from 2 to 40: 21 in the mean, and the longest of four about 2 + 38 * 4/5 = 32.
    # Of 200 sorted ones four neighbours differ by 38 * 3/200, less than one token.
    assert fill(mixed) == pytest.approx(21 / 32, abs=0.05)
    assert fill(grouped) > 0.95
    lengths = [b["input_ids"].shape[1] for b in grouped]
    assert lengths not in (sorted(lengths), sorted(lengths, reverse=True))
    ups = sum(a < b for a, b in pairwise(lengths))
    assert 35 < ups < 65  # of 99: about half, since the batches are shuffled


def test_validation_has_every_example_once_and_sorted():
    data = examples(23)
    found = validation_batches(data, 4, together)
    assert sorted(i for group in who(found) for i in group) == list(range(23))
    lengths = [b["input_ids"].shape[1] for b in found]
    assert lengths == sorted(lengths)
    assert validation_batches([], 4, together) == []


# --- Accumulation and restarts ---


@pytest.mark.parametrize("accumulate", [1, 2, 3])
def test_step_tokens_are_the_trained_tokens_of_the_optimizer_step(accumulate):
    found = list(batches(examples(23), steps=8, accumulate=accumulate))  # steps that span two epochs are among them
    assert len(found) == 8 * accumulate
    for step in range(8):
        micro = found[step * accumulate : (step + 1) * accumulate]
        trained = sum(int((b["labels"][:, 1:] != IGNORE_INDEX).sum()) for b in micro)
        assert [int(b["step_num_targets"]) for b in micro] == [trained] * accumulate


@pytest.mark.parametrize("given", [0, 1, 5, 11, 24])
def test_a_restart_goes_on_with_the_very_same_batches(given):
    data = examples(23)
    whole = list(batches(data, steps=12, accumulate=2))
    first = batches(data, steps=12, accumulate=2)
    started = iter(first)
    before = [next(started) for _ in range(given)]
    again = batches(data, steps=12, accumulate=2)
    again.load_state_dict(first.state_dict())
    after = list(again)
    assert len(before) + len(after) == len(whole) == len(again) == 24
    assert all(same(one, other) for one, other in zip(before + after, whole, strict=True))


# --- Packing ---


def segments(row):
    """The examples in a packed row, by their positions: each begins at 0."""
    starts = [i for i, position in enumerate(row.position_ids) if position == 0] + [len(row.input_ids)]
    return list(pairwise(starts))


def test_two_examples_in_a_row():
    first, second = TokenizedExample([5, 6, 7], [5, 6, 7]), TokenizedExample([8, 9], [8, 9], num_truncated=4)
    [row] = pack([second, first], 6)
    assert row.input_ids == [5, 6, 7, 8, 9]
    assert row.position_ids == [0, 1, 2, 0, 1]
    assert row.labels == [IGNORE_INDEX, 6, 7, IGNORE_INDEX, 9]  # 8 would be predicted from 7, which is not its own
    assert row.cut == 4
    assert row.num_targets == first.num_targets + second.num_targets == 3


def test_packing_loses_nothing_and_keeps_to_the_length():
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


def test_the_padding_after_a_packed_row_is_a_sequence_of_its_own():
    rows = [*pack([example(5, 6, 7), example(8, 9)], 6), *pack([example(10, 11)], 6)]
    batch = collate(rows, PAD)
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1], [0, 1, 0, 1, 2]]
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 9], [10, 11, PAD, PAD, PAD]]
    assert batch["labels"].tolist() == [
        [IGNORE_INDEX, 6, 7, IGNORE_INDEX, 9],
        [IGNORE_INDEX, 11, IGNORE_INDEX, IGNORE_INDEX, IGNORE_INDEX],
    ]


def random_model(config, kind):
    """Two layers of random weights, larger than a fresh model's so that a leak shows."""
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


def test_without_positions_packed_examples_see_each_other(packed):
    """The control: were this equal too, the tests above would show nothing."""
    model, batch, places = packed
    with torch.no_grad():
        logits = model(batch["input_ids"], use_cache=False).logits
    for row, start, end, alone in places:
        gap = (logits[row, start:end] - alone).abs().max()
        assert gap < 1e-5 if start == 0 else gap > 1e-2
