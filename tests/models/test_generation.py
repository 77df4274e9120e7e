"""The native backend against transformers' ``generate`` and against the model's own distribution."""

import random
from itertools import combinations

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from transformers import MistralConfig, MistralForCausalLM

from manners.models.generation import Sampling, compact_rows, generate_ids, native_generate
from manners.models.lora import prepare_for_training
from tests.families import DECODERS, VOCAB, language_model

LIMIT = 20
rng = random.Random(0)
PROMPTS = [[rng.randrange(VOCAB) for _ in range(n)] for n in (3, 7, 1, 12, 5, 5, 9, 2)]
LEAKY_SETTINGS = {"repetition_penalty": 1.3, "top_k": 5, "top_p": 0.5, "min_new_tokens": 9, "temperature": 9.0}


@torch.no_grad()
def greedy_without_cache(model, prompt, steps):
    """The greedy continuation by one full forward pass per token, without stop tokens."""
    ids = list(prompt)
    for _ in range(steps):
        ids.append(int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return ids[len(prompt) :]


def pick_stop_tokens(continuations):
    """Two tokens at which the continuations end after four or more different lengths, and some not at all."""
    for a, b in combinations(sorted({t for ids in continuations for t in ids}), 2):
        lengths = [min((p.index(t) for t in (a, b) if t in p), default=LIMIT - 1) for p in continuations]
        if len(set(lengths)) >= 4 and max(lengths) == LIMIT - 1:
            return a, b
    raise AssertionError("the random model's continuations are too much alike")


def random_uniforms(rows, steps, seed=0):
    return torch.rand(rows, steps, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("backend", ["native", "transformers"])
@pytest.mark.parametrize("family", DECODERS)
def test_generate_ids_greedy_matches_transformers(family, backend):
    """A padded, shrinking batch against transformers with one prompt at a time."""
    model = language_model(family)
    stops = pick_stop_tokens([greedy_without_cache(model, p, LIMIT) for p in PROMPTS])
    replies = generate_ids(model, PROMPTS, Sampling(LIMIT, stops, 0, backend=backend))
    for prompt, reply in zip(PROMPTS, replies, strict=True):
        ids = torch.tensor([prompt])
        plain = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=LIMIT,
            eos_token_id=list(stops), pad_token_id=0,
        )  # fmt: skip
        assert reply == plain[0, len(prompt) :].tolist()
    assert len({len(r) for r in replies}) >= 3  # so that the batch did shrink


@pytest.mark.parametrize("family", DECODERS)
def test_reply_ends_with_its_first_stop_token(family):
    model = language_model(family)
    continuations = [greedy_without_cache(model, p, LIMIT) for p in PROMPTS]
    stops = pick_stop_tokens(continuations)
    for ids, reply in zip(continuations, generate_ids(model, PROMPTS, Sampling(LIMIT, stops, 0)), strict=True):
        end = min((ids.index(s) for s in stops if s in ids), default=LIMIT - 1)
        assert reply == ids[: end + 1]


@pytest.mark.parametrize("family", DECODERS)
def test_sampled_reply_is_independent_of_its_batch(family):
    model = language_model(family)
    sampling, uniforms = Sampling(LIMIT, (3, 4, 5, 6, 7), 0, temperature=0.7), random_uniforms(len(PROMPTS), LIMIT)
    batched = generate_ids(model, PROMPTS, sampling, uniforms)
    single = [generate_ids(model, [p], sampling, uniforms[i : i + 1])[0] for i, p in enumerate(PROMPTS)]
    assert batched == single
    assert len({len(r) for r in batched}) >= 3


@pytest.mark.parametrize("family", DECODERS)
def test_repeated_prompts_are_run_once_and_sampled_apart(family):
    model, runs = language_model(family), []
    prompts = [PROMPTS[i] for i in (0, 3, 0, 0, 3, 7)]
    sampling, uniforms = Sampling(LIMIT, (3, 4, 5), 0, temperature=0.7), random_uniforms(len(prompts), LIMIT)
    model.register_forward_pre_hook(lambda _m, _a, kw: runs.append(kw["input_ids"].shape), with_kwargs=True)
    batched = native_generate(model, prompts, sampling, uniforms)
    read = sum(rows * length for rows, length in runs if length > 1)
    assert sum(map(len, {*map(tuple, prompts)})) == 17 <= read < sum(map(len, prompts)) == 35
    single = [native_generate(model, [p], sampling, uniforms[i : i + 1])[0] for i, p in enumerate(prompts)]
    assert batched == single
    assert len({tuple(batched[i]) for i in (0, 2, 3)}) == 3


@pytest.mark.parametrize("family", [*DECODERS, "window"])
def test_what_prompts_begin_with_is_read_once(family):
    """With a sliding window every prompt is read by itself; the replies are those of full passes either way."""
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = MistralConfig(**size, vocab_size=VOCAB, num_key_value_heads=2, sliding_window=6, initializer_range=0.3)
    model = MistralForCausalLM(config).eval() if family == "window" else language_model(family)
    system, runs = list(range(20, 50)), []
    prompts = [system + p for p in PROMPTS]
    wanted = [greedy_without_cache(model, p, LIMIT) for p in prompts]
    model.register_forward_pre_hook(lambda _m, _a, kw: runs.append(kw["input_ids"].shape), with_kwargs=True)
    assert native_generate(model, prompts, Sampling(LIMIT, (), 0), None) == wanted
    read = sum(rows * length for rows, length in runs if length > 1)
    assert read < 120 if family != "window" else read >= sum(map(len, prompts))


@pytest.mark.parametrize("family", DECODERS)
def test_uniforms_determine_each_token(family):
    """Each token is where the CDF of the model's probabilities, computed with numpy, passes its uniform number."""
    model, temperature = language_model(family), 1.7
    sampling, uniforms = Sampling(LIMIT, (), 0, temperature=temperature), random_uniforms(len(PROMPTS), LIMIT)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    replies = generate_ids(model, PROMPTS, sampling, uniforms)
    assert torch.equal(state, torch.get_rng_state())
    for prompt, reply, row in zip(PROMPTS, replies, uniforms.numpy(), strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([prompt + reply]), use_cache=False).logits[0, len(prompt) - 1 : -1]
        scaled = np.exp(logits.double().numpy() / temperature)
        cdf = np.cumsum(scaled / scaled.sum(1, keepdims=True), 1)
        for step, token in enumerate(reply):
            below = cdf[step, token - 1] if token else 0.0
            assert below - 1e-5 <= row[step] <= cdf[step, token] + 1e-5
    assert generate_ids(model, PROMPTS, sampling, random_uniforms(8, LIMIT, 1)) != replies


def chi_square_pvalue(tokens, logits, temperature):
    """p-value of the tokens under the tempered model; rare tokens are pooled into one bin."""
    expected = torch.softmax(logits.double() / temperature, -1).numpy() * len(tokens)
    counts = np.bincount(tokens, minlength=VOCAB)
    common = expected >= 5
    assert common.sum() >= 8
    if common.all():
        return chisquare(counts, expected).pvalue
    return chisquare([*counts[common], counts[~common].sum()], [*expected[common], expected[~common].sum()]).pvalue


@pytest.mark.parametrize("backend", ["native", "transformers"])
@pytest.mark.parametrize("temperature", [0.6, 1.5])
def test_sampling_follows_the_tempered_distribution(backend, temperature):
    model = language_model("qwen2", initializer_range=0.15)
    model.generation_config.update(repetition_penalty=1.3, top_k=5)
    rows = 4000
    sampling = Sampling(1, (), 0, temperature, backend)
    replies = generate_ids(model, [PROMPTS[0]] * rows, sampling, random_uniforms(rows, 1))
    with torch.no_grad():
        logits = model(torch.tensor([PROMPTS[0]])).logits[0, -1]
    tokens = [r[0] for r in replies]
    assert chi_square_pvalue(tokens, logits, temperature) > 0.01
    assert chi_square_pvalue(tokens, logits, 1.0) < 1e-6  # the test can tell another temperature


@pytest.mark.parametrize("is_adapter", [False, True])
@pytest.mark.parametrize("backend", ["native", "transformers"])
def test_generate_ids_ignores_the_checkpoints_generation_config(backend, is_adapter):
    model = language_model("qwen2")
    if is_adapter:
        model = prepare_for_training(model, "lora", 4, 8, 0.0, "all-linear")
    uniforms = random_uniforms(len(PROMPTS), LIMIT)
    settings = [Sampling(LIMIT, (3,), 0, 0.0, backend), Sampling(LIMIT, (3,), 0, 0.8, backend)]
    expected = [generate_ids(model, PROMPTS, sampling, uniforms) for sampling in settings]
    base = model.get_base_model() if is_adapter else model
    base.generation_config.update(**LEAKY_SETTINGS)
    assert [generate_ids(model, PROMPTS, sampling, uniforms) for sampling in settings] == expected
    assert base.generation_config.repetition_penalty == 1.3  # restored
    ids = torch.tensor(PROMPTS[:1])
    with_leak = base.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=LIMIT)
    reply = with_leak[0, ids.shape[1] :].tolist()
    assert reply[: len(expected[0][0])] != expected[0][0]  # the settings do change replies


