"""Own decoding against transformers' and against the distribution that the model gives."""

import random
from itertools import combinations

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from manners.models.generation import Sampling, compact_rows, generate_ids, native_generate
from manners.models.lora import prepare_for_training
from tests.families import DECODERS, VOCAB, language_model

LIMIT = 20
rng = random.Random(0)
PROMPTS = [[rng.randrange(VOCAB) for _ in range(n)] for n in (3, 7, 1, 12, 5, 5, 9, 2)]
LEAKS = {"repetition_penalty": 1.3, "top_k": 5, "top_p": 0.5, "min_new_tokens": 9, "temperature": 9.0}


@torch.no_grad()
def naively(model, prompt, steps):
    """The likeliest continuation by one whole forward pass a token, without a cache or a stop."""
    ids = list(prompt)
    for _ in range(steps):
        ids.append(int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return ids[len(prompt) :]


def stops_on(paths):
    """Tokens that the paths meet at three or more different steps, and not all of them."""
    for a, b in combinations(sorted({t for path in paths for t in path}), 2):
        lengths = [min((p.index(t) for t in (a, b) if t in p), default=LIMIT - 1) for p in paths]
        if len(set(lengths)) >= 4 and max(lengths) == LIMIT - 1:
            return a, b
    raise AssertionError("the random model is too dull")


def uniform(rows, steps, seed=0):
    return torch.rand(rows, steps, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("backend", ["native", "transformers"])
@pytest.mark.parametrize("family", DECODERS)
def test_greedy_replies_are_those_of_plain_generate(family, backend):
    """A padded batch that shrinks, against one prompt at a time by transformers."""
    model = language_model(family)
    stops = stops_on([naively(model, p, LIMIT) for p in PROMPTS])
    replies = generate_ids(model, PROMPTS, Sampling(LIMIT, stops, 0, backend=backend))
    for prompt, reply in zip(PROMPTS, replies, strict=True):
        ids = torch.tensor([prompt])
        plain = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=LIMIT,
            eos_token_id=list(stops), pad_token_id=0,
        )  # fmt: skip
        assert reply == plain[0, len(prompt) :].tolist()
    assert len({len(r) for r in replies}) >= 3  # or the test would not have met a shrinking batch


@pytest.mark.parametrize("family", DECODERS)
def test_a_reply_holds_its_first_stop_token_and_nothing_after(family):
    model = language_model(family)
    paths = [naively(model, p, LIMIT) for p in PROMPTS]
    stops = stops_on(paths)
    for path, reply in zip(paths, generate_ids(model, PROMPTS, Sampling(LIMIT, stops, 0)), strict=True):
        end = min((path.index(s) for s in stops if s in path), default=LIMIT - 1)
        assert reply == path[: end + 1]


@pytest.mark.parametrize("family", DECODERS)
def test_a_sampled_reply_does_not_depend_on_its_neighbours(family):
    model = language_model(family)
    sampling, draws = Sampling(LIMIT, (3, 4, 5, 6, 7), 0, temperature=0.7), uniform(len(PROMPTS), LIMIT)
    together = generate_ids(model, PROMPTS, sampling, draws)
    alone = [generate_ids(model, [p], sampling, draws[i : i + 1])[0] for i, p in enumerate(PROMPTS)]
    assert together == alone
    assert len({len(r) for r in together}) >= 3


@pytest.mark.parametrize("family", DECODERS)
def test_draws_decide_all(family):
    """Each token is the one at which the model's own probabilities, added up by numpy, pass the draw."""
    model, heat = language_model(family), 1.7
    draws = uniform(len(PROMPTS), LIMIT)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    replies = generate_ids(model, PROMPTS, Sampling(LIMIT, (), 0, temperature=heat), draws)
    assert torch.equal(state, torch.get_rng_state())
    for prompt, reply, row in zip(PROMPTS, replies, draws.numpy(), strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([prompt + reply]), use_cache=False).logits[0, len(prompt) - 1 : -1]
        scaled = np.exp(logits.double().numpy() / heat)
        bounds = np.cumsum(scaled / scaled.sum(1, keepdims=True), 1)
        for step, token in enumerate(reply):
            below = bounds[step, token - 1] if token else 0.0
            assert below - 1e-5 <= row[step] <= bounds[step, token] + 1e-5
    assert generate_ids(model, PROMPTS, Sampling(LIMIT, (), 0, temperature=heat), uniform(8, LIMIT, 1)) != replies


def fit_of(tokens, logits, temperature):
    """The chi-square test's p-value for the tokens under the tempered model; rare tokens count as one."""
    expected = torch.softmax(logits.double() / temperature, -1).numpy() * len(tokens)
    seen = np.bincount(tokens, minlength=VOCAB)
    common = expected >= 5
    assert common.sum() >= 8
    if common.all():
        return chisquare(seen, expected).pvalue
    return chisquare([*seen[common], seen[~common].sum()], [*expected[common], expected[~common].sum()]).pvalue


@pytest.mark.parametrize("backend", ["native", "transformers"])
@pytest.mark.parametrize("temperature", [0.6, 1.5])
def test_sampling_follows_the_tempered_distribution(backend, temperature):
    model = language_model("qwen2", initializer_range=0.15)
    model.generation_config.update(repetition_penalty=1.3, top_k=5)
    rows = 4000
    sampling = Sampling(1, (), 0, temperature, backend)
    replies = generate_ids(model, [PROMPTS[0]] * rows, sampling, uniform(rows, 1))
    with torch.no_grad():
        logits = model(torch.tensor([PROMPTS[0]])).logits[0, -1]
    tokens = [r[0] for r in replies]
    assert fit_of(tokens, logits, temperature) > 0.01
    assert fit_of(tokens, logits, 1.0) < 1e-6  # the test has the power to tell


@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("backend", ["native", "transformers"])
def test_the_checkpoints_generation_config_does_not_leak(backend, adapted):
    model = language_model("qwen2")
    if adapted:
        model = prepare_for_training(model, "lora", 4, 8, 0.0, "all-linear")
    draws = uniform(len(PROMPTS), LIMIT)
    kinds = [Sampling(LIMIT, (3,), 0, 0.0, backend), Sampling(LIMIT, (3,), 0, 0.8, backend)]
    plain = [generate_ids(model, PROMPTS, kind, draws) for kind in kinds]
    inner = model.get_base_model() if adapted else model
    inner.generation_config.update(**LEAKS)
    assert [generate_ids(model, PROMPTS, kind, draws) for kind in kinds] == plain
    assert inner.generation_config.repetition_penalty == 1.3  # put back as it was
    ids = torch.tensor(PROMPTS[:1])
    leaky = inner.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=LIMIT)
    assert leaky[0, ids.shape[1] :].tolist()[: len(plain[0][0])] != plain[0][0]  # it would have mattered


