"""Dependencies: found by fingerprint or by name, refused where they do not fit, planned before anything is trained."""

import json
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf
from safetensors.numpy import save_file

from manners.config.compose import RunSpec
from manners.errors import MannersError
from manners.models.adapter_config import WEIGHTS
from manners.pipeline import dependencies
from manners.runtime.run_dir import RunArtifact, RunDir, RunState, weights_fingerprint
from tests.configs import compose

SMALL = "dataset=polite_helper"  # thirty rows, which are loaded at once


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def finished_run(out, name, cfg, summary=""):
    """Write the directory of a finished run of ``cfg``, as training would leave it."""
    model_dir = out / "runs" / name / "model"
    model_dir.mkdir(parents=True)
    (model_dir / "config.json").write_text("{}")
    (model_dir / "manners.yaml").write_text(OmegaConf.to_yaml(cfg, resolve=True))
    fingerprint = dependencies.dependency_fingerprint(RunSpec(cfg, []))
    state = {"status": "finished", "summary": summary, "weights_fingerprint": fingerprint}
    (model_dir.parent / "run.json").write_text(json.dumps(state))


def dependency(out, role, source="", *overrides):
    method = {"policy": "sft", "reward": "reward"}[role]
    overrides = [SMALL, f"output_dir={out}", f"method={method}", *overrides]
    return RunSpec(compose(*overrides), overrides, role, source)


def resolve(*args):
    return dependencies.resolve_explicit(dependency(*args))


def error_of(*args):
    with pytest.raises(MannersError) as error:
        resolve(*args)
    return str(error.value)


# --- Explicit sources ---


def test_resolve_explicit_accepts_compatible_runs(out):
    finished_run(out, "judge", compose(SMALL, "method=reward"))
    assert resolve(out, "reward", "judge").name == "judge"
    for method in ("sft", "dpo", "ppo", "rloo"):  # PPO may continue from any policy
        finished_run(out, method, compose(SMALL, f"method={method}"))
        assert resolve(out, "policy", method).name == method


@pytest.mark.parametrize(
    "override, message",
    [
        ("model.name=openai-community/gpt2", "was made with model.name=openai-community/gpt2, and this run has tiny"),
        ("model.revision=abc", "was made with model.revision=abc, and this run has None"),
        ("model.chat_template=plain", "was made with model.chat_template=plain, and this run has auto"),
    ],
)
def test_policy_of_another_base_or_template_is_refused(out, override, message):
    finished_run(out, "other", compose(SMALL, "method=sft", override))
    error = error_of(out, "policy", "other")
    assert f"policy_from=other {message}" in error
    assert f"Set {override}, or choose another run." in error
    finished_run(out, "judge", compose(SMALL, "method=reward", override))  # has its own tokenizer
    assert resolve(out, "reward", "judge").name == "judge"


def test_policy_is_accepted_after_the_advice_of_the_refusal(out):
    finished_run(out, "other", compose(SMALL, "method=sft", "model.chat_template=plain"))
    assert resolve(out, "policy", "other", "model.chat_template=plain").name == "other"


def test_run_of_the_wrong_method_is_refused(out):
    finished_run(out, "judge", compose(SMALL, "method=reward"))
    finished_run(out, "policy", compose(SMALL, "method=sft"))
    assert "policy_from=judge is a run of method=reward: sft or ppo or rloo" in error_of(out, "policy", "judge")
    assert "reward_from=policy is a run of method=sft: reward is needed" in error_of(out, "reward", "policy")


def test_foreign_model_folder_is_accepted(out, tmp_path):
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "config.json").write_text("{}")
    assert resolve(out, "policy", str(tmp_path / "foreign")).name == "foreign"


@pytest.mark.parametrize("settings, message", [({"use_rslora": True}, ""), ({"alpha_pattern": {"q_proj": 3}}, ""),
    ({"use_dora": True}, "(use_dora=true): merge it into its base"), ({"bias": "all"}, '(bias="all"): merge it'),
    ({"modules_to_save": ["lm_head"]}, '(modules_to_save=["lm_head"]): merge it')])  # fmt: skip
def test_foreign_adapter_is_accepted_or_refused_by_name(out, tmp_path, settings, message):
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"} | settings))
    save_file({f"q_proj.lora_{name}.weight": np.zeros((2, 2)) for name in "AB"}, tmp_path / "foreign" / WEIGHTS)
    source = str(tmp_path / "foreign")
    if message:
        assert f"policy_from={source} is more than a plain LoRA of linear layers {message}" in error_of(
            out, "policy", source
        )
    else:
        assert resolve(out, "policy", source).name == "foreign"