def test_native_generate_drops_finished_rows():
    model = language_model("qwen2")
    stops = pick_stop_tokens([greedy_without_cache(model, p, LIMIT) for p in PROMPTS])
    calls = []
    model.register_forward_pre_hook(lambda _m, _a, kw: calls.append(batch_and_cache_size(kw)), with_kwargs=True)

    def batch_and_cache_size(kw):
        return len(kw["input_ids"]), kw["past_key_values"].get_seq_length()

    replies = native_generate(model, PROMPTS, Sampling(LIMIT, stops, 0), None)
    prefill_rows, decode_rows = [n for n, cached in calls if not cached], [n for n, cached in calls if cached]
    assert sum(prefill_rows) <= len(PROMPTS)
    assert decode_rows == [sum(len(r) > step for r in replies) for step in range(1, max(map(len, replies)))]
    assert len(PROMPTS) > decode_rows[-1]


@pytest.mark.parametrize(
    "unfinished", [[1, 1, 1, 1], [0, 1, 1, 1], [1, 0, 0, 1], [0, 0, 0, 1], [1, 1, 0, 0], [0, 1, 0, 1]]
)
def test_compact_rows_moves_rows_only_into_gaps(unfinished):
    order = compact_rows(torch.tensor(unfinished, dtype=torch.bool)).tolist()
    kept = [row for row, value in enumerate(unfinished) if value]
    assert sorted(order) == kept
    assert all(order[row] == row for row in kept if row < len(kept))


