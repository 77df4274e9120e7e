"""Dependencies: what does not fit is refused by name, and the plan is printed before anything is trained."""

import json
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from manners.config.compose import RunSpec
from manners.errors import MannersError
from manners.pipeline import dependencies
from manners.pipeline.stages.ppo import check_reward_sanity
from manners.runtime.run_dir import RunArtifact, RunDir, RunState, weights_fingerprint
from tests.configs import compose

FEW = "dataset=polite_helper"  # thirty rows, which are read in no time


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def made(out, name, cfg, summary="", run_id=""):
    """A finished run of ``cfg``, as training would leave it."""
    model = out / "runs" / name / "model"
    model.mkdir(parents=True)
    (model / "config.json").write_text("{}")
    (model / "manners.yaml").write_text(OmegaConf.to_yaml(cfg, resolve=True))
    state = {"status": "finished", "summary": summary, "mlflow_run_id": run_id}
    state["weights_fingerprint"] = dependencies.dependency_fingerprint(RunSpec(cfg, []))
    (model.parent / "run.json").write_text(json.dumps(state))
    return name


def stage(out, role, given="", *overrides):
    method = {"policy": "sft", "reward": "reward"}[role]
    overrides = [FEW, f"output_dir={out}", f"method={method}", *overrides]
    return RunSpec(compose(*overrides), overrides, role, given)


def refusal(stage):
    with pytest.raises(MannersError) as caught:
        dependencies.resolve_explicit(stage)
    return str(caught.value)


def test_a_run_that_fits_is_taken(out):
    made(out, "mine", compose(FEW, "method=sft"))
    made(out, "judge", compose(FEW, "method=reward"))
    assert dependencies.resolve_explicit(stage(out, "policy", "mine")).name == "mine"
    assert dependencies.resolve_explicit(stage(out, "reward", "judge")).name == "judge"
    for method in ("ppo", "rloo"):  # what PPO made, it may go on with
        made(out, method, compose(FEW, f"method={method}"))
        assert dependencies.resolve_explicit(stage(out, "policy", method)).name == method


@pytest.mark.parametrize(
    "override, says",
    [
        ("model.name=openai-community/gpt2", "was made with model.name=openai-community/gpt2, and this run has tiny"),
        ("model.revision=abc", "was made with model.revision=abc, and this run has None"),
        ("model.chat_template=plain", "was made with model.chat_template=plain, and this run has auto"),
    ],
)
def test_a_policy_of_another_base_revision_or_template_is_refused_by_name(out, override, says):
    made(out, "theirs", compose(FEW, "method=sft", override))
    said = refusal(stage(out, "policy", "theirs"))
    assert f"policy_from=theirs {says}" in said
    assert f"Set {override}, or choose another run." in said
    made(out, "judge", compose(FEW, "method=reward", override))  # it reads replies with a tokenizer of its own
    assert dependencies.resolve_explicit(stage(out, "reward", "judge")).name == "judge"


def test_what_a_refusal_tells_to_set_is_then_taken(out):
    made(out, "theirs", compose(FEW, "method=sft", "model.chat_template=plain"))
    assert dependencies.resolve_explicit(stage(out, "policy", "theirs", "model.chat_template=plain")).name == "theirs"


def test_a_reward_model_is_no_policy_and_a_policy_no_reward_model(out):
    made(out, "judge", compose(FEW, "method=reward"))
    made(out, "talker", compose(FEW, "method=sft"))
    assert "policy_from=judge is a run of method=reward: sft or ppo or rloo" in refusal(stage(out, "policy", "judge"))
    assert "reward_from=talker is a run of method=sft: reward is needed" in refusal(stage(out, "reward", "talker"))


def test_a_folder_that_nobody_of_ours_made_is_taken_on_trust(out, tmp_path):
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "config.json").write_text("{}")
    assert dependencies.resolve_explicit(stage(out, "policy", str(tmp_path / "theirs"))).name == "theirs"


def test_a_name_that_is_nothing_is_answered_with_the_nearest_run(out):
    said = refusal(stage(out, "policy", "mine"))
    assert said.strip() == "policy_from=mine is neither a folder with a model nor a finished run."
    made(out, "mine-sft-1234", compose(FEW))
    assert "Did you mean 'mine-sft-1234'?" in refusal(stage(out, "policy", "mine-sft-1243"))


# --- A reward model must detect corrupted replies ---


def judge(tmp_path, passed):
    if passed is not None:
        (tmp_path / "sanity.json").write_text(json.dumps({"passed": {"value": passed}}))
    return RunArtifact(tmp_path, "mark", "judge")


