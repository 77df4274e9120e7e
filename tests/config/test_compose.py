"""How a command line becomes configs: recipes, tuned values, the debug group, dependencies, renamed options."""

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import example, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from manners.config import compose as compose_module
from manners.config.compose import hydra_context, plan_run, register
from manners.config.explain import no_such_option
from manners.config.overrides import quoted_override
from manners.config.schema import SFTConfig
from tests.configs import compose

# Former name → present name, of every option and group that was renamed. Those that are similar in spelling are found
# without a table.
RENAMED = {
    "study": "experiment",
    "study_name": "experiment_name",
    "quick": "debug=quick",
    "lineage": "plan",
    "fit": "estimate",
    "register": "register_model",
    "policy": "policy_from",
    "reward": "reward_from",
    "policy_overrides": "policy_run_overrides",
    "reward_overrides": "reward_run_overrides",
    "hardware.parts": "hardware.microbatch_size",
    "hardware.optim": "method.optim",
    "dataset.train_on": "dataset.loss_roles",
    "dataset.every_reply": "dataset.include_alternatives",
    "dataset.score_above": "dataset.min_score_quantile",
    "dataset.keep": "dataset.keep_flagged",
    "dataset.on_error": "dataset.on_invalid_row",
    "dataset.prompt_words": "dataset.prefix_words",
    "dataset.end_of_conversation": "dataset.conversation_eos",
    "dataset.judge": "dataset.style_judge",
    "dataset.card": "dataset.text_stats",
    "dataset.views": "dataset.sample_types",
    "dataset.eval_prompts": "dataset.eval_prompts_file",
    "method.view": "method.sample_type",
    "method.ranking": "method.ranking_coef",
    "method.sanity_floor": "method.min_sanity_accuracy",
    "method.adap_kl_ctrl": "method.adaptive_kl",
    "method.target": "method.kl_target",
    "method.horizon": "method.kl_horizon",
    "method.generation": "method.generation_backend",
    "method.eval_prompts": "method.num_eval_prompts",
    "strength": "adapter_scale",
    "arena": "self_chat",
    "lm_eval": "benchmarks",
}
SCRIPTS = {"strength": "chat", "arena": "chat", "lm_eval": "evaluate"}  # whose option it is, where not train.py's


ANY_DATA = ("dataset.sample_types=[conversation,scored,prompt]",)


@pytest.fixture(autouse=True)
def registered():
    register()
    yield
    register()


@pytest.mark.parametrize("former, present", RENAMED.items())
def test_renamed_option_is_suggested_by_its_present_name(former, present):
    if former in SCRIPTS:
        with hydra_context():
            cfg = compose_module.compose(SCRIPTS[former], [])
    else:
        cfg = compose("method=reward" if former == "method.ranking" else "method=ppo")
    assert OmegaConf.select(cfg, former) is None
    with hydra_context():
        assert no_such_option("x", former, cfg) == f"x: there is no option '{former}'. Did you mean '{present}'?"


def test_debug_quick_shortens_a_run_but_not_explicit_overrides():
    cfg = compose("experiment=chatbot", "debug=quick", "method.max_steps=7")
    assert (cfg.dataset.max_rows, cfg.method.max_steps, cfg.evaluation.test_prompts) == (100, 7, 40)
    assert compose("experiment=chatbot").dataset.max_rows == 5000


@pytest.mark.parametrize("method", ["ppo", "rloo"])
def test_debug_quick_takes_twenty_optimizer_steps(method):
    m = compose(f"method={method}", "debug=quick").method
    assert m.total_episodes // m.batch_size * m.num_ppo_epochs * m.num_mini_batches == 20


def test_debug_quick_reaches_the_dependencies():
    policy, reward = plan_run(["model=tiny", "method=ppo", "debug=quick"]).dependencies
    assert reward.cfg.method.max_steps == 20
    assert policy.cfg.method.max_steps == 90  # tuned/tiny/ppo.yaml sets it, as an override of that run