def test_unknown_source_is_refused_with_the_nearest_run(out):
    error = error_of(out, "policy", "mine")
    assert error.strip() == "policy_from=mine is neither a folder with a model nor a finished run."
    finished_run(out, "mine-sft-1234", compose(SMALL))
    assert "Did you mean 'mine-sft-1234'?" in error_of(out, "policy", "mine-sft-1243")


# --- Fingerprints ---


def test_find_finished_compares_what_shapes_the_weights(out):
    """A run with another name and evaluation has the same weights; one with another seed does not."""
    spec = dependency(out, "policy")
    fingerprint = dependencies.dependency_fingerprint(spec)
    finished_run(out, "other-seed", compose(SMALL, f"output_dir={out}", "method=sft", "seed=2"))
    assert dependencies.find_finished(spec.cfg, fingerprint) is None
    finished_run(out, "mine", compose(SMALL, "method=sft", "run_name=mine", "evaluation.test_prompts=3"))
    assert dependencies.find_finished(spec.cfg, fingerprint).name == "mine"


def test_fingerprint_depends_on_the_rows_of_a_file(tmp_path):
    rows = [{"prompt": f"{i}?", "completion": "Yes."} for i in range(9)]
    cfg = compose("dataset=jsonl", f"dataset.path={tmp_path / 'mine.jsonl'}")
    fingerprints = []
    for written in (rows, rows[::-1], rows):
        (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in written))
        fingerprints.append(dependencies.dependency_fingerprint(RunSpec(cfg, [])))
    assert fingerprints[0] == fingerprints[2] != fingerprints[1]


def test_explicit_run_has_the_fingerprint_of_the_found_one(out):
    """So PPO from a policy by name and from the policy that is found are one and the same run."""
    finished_run(out, "mine", compose(SMALL, "method=sft"))
    spec = dependency(out, "policy")
    fingerprint = dependencies.dependency_fingerprint(spec)
    assert resolve(out, "policy", "mine").fingerprint == fingerprint
    assert dependencies.find_finished(spec.cfg, fingerprint).fingerprint == fingerprint
    assert fingerprint == weights_fingerprint(spec.cfg, dependencies.digest_of(spec.cfg))


# --- Plan and lineage ---


def test_print_plan_says_reuse_or_train_and_trains_nothing(out, capsys):
    finished_run(out, "mine", compose(SMALL, "method=sft"))
    before = sorted(out.rglob("*"))
    specs = [dependency(out, "policy"), dependency(out, "reward", "", "seed=2")]
    cfg = compose(SMALL, "method=ppo", f"output_dir={out}")
    dependencies.print_plan(RunSpec(cfg, ["method=ppo"], dependencies=specs))
    plan = {line.split()[0]: " ".join(line.split()[1:]) for line in capsys.readouterr().out.splitlines() if line}
    assert plan["policy"].startswith("reuse mine python train.py")
    assert plan["reward"].startswith("train python train.py")
    assert plan["ppo"] == "train python train.py method=ppo"
    assert sorted(out.rglob("*")) == before


def test_command_of_quotes_for_the_shell():
    command = dependencies.command_of(RunSpec(compose(), ["run_name=a b", "policy_run_overrides=['x=1']"]))
    assert command == """python train.py 'run_name=a b' 'policy_run_overrides=['"'"'x=1'"'"']'"""


def test_lineage_text_lists_dependencies_above_the_run(out):
    finished_run(out, "first", compose(SMALL, "method=sft"), "style accuracy 9 % → 80 %")
    finished_run(out, "judge", compose(SMALL, "method=sft"))
    inputs = {
        "policy": RunArtifact(out / "runs" / "first" / "model", "", "first"),
        "reward": RunArtifact(out / "runs" / "judge" / "model", "", "judge"),
    }
    last = RunDir(Path("runs/last"), RunState())
    assert dependencies.lineage_text(last, "style accuracy 80 % → 90 %", inputs) == (
        "  policy  first  (style accuracy 9 % → 80 %)\n  reward  judge\n       └→ last  (style accuracy 80 % → 90 %)\n"
    )
    assert dependencies.lineage_text(RunDir(Path("runs/alone"), RunState()), "", {}) == "alone\n"
