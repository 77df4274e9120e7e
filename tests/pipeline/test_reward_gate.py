"""PPO refuses a reward model that failed its sanity check; the margins of pairs are standardized."""

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manners.data.types import PreferencePair, ScoredReply
from manners.errors import MannersError
from manners.pipeline.stages.ppo import check_reward_sanity
from manners.pipeline.stages.reward import corrupted_examples, margin_scale
from manners.runtime.run_dir import RunArtifact


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


def test_half_of_the_corrupted_replies_answer_other_prompts():
    prompts = [[{"role": "user", "content": f"Question {i}?"}] for i in range(40)]
    rows = [ScoredReply(p, f"The answer to question {i} is known to us.", 1.0) for i, p in enumerate(prompts)]
    rows += [ScoredReply(p, f"Nobody knows {i}.", 0.0) for i, p in enumerate(prompts)]
    examples = corrupted_examples(rows, ratio=0.5, seed=1)
    good = {row.reply for row in rows if row.score == 1.0}
    assert len(examples) == 40 and sum(example.reply in good for example in examples) == 20
    assert {example.score for example in examples} == {0.0}
    assert corrupted_examples(rows, ratio=0.5, seed=1) == examples