def test_recipe_names_the_recipes_of_its_dependencies():
    spec = plan_run(["experiment=polite_gpt2_tiny"])
    policy, reward = spec.dependencies
    assert policy.overrides == ["method=sft", "experiment=polite_gpt2_tiny_sft"]
    assert reward.overrides == ["method=reward", "experiment=polite_gpt2_tiny_reward"]
    names = [(s.role, s.cfg.method.name, s.cfg.model.name, s.cfg.experiment_name) for s in (spec, policy, reward)]
    assert names == [
        ("", "ppo", "tiny", "polite_gpt2"),
        ("policy", "sft", "tiny", "polite_gpt2"),
        ("reward", "reward", "tiny", "polite_gpt2"),
    ]
    assert (spec.cfg.dataset.min_score_quantile, policy.cfg.dataset.min_score_quantile) == (None, 0.75)


def test_dependency_takes_over_overrides_that_concern_it():
    command = ["method=ppo", "seed=7", "run_name=mine", "method.kl_coef=0.2", "hardware=cpu", "plan=true"]
    policy, _ = plan_run([*command, "policy_run_overrides=['seed=8']"]).dependencies
    assert policy.overrides == ["hardware=cpu", "method=sft", "seed=8"]


def test_explicit_sources_and_none():
    policy, reward = plan_run(["method=ppo", "policy_from=some-run"]).dependencies
    assert (policy.explicit_source, reward.explicit_source) == ("some-run", "")
    assert [d.role for d in plan_run(["method=ppo", "policy_from=none"]).dependencies] == ["reward"]
    functions = ["~method.rewards.model", "+method.rewards.own={_target_: manners.rewards.functions.brevity}"]
    assert [d.role for d in plan_run(["method=ppo", *functions]).dependencies] == ["policy"]


def test_tuned_values_are_those_of_model_and_method():
    assert compose("method=sft").method.learning_rate == 2e-3
    assert compose("method=sft", "model=gpt2").method.learning_rate == 2e-4  # the schema's default
    assert compose("method=sft", "method.learning_rate=0.5").method.learning_rate == 0.5


def test_tuned_values_belong_to_their_model_alone(tmp_path):
    schema_default = SFTConfig().learning_rate
    assert compose(f"model.name={tmp_path}").method.learning_rate == schema_default
    assert compose("model.name=tiny", "tuned=tiny/sft").method.learning_rate == 2e-3  # by an explicit choice
    policy, reward = plan_run(["method=ppo", f"model.name={tmp_path}", *ANY_DATA]).dependencies
    assert policy.cfg.method.learning_rate == reward.cfg.method.learning_rate == schema_default
    assert policy.cfg.dataset.max_rows is None  # which tuned/tiny/ppo.yaml sets for the tiny model's policy


def test_recipe_that_names_a_model_gets_no_tuned_values(tmp_path):
    (tmp_path / "experiment").mkdir()
    text = f"# @package _global_\nmodel:\n  name: {tmp_path}\n"
    (tmp_path / "experiment" / "mine.yaml").write_text(text)
    register(str(tmp_path))
    with hydra_context():
        assert compose_module.compose("train", ["experiment=mine"]).method.learning_rate == SFTConfig().learning_rate


@pytest.mark.parametrize(
    "key, suggestion",
    [
        ("method.kl_cof", "method.kl_coef"),
        ("method.max_length", "method.max_prompt_length"),
        ("max_steps", "method.max_steps"),
        ("learning_rat", "method.learning_rate"),
        ("strength", ""),  # its present name is an option of chat.py alone
    ],
)
def test_suggestion_is_an_option_of_this_command(key, suggestion):
    cfg = compose("method=sft" if key == "max_steps" else "method=ppo")
    with hydra_context():
        text = no_such_option("x", key, cfg)
    assert f"Did you mean '{suggestion}'?" in text if suggestion else "Did you mean" not in text


@given(st.text(st.characters(exclude_categories=["C"]), min_size=1))
@settings(max_examples=60, deadline=None)
@example("/a b/c#d?e=f,g[1]{2}~%")
@example("it's \\' and \"quoted\" \\")
@example("outputs/exports/run-1234")
def test_quoted_override_is_read_back_as_it_was(path):
    """Of the commands that are printed, and of those that a sweep starts."""
    (parsed,) = OverridesParser.create().parse_overrides([quoted_override("run", path)])
    assert str(parsed.value()) == path
