"""PPO refuses a reward model that failed its sanity check; the margins of pairs are standardized."""

import json
import math
import statistics
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from manners.config.schema import CORRUPTION_KINDS
from manners.config.validate import validate_config
from manners.data.corruptions import CORRUPTIONS
from manners.data.types import Conversation, PreferencePair, ScoredReply, scored_replies
from manners.errors import MannersError
from manners.models.reward_model import ScoreNormalizer
from manners.models.tokenizer import load_tokenizer
from manners.pipeline.dependencies import check_reward_sanity
from manners.pipeline.stages import reward
from manners.pipeline.stages.reward import (
    build_examples,
    corrupted,
    evaluate_reward_model,
    margin_scale,
    rescaled_replies,
)
from manners.runtime.run_dir import RunArtifact
from tests.configs import compose


def reward_model(folder, accuracy):
    if accuracy is not None:
        (folder / "sanity.json").write_text(json.dumps({"accuracy": {"value": accuracy}}))
    return RunArtifact(folder, "fingerprint", "judge")


@pytest.mark.parametrize("accuracy", [0.5, 0.896, 0.8999, 0.0, None])
def test_check_reward_sanity_refuses_and_names_the_override(tmp_path, accuracy):
    artifact = reward_model(tmp_path, accuracy)
    with pytest.raises(MannersError) as error:
        check_reward_sanity(artifact, 0.9)
    message = str(error.value)
    assert "the reward model judge" in message and "method.min_sanity_accuracy=0.9:" in message
    assert "method.corruption_ratio=" in message
    assert ("has no sanity.json" if accuracy is None else f"{accuracy:.1%}") in message
    check_reward_sanity(artifact, float(message.rpartition("method.min_sanity_accuracy=")[2]))  # the advice works


def test_check_reward_sanity_accepts_the_minimum(tmp_path):
    check_reward_sanity(reward_model(tmp_path, 0.9), 0.9)


def pairs(margins):
    return [PreferencePair([{"role": "user", "content": "Hi"}], "Hello.", "What?", margin) for margin in margins]


@given(st.lists(st.floats(0.01, 25), min_size=1, max_size=9), st.sampled_from([1e-200, 1e-3, 1.0, 100.0, 1e200]))
@settings(max_examples=50, deadline=None)
def test_margins_do_not_depend_on_the_units_of_the_data(margins, unit):
    """Those of 0, from pairs without a margin, do not count; the others have a root mean square of 1."""
    scale = margin_scale(pairs([0.0, *(unit * m for m in margins)]))
    scaled = [unit * m / scale for m in margins]
    assert sum(m * m for m in scaled) / len(scaled) == pytest.approx(1.0)
    assert scaled == pytest.approx([m / margin_scale(pairs(margins)) for m in margins])


def test_pairs_without_margins_stay_without():
    assert margin_scale(pairs([0.0, 0.0])) == margin_scale([]) == 1.0
    assert margin_scale(pairs([3.0, 4.0])) == pytest.approx(math.sqrt(12.5))


@pytest.mark.parametrize("disable, p", [(True, 0.0), (False, 0.3)])
def test_reward_model_is_trained_without_dropout(monkeypatch, disable, p):
    network = torch.nn.Sequential(torch.nn.Dropout(0.3), torch.nn.Linear(2, 1))
    monkeypatch.setattr(reward, "load_reward_base", lambda *_, **__: network)
    monkeypatch.setattr(reward, "prepare_model", lambda cfg, model, device, **_: model)
    monkeypatch.setattr(reward, "head_modules", lambda model: [])
    cfg = compose("method=reward", f"method.disable_dropout={disable}")
    run = SimpleNamespace(cfg=cfg, device=SimpleNamespace(precision="32"))
    assert reward.load_reward_network(run, None)[0].p == p


def rows_with_replies_of_a_policy(count=6):
    """Written replies of 1.0 and 0.2, and two of a policy, 0.0 to 0.3."""
    rows = []
    for i in range(count):
        turns = [{"role": "user", "content": f"Question {i}?"}, {"role": "assistant", "content": f"Right {i}."}]
        others = [{"content": f"Wrong {i}.", "score": 0.2, "manner": "blunt"}]
        others += [{"content": f"P {k} {i}.", "score": 0.02 * i + 0.1 * k, "manner": "policy"} for k in (0, 1)]
        rows.append(Conversation(turns, metadata={"score": 1.0, "mismatched": others}, source=f"a:{i}"))
    return rows


def test_replies_of_a_policy_are_rescaled_to_the_written_ones():
    before, after = scored_replies(rows_with_replies_of_a_policy()), rescaled_replies(rows_with_replies_of_a_policy())
    written = [r.score for r in before if not r.by_policy]
    own = [r.score for r in after if r.by_policy]
    assert [r for r in after if not r.by_policy] == [r for r in before if not r.by_policy]
    assert statistics.mean(own) == pytest.approx(statistics.mean(written))
    assert statistics.stdev(own) == pytest.approx(statistics.stdev(written))
    raw = [r.score for r in before if r.by_policy]
    assert sorted(range(len(own)), key=own.__getitem__) == sorted(range(len(raw)), key=raw.__getitem__)


