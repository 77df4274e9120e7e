"""PPO refuses a reward model that failed its sanity check."""

import json

import pytest

from manners.errors import MannersError
from manners.pipeline.stages.ppo import check_reward_sanity
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