def test_finished_rows_are_dropped():
    model = language_model("qwen2")
    stops = stops_on([naively(model, p, LIMIT) for p in PROMPTS])
    calls = []
    model.register_forward_pre_hook(lambda _m, _a, kw: calls.append(told(kw)), with_kwargs=True)

    def told(kw):
        return len(kw["input_ids"]), kw["past_key_values"].get_seq_length()

    replies = native_generate(model, PROMPTS, Sampling(LIMIT, stops, 0), None)
    reading, writing = [n for n, held in calls if not held], [n for n, held in calls if held]
    assert sum(reading) == len(PROMPTS)
    assert writing == [sum(len(r) > step for r in replies) for step in range(1, max(map(len, replies)))]
    assert len(PROMPTS) > writing[-1]


@pytest.mark.parametrize("going", [[1, 1, 1, 1], [0, 1, 1, 1], [1, 0, 0, 1], [0, 0, 0, 1], [1, 1, 0, 0], [0, 1, 0, 1]])
def test_those_that_go_on_stay_where_they_are_or_fill_a_gap(going):
    order = compact_rows(torch.tensor(going, dtype=torch.bool)).tolist()
    live = [row for row, on in enumerate(going) if on]
    assert sorted(order) == live
    assert all(order[row] == row for row in live if row < len(live))


def test_the_pass_ends_when_all_have_ended_and_leaves_the_models_mode_alone():
    model = language_model("qwen2").train()
    calls = []
    model.register_forward_hook(lambda m, *_: calls.append(m.training))
    alike = [PROMPTS[0], PROMPTS[0]]
    assert all(len(r) == 1 for r in generate_ids(model, alike, Sampling(LIMIT, tuple(range(VOCAB)), 0)))
    assert calls == [False]
    assert model.training


def test_greedy_needs_no_draws_and_sampling_refuses_to_go_without():
    model = language_model("qwen2")
    greedy = Sampling(4, (), 0)
    assert generate_ids(model, PROMPTS, greedy) == generate_ids(model, PROMPTS, greedy, torch.empty(0))
    with pytest.raises(ValueError, match="draws"):
        generate_ids(model, PROMPTS, Sampling(4, (), 0, temperature=1.0))


def test_a_long_prompt_is_not_read_beside_short_ones():
    """Padding all to the longest would cost as much as reading it for every row."""
    model = language_model("qwen2")
    shapes = []
    model.register_forward_pre_hook(lambda _m, _a, kw: shapes.append(kw["input_ids"].shape), with_kwargs=True)
    generate_ids(model, [[5, 6, 7], [8, 9], list(range(5, 45))], Sampling(1, (3,), 0, backend="native"))
    assert [tuple(s) for s in shapes] == [(2, 3), (1, 40)]