def test_replies_are_not_rescaled_where_a_policy_has_one_score():
    rows = rows_with_replies_of_a_policy(1)
    del rows[0].metadata["mismatched"][2:]
    assert rescaled_replies(rows) == scored_replies(rows)


def test_replies_of_a_policy_have_a_correlation_of_their_own():
    """A reward model that is right on written replies, and orders those of the policy backwards."""
    rows = rows_with_replies_of_a_policy()
    scores = {r.reply: -r.score if r.by_policy else r.score for r in scored_replies(rows)}
    run = SimpleNamespace(
        cfg=SimpleNamespace(seed=1, method=SimpleNamespace(loss="mse")),
        splits=SimpleNamespace(train=rows), test_rows=rows,
    )  # fmt: skip
    quality = evaluate_reward_model(run, lambda replies: [scores.get(reply, 0.0) for _, reply in replies]).quality
    assert (quality.rows, quality.policy_replies) == (12, 12)
    assert quality.mse.value == 0 and quality.pair_accuracy.value == 1
    assert quality.policy_spearman.value == pytest.approx(-1)
    assert quality.metrics("after")["after/policy_spearman"] == pytest.approx(-1)


def test_half_of_the_corrupted_replies_answer_other_prompts():
    prompts = [[{"role": "user", "content": f"Question {i}?"}] for i in range(40)]
    rows = [ScoredReply(p, f"The answer to question {i} is known to us.", 1.0) for i, p in enumerate(prompts)]
    rows += [ScoredReply(p, f"Nobody knows {i}.", 0.0) for i, p in enumerate(prompts)]
    made = corrupted(rows, ratio=0.5, seed=1)
    examples = [bad for _, bad in made]
    good = {row.reply for row in rows if row.score == 1.0}
    assert len(examples) == 40 and sum(example.reply in good for example in examples) == 20
    assert {example.score for example in examples} == {0.0}
    assert all(original.messages == bad.messages and original.score == 1.0 for original, bad in made)
    assert corrupted(rows, ratio=0.5, seed=1) == made
    assert corrupted(rows, 0.5, 1, []) == corrupted(rows, 0.0, 1) == []
    alone = [bad for _, bad in corrupted(rows, 0.5, 1, ["misplaced"])]
    assert len(alone) == 40 and {example.reply for example in alone} <= good
    words = {word for row in rows for word in row.reply.split()}
    garbled = [bad for _, bad in corrupted(rows, 0.5, 1, ["garbled_word"])]
    assert 30 <= len(garbled) <= 40 and max(len({*e.reply.split()} - words) for e in garbled) == 1


@pytest.mark.parametrize("ratio", [0.0, 0.5])
def test_pairs_for_training_get_corrupted_replies_besides(ratio):
    """Each is the rejected reply of a pair whose chosen reply it was made of; held-out pairs get none."""
    rows = [
        Conversation(
            [{"role": "user", "content": f"Question {i}?"}, {"role": "assistant", "content": f"Answer {i} is known."}],
            metadata={"rejected": f"Nobody asks {i}, or wants to.", "margin": 2.0},
        )
        for i in range(8)
    ]
    tokenizer = load_tokenizer("tiny")
    run = SimpleNamespace(
        cfg=compose("method=reward", "method.loss=pairwise", f"method.corruption_ratio={ratio}", "model=tiny"),
        splits=SimpleNamespace(train=rows),
    )

    def texts(examples):
        decode = tokenizer.decode
        return [(decode(e.input_ids), decode(e.rejected.input_ids), e.margin) for g in examples for e in g.examples]

    normalizer = ScoreNormalizer(scale=2.0)
    train, held_out = (texts(build_examples(run, part, tokenizer, normalizer, False)) for part in (rows, [*rows]))
    assert len(held_out) == 8 and all("Nobody asks" in worse and margin == 1.0 for _, worse, margin in held_out)
    more = [row for row in train if row not in held_out]
    assert len(train) == 8 + len(more) and len(more) == 8 * ratio
    assert all(better in {chosen for chosen, _, _ in held_out} for better, _, _ in more)
    assert all(worse != better and margin == 0.0 for better, worse, margin in more)


def test_the_kinds_of_corruption_are_the_options():
    assert tuple(CORRUPTIONS) == CORRUPTION_KINDS


def test_a_kind_that_does_not_exist_is_refused():
    with pytest.raises(MannersError, match=r"is not a choice. Did you mean 'misplaced'\?"):
        validate_config(compose("method=reward", "method.corruption_kinds=[garbled,misplace]"))