def test_generate_ids_stops_early_and_restores_training_mode():
    model = language_model("qwen2").train()
    calls = []
    model.register_forward_hook(lambda m, *_: calls.append(m.training))
    prompts = [PROMPTS[0], PROMPTS[0]]
    assert all(len(r) == 1 for r in generate_ids(model, prompts, Sampling(LIMIT, tuple(range(VOCAB)), 0)))
    assert calls == [False]
    assert model.training


def test_generate_ids_requires_uniforms_for_sampling_only():
    model = language_model("qwen2")
    greedy = Sampling(4, (), 0)
    assert generate_ids(model, PROMPTS, greedy) == generate_ids(model, PROMPTS, greedy, torch.empty(0))
    with pytest.raises(ValueError, match="uniforms"):
        generate_ids(model, PROMPTS, Sampling(4, (), 0, temperature=1.0))


def test_prefill_batches_prompts_of_similar_length():
    """Padding all to the longest prompt would cost as much as running it for every row."""
    model = language_model("qwen2")
    shapes = []
    model.register_forward_pre_hook(lambda _m, _a, kw: shapes.append(kw["input_ids"].shape), with_kwargs=True)
    generate_ids(model, [[5, 6, 7], [8, 9], list(range(5, 45))], Sampling(1, (3,), 0, backend="native"))
    assert sum(rows * length for rows, length in shapes) <= 2 * 3 + 40
