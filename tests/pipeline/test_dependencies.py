"""Dependencies: found by fingerprint or by name, refused where they do not fit, planned before anything is trained."""

import json
import os
import re
import shutil
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf
from safetensors.numpy import save_file

from manners.config.compose import RunSpec
from manners.errors import MannersError
from manners.models.adapter_config import WEIGHTS
from manners.pipeline import dependencies
from manners.runtime.model_files import model_digest
from manners.runtime.run_dir import RunArtifact, RunDir, RunState, run_fingerprint, weights_fingerprint
from tests.configs import compose

SMALL = "dataset=polite_helper"  # thirty rows, which are loaded at once


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def write_adapter(folder, **config):
    """A plain LoRA as peft leaves it."""
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"} | config))
    weights = {f"base_model.model.q_proj.lora_{side}.weight": np.zeros((2, 2), np.float32) for side in "AB"}
    save_file(weights, folder / "adapter_model.safetensors")


def finished_run(out, name, cfg, summary="", adapter=False, **more):
    """Write the directory of a finished run of ``cfg``, as training would leave it; without any weights."""
    model_dir = out / "runs" / name / "model"
    model_dir.mkdir(parents=True)
    if adapter:
        write_adapter(model_dir)
    else:
        (model_dir / "config.json").write_text("{}")
    digest = model_digest(cfg.model.name, cfg.model.revision)
    (model_dir / "manners.yaml").write_text(OmegaConf.to_yaml(cfg, resolve=True) + f"base_digest: '{digest}'\n")
    fingerprint = dependencies.dependency_fingerprint(RunSpec(cfg, []))
    state = {"status": "finished", "summary": summary, "weights_fingerprint": fingerprint} | more
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


def test_policy_of_another_revision_on_the_hub_is_refused(out):
    """Neither is on this machine, so that their contents cannot be compared."""
    name = "model.name=openai-community/gpt2"
    finished_run(out, "other", compose(SMALL, "method=sft", name, "model.revision=abc"))
    error = error_of(out, "policy", "other", name)
    assert "policy_from=other was made with model.revision=abc, and this run has None" in error


def test_policy_is_accepted_after_the_advice_of_the_refusal(out):
    finished_run(out, "other", compose(SMALL, "method=sft", "model.chat_template=plain"))
    assert resolve(out, "policy", "other", "model.chat_template=plain").name == "other"


def test_policy_with_added_tokens_is_refused(out):
    finished_run(out, "marked", compose(SMALL, "method=sft", 'model.added_tokens=["<|laugh|>"]'))
    message = error_of(out, "policy", "marked")
    assert message.startswith("policy_from=marked was trained with model.added_tokens=['<|laugh|>'], whose embeddings")


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
    ({"use_dora": True}, ""), ({"bias": "all"}, '(bias="all"): merge it into its base'),
    ({"modules_to_save": ["lm_head"]}, '(modules_to_save=["lm_head"]): merge it')])  # fmt: skip
def test_foreign_adapter_is_accepted_or_refused_by_name(out, tmp_path, settings, message):
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"} | settings))
    weights = {f"q_proj.lora_{name}.weight": np.zeros((2, 2)) for name in "AB"}
    weights |= {"q_proj.lora_magnitude_vector": np.ones(2)} if "use_dora" in settings else {}
    save_file(weights, tmp_path / "foreign" / WEIGHTS)
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
    assert fingerprint == weights_fingerprint(spec.cfg, dependencies.contents_of(spec.cfg))


# --- What a run stands on, by content ---


@pytest.fixture
def inputs(tmp_path, monkeypatch):
    """A base model, data, prompts and a reward function of one's own, and the config of a PPO run on them."""
    monkeypatch.chdir(tmp_path)
    base_model(tmp_path / "base")
    splits = ("train",) * 4 + ("validation", "test")
    rows = [{"prompt": f"{i}?", "completion": "Yes.", "split": s, "topic": "x"} for i, s in enumerate(splits)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "Who?"}\n')
    (tmp_path / "my_rewards.py").write_text("def short(completions, topic): return [0.0]\n")
    cfg = compose("dataset=jsonl", "method=ppo", "dataset.path=rows.jsonl", "dataset.eval_prompts_file=prompts.jsonl")
    cfg.model.name = "base"
    cfg.method.rewards = {"short": {"_target_": "my_rewards.short"}}
    return cfg