@pytest.mark.parametrize("passed", [0.5, 0.896, 0.8999, 0.0, None])
def test_reward_sanity_refuses_and_names_the_override(tmp_path, passed):
    source = judge(tmp_path, passed)
    with pytest.raises(MannersError) as caught:
        check_reward_sanity(source, 0.9)
    said = str(caught.value)
    assert "the reward model judge" in said and "method.min_sanity_accuracy=0.9:" in said and "method.corruption_ratio=" in said
    assert f"{passed:.1%}" in said if passed is not None else "has no sanity.json" in said
    check_reward_sanity(source, float(said.rpartition("method.min_sanity_accuracy=")[2]))


def test_a_sound_reward_model_passes(tmp_path):
    check_reward_sanity(judge(tmp_path, 0.9), 0.9)


# --- Finding, planning, lineage ---


def test_a_stage_is_found_by_what_shapes_its_weights(out):
    """A run of another name and evaluation stands for it; one of another seed does not."""
    need = stage(out, "policy")
    fingerprint = dependencies.dependency_fingerprint(need)
    assert dependencies.find_finished(need.cfg, fingerprint) is None
    made(out, "other-seed", compose(FEW, f"output_dir={out}", "method=sft", "seed=2"))
    assert dependencies.find_finished(need.cfg, fingerprint) is None
    made(out, "mine", compose(FEW, "method=sft", "run_name=mine", "evaluation.test_prompts=3"))
    assert dependencies.find_finished(need.cfg, fingerprint).name == "mine"


def test_fingerprint_hashes_the_data_not_their_path(tmp_path):
    """The same path with other rows is other data."""
    rows = [{"prompt": f"{i}?", "completion": "Yes."} for i in range(9)]
    marks = []
    for changed in (rows, rows[::-1], rows):
        (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in changed))
        marks.append(
            dependencies.dependency_fingerprint(
                RunSpec(compose("dataset=jsonl", f"dataset.path={tmp_path / 'mine.jsonl'}"), [])
            )
        )
    assert marks[0] == marks[2] != marks[1]


def test_print_plan_says_reuse_or_train_and_trains_nothing(out, capsys):
    made(out, "mine", compose(FEW, "method=sft"))
    before = sorted(out.rglob("*"))
    needs = [stage(out, "policy"), stage(out, "reward", "", "seed=2")]
    cfg = compose(FEW, "method=ppo", f"output_dir={out}")
    dependencies.print_plan(RunSpec(cfg, ["method=ppo"], dependencies=needs))
    plan = {line.split()[0]: " ".join(line.split()[1:]) for line in capsys.readouterr().out.splitlines() if line}
    assert plan["policy"].startswith("reuse mine python train.py")
    assert plan["reward"].startswith("train python train.py")
    assert plan["ppo"] == "train python train.py method=ppo"
    assert sorted(out.rglob("*")) == before


def test_a_command_can_be_pasted_into_a_shell():
    command = dependencies.command_of(RunSpec(compose(), ["run_name=a b", "policy_run_overrides=['x=1']"]))
    assert command == """python train.py 'run_name=a b' 'policy_run_overrides=['"'"'x=1'"'"']'"""


def test_lineage_text_lists_dependencies_above_the_run(out):
    for name, summary in (("first", "fits 9 → 80 %"), ("judge", "")):
        made(out, name, compose(FEW, "method=sft"), summary)
    inputs = {role: RunArtifact(out / "runs" / name / "model", "", name) for role, name in
              (("policy", "first"), ("reward", "judge"))}  # fmt: skip
    assert dependencies.lineage_text(RunDir(Path("runs/last"), RunState()), "fits 80 → 90 %", inputs) == (
        "  policy  first  (fits 9 → 80 %)\n  reward  judge\n       └→ last  (fits 80 → 90 %)\n"
    )
    assert dependencies.lineage_text(RunDir(Path("runs/alone"), RunState()), "", {}) == "alone\n"


def test_an_explicit_run_has_the_fingerprint_of_its_stage(out):
    """So a policy that is named and one that is found make one and the same run of PPO."""
    made(out, "mine", compose(FEW, "method=sft"))
    need = stage(out, "policy")
    assert (
        dependencies.resolve_explicit(stage(out, "policy", "mine")).fingerprint
        == dependencies.find_finished(need.cfg, dependencies.dependency_fingerprint(need)).fingerprint
    )
    assert dependencies.dependency_fingerprint(need) == weights_fingerprint(need.cfg, dependencies.digest_of(need.cfg))