def base_model(folder):
    folder.mkdir()
    for name in ("model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (folder / name).write_text("1 ")


def edit(file, old, new):
    """Overwrite a file in the same size, as an edit in place would."""
    text = Path(file).read_text()
    assert old in text and len(old) == len(new)
    Path(file).write_text(text.replace(old, new))


@pytest.mark.parametrize(
    "file, old, new",
    [
        ("base/model.safetensors", "1", "2"),
        ("base/tokenizer.json", "1", "2"),
        ("base/chat_template.jinja", "1", "2"),
        ("base/config.json", "1", "2"),
        ("rows.jsonl", '"0?", "completion": "Yes."', '"0?", "completion": "No!!"'),  # of the training rows
        ("rows.jsonl", '"4?", "completion": "Yes."', '"4?", "completion": "No!!"'),  # validation
        ("rows.jsonl", '"5?", "completion": "Yes."', '"5?", "completion": "No!!"'),  # test
        ("rows.jsonl", '"topic": "x"', '"topic": "y"'),  # a column that a reward function reads
        ("rows.jsonl", '"validation"', '"test"      '),
        ("prompts.jsonl", "Who?", "Why?"),
        ("my_rewards.py", "0.0", "1.0"),
    ],
)
def test_edit_of_what_a_run_stands_on_makes_another_run(inputs, file, old, new):
    """So a killed run never goes on with other data than it began with, and nothing is reused on another base."""
    before = run_fingerprint(inputs, dependencies.contents_of(inputs))
    edit(file, old, new)
    contents = dependencies.contents_of(inputs)
    assert run_fingerprint(inputs, contents) != before
    edit(file, new, old)
    assert run_fingerprint(inputs, dependencies.contents_of(inputs)) == before


def test_versions_count_and_builds_of_one_version_do_not(inputs, monkeypatch):
    fingerprints = []
    for torch in ("2.13.0+cpu", "2.13.0+cu130", "2.14.0"):
        dependencies.installed_versions.cache_clear()
        monkeypatch.setattr(metadata, "version", lambda name, torch=torch: torch if name == "torch" else "1")
        fingerprints.append(run_fingerprint(inputs, dependencies.contents_of(inputs)))
    dependencies.installed_versions.cache_clear()
    assert fingerprints[0] == fingerprints[1] != fingerprints[2]


def test_what_only_computes_the_batch_is_no_part_of_it(inputs):
    before = run_fingerprint(inputs, dependencies.contents_of(inputs))
    inputs.hardware.microbatch_size = 3
    (Path("base") / "README.md").write_text("x")
    assert run_fingerprint(inputs, dependencies.contents_of(inputs)) == before


def test_own_templates_count_by_their_text(inputs, monkeypatch):
    inputs.model.chat_template = "plain"
    before = dependencies.contents_of(inputs)
    monkeypatch.setitem(dependencies.TEMPLATES, "plain", "other")
    assert dependencies.contents_of(inputs) != before


def test_pairs_with_corrupted_replies_are_not_those_without():
    """Runs of pairs from before such replies were trained on have the same config, and are not reused."""
    pairs, of_scores = ["method=reward", "method.loss=pairwise"], ["method=reward"]
    named = [
        "pairs" in dependencies.contents_of(compose(SMALL, *method, f"method.corruption_ratio={ratio}"))
        for method in (pairs, of_scores)
        for ratio in (0.3, 0.0)
    ]
    assert named == [True, False, False, False]


def test_policy_on_a_base_with_other_weights_is_refused(out, tmp_path):
    base_model(tmp_path / "base")
    model = f"model.name={tmp_path / 'base'}"
    finished_run(out, "mine", compose(SMALL, "method=sft", model), adapter=True)
    finished_run(out, "judge", compose(SMALL, "method=reward", model), adapter=True)
    assert resolve(out, "policy", "mine", model).name == "mine"
    shutil.copytree(tmp_path / "base", tmp_path / "moved")
    assert resolve(out, "policy", "mine", f"model.name={tmp_path / 'moved'}").name == "mine"  # the same content
    edit(tmp_path / "base" / "model.safetensors", "1", "2")
    for role, name in (("policy", "mine"), ("reward", "judge")):
        error = error_of(out, role, name, model)
        assert f"{role}_from={name} was trained on another model than {tmp_path / 'base'} holds now" in error
    assert resolve(out, "policy", "mine", f"model.name={tmp_path / 'moved'}").name == "mine"


def test_foreign_adapter_on_another_base_is_refused(out, tmp_path):
    for name in ("base", "same", "foreign"):
        base_model(tmp_path / name)
    write_adapter(tmp_path / "foreign", base_model_name_or_path=str(tmp_path / "base"))
    for name in ("base", "same"):
        assert resolve(out, "policy", str(tmp_path / "foreign"), f"model.name={tmp_path / name}").name == "foreign"
    error = error_of(out, "policy", str(tmp_path / "foreign"))
    assert f"is an adapter on {tmp_path / 'base'}, and this run has model.name=tiny" in error


def test_latest_is_the_newest_run_that_can_fill_the_role(out):
    for time, method in enumerate(("reward", "sft", "dpo", "reward")):
        finished_run(out, f"{time}-{method}", compose(SMALL, f"method={method}"))
        os.utime(out / "runs" / f"{time}-{method}" / "run.json", (time, time))
    assert resolve(out, "policy", "latest").name == "2-dpo"
    assert resolve(out, "reward", "latest").name == "3-reward"
    shutil.rmtree(out)
    error = error_of(out, "reward", "latest")
    assert f"reward_from=latest: {out}/runs has no finished run of method=reward yet" in error
    assert "Train one: python train.py method=reward." in error


# --- Plan and lineage ---


def test_print_plan_says_reuse_or_train_and_trains_nothing(out, capsys):
    finished_run(out, "mine", compose(SMALL, "method=sft"), command="method=sft 'run_name=my own'")
    before = sorted(out.rglob("*"))
    specs = [dependency(out, "policy"), dependency(out, "reward", "", "seed=2")]
    cfg = compose(SMALL, "method=ppo", f"output_dir={out}")
    dependencies.print_plan(RunSpec(cfg, ["method=ppo"], dependencies=specs))
    plan = {line.split()[0]: " ".join(line.split()[1:]) for line in capsys.readouterr().out.splitlines() if line}
    assert plan["policy"] == "reuse mine python train.py method=sft 'run_name=my own'"  # which made it
    assert plan["reward"].startswith("train python train.py")
    assert plan["ppo"] == "train python train.py method=ppo"
    assert sorted(out.rglob("*")) == before


def test_command_of_shows_no_password():
    command = dependencies.command_of(RunSpec(compose(), ["tracking.uri=postgresql://me:secret@host/db"]))
    assert command == "python train.py tracking.uri=postgresql://me:***@host/db"


def test_print_plan_names_the_command_of_a_given_run(out, capsys):
    finished_run(out, "mine", compose(SMALL, "method=sft"), command="")
    finished_run(out, "old", compose(SMALL, "method=reward"))  # from before commands were kept
    cfg = compose(SMALL, "method=ppo", "method.min_sanity_accuracy=0", f"output_dir={out}")
    specs = [RunSpec(cfg, [], "policy", "mine"), RunSpec(cfg, [], "reward", "old")]
    dependencies.print_plan(RunSpec(cfg, ["method=ppo"], dependencies=specs))
    plan = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert plan[:2] == [
        "policy reuse mine python train.py",
        f"reward reuse old {out / 'runs' / 'old' / 'model'}",
    ]


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


def test_rows_that_the_method_cannot_use_are_refused_by_role(tmp_path):
    path = tmp_path / "pairs.jsonl"
    pairs = [{"prompt": f"{i}?", "chosen": "Yes.", "rejected": "No."} for i in range(40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in pairs))
    overrides = ["dataset=jsonl", f"dataset.path={path}", "method=reward"]
    with pytest.raises(MannersError) as error:
        dependencies.check_rows(RunSpec(compose(*overrides), overrides, "reward"))
    message = str(error.value)
    assert message.startswith(
        f"the reward run ({' '.join(overrides)}): dataset.score_field=score: no row of {path} has a"
    )
    assert "The rows are pairs: method.loss=pairwise." in message
    assert message.endswith("Its options are set by reward_run_overrides=[KEY=VALUE].")
    for options in (["method=reward", "method.loss=pairwise"], ["method=dpo"], ["method=sft"]):
        dependencies.check_rows(RunSpec(compose(*overrides[:2], *options), overrides))
    with pytest.raises(MannersError, match="no row has a 'chosen' and a 'rejected' reply"):
        dependencies.check_rows(RunSpec(compose("dataset=polite_helper", "method=dpo"), []))


@pytest.mark.parametrize(
    "labels, message",
    [
        ([True] * 8, "8 desirable and 0 undesirable ones: add rows with 'label': false, or a 'rejected' reply, or"),
        ([False] * 8, "0 desirable and 8 undesirable ones: add rows with 'label': true."),
        ([None] * 8, "no row has a 'label' (true or false), or a pair"),
        ([True, False] * 4, "all held-out rows to report on have an undesirable reply"),
    ],
)
def test_kto_refuses_data_without_both_labels(tmp_path, labels, message):
    file, held_out = tmp_path / "rows.jsonl", labels[0] if labels[0] == labels[-1] else False
    rows = [{"prompt": f"{i}?", "completion": "a", "split": "train", "label": label} for i, label in enumerate(labels)]
    rows += [{"prompt": f"{s}?", "completion": "a", "split": s, "label": held_out} for s in ("validation", "test")]
    file.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(MannersError, match=re.escape(message)):
        dependencies.check_rows(RunSpec(compose("dataset=jsonl", f"dataset.path={file}", "method=kto"), []))
