"""evaluate.py: runs, their bases and hub models on the same prompts."""

import json
import re
import subprocess
import sys

import hydra
import numpy as np
import pytest

from manners.config import compose, schema
from manners.data.types import Prompt
from manners.errors import MannersError
from manners.evaluation import multi_turn
from manners.evaluation.evaluate import Generation
from manners.evaluation.reports import side_by_side
from manners.evaluation.reports.side_by_side import ModelResult
from manners.evaluation.stats import Estimate
from manners.pipeline import model_ref
from manners.runtime import paths
from tests.commands import ROOT, SMALL_RL, artifact_paths, find_run, mlflow_runs, small_strictbot, train_in_process


def evaluation(*overrides):
    schema.register_schemas()
    with hydra.initialize_config_dir(str(paths.CONF), version_base="1.3"):
        return compose.compose("evaluate", ["evaluation.max_new_tokens=12", *overrides])


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """A light PPO chain: three finished runs."""
    out = tmp_path_factory.mktemp("out")
    taught = "policy_run_overrides=['method.max_steps=20']"  # enough to answer otherwise than before
    train_in_process(
        "method=ppo", *SMALL_RL, *small_strictbot(out), taught, "method.total_episodes=8", f"output_dir={out}"
    )
    return out


@pytest.fixture(scope="module")
def report(chain):
    """The two runs that answer, with the base, the reward model and chats of four turns."""
    from manners.pipeline import evaluate

    policy, tuned = find_run(chain, "manners-sft-*").name, find_run(chain, "manners-ppo-*").name
    short = "+rewards.brevity={_target_: manners.rewards.functions.brevity}"
    cfg = evaluation(f"run=[{policy},{tuned}]", "reward_from=auto", "turns=4", "chats=3", f"output_dir={chain}", short)
    return evaluate.evaluate_models(cfg), policy, tuned


def test_the_base_stands_once_beside_both_runs(report):
    folder, policy, tuned = report
    card = (folder / "comparison.md").read_text()
    assert f"| metric | tiny (before) | {policy} | {tuned} | in the data |" in card
    for line in ("style accuracy", "fact accuracy", "reward model", "brevity", "held-out loss", "words"):
        assert re.search(rf"^\| {line}[^|]*\|( -?\d+\.\d+ \[[^|]+\|){{3}}", card, re.MULTILINE), line


def test_replies_before_are_the_bases_and_differ_from_after(report):
    """The base's replies, from the packaged model itself, without the evaluation in between."""
    from manners.evaluation.generate import generate_texts
    from manners.models.loading import load_model, load_tokenizer

    folder, _, tuned = report
    rows = [json.loads(line) for line in (folder / "replies.jsonl").read_text().splitlines()]
    before = [r for r in rows if r["model"] == "tiny (before)"]
    told = generate_texts(
        load_model("tiny"), load_tokenizer("tiny"), [r["messages"] for r in before], max_new_tokens=12
    )
    assert [r["reply"] for r in before] == [reply.text for reply in told]
    assert [r["reply"] for r in before] != [r["reply"] for r in rows if r["model"] == tuned]


def test_figures_and_the_tracking_store_have_it_too(report, chain):
    folder, _, tuned = report
    assert {"text_stats.png", "turns.png", "replies.md"} <= {p.name for p in folder.iterdir()}
    client, runs = mlflow_runs(chain)
    found = runs[folder.name]
    assert {"comparison.json", "replies.json", "comparison.md"} <= artifact_paths(client, found.info.run_id)
    assert found.data.tags["manners.method"] == "evaluate"
    card = (folder / "comparison.md").read_text()
    shown = re.search(r"^\| words \|.*\| (\d+\.\d+) \[[^|]*\| [^|]*\|$", card, re.MULTILINE)
    assert found.data.metrics[f"{tuned}/words"] == pytest.approx(float(shown[1]), abs=5e-4)


def test_latest_is_the_run_that_finished_last(chain):
    assert (
        model_ref.resolve_model("latest", evaluation(f"output_dir={chain}")).name
        == find_run(chain, "manners-ppo-*").name
    )
    assert (
        model_ref.latest_run(evaluation(f"output_dir={chain}"), ("sft",)).name == find_run(chain, "manners-sft-*").name
    )


def test_model_that_cannot_generate_or_is_missing_is_refused(chain, tmp_path):
    cfg, scores = evaluation(f"output_dir={chain}"), find_run(chain, "manners-reward-*").name
    with pytest.raises(MannersError, match="is a run of method=reward; one of sft, dpo, ppo, rloo is needed"):
        model_ref.resolve_model(scores, cfg)
    with pytest.raises(MannersError, match=f"Did you mean '{scores}'"):
        model_ref.resolve_model(scores[:-1] + "x", cfg)
    with pytest.raises(MannersError, match=r"has no finished run yet\. Train one: python train.py"):
        model_ref.resolve_model("latest", evaluation(f"output_dir={tmp_path}"))
    sft = model_ref.resolve_model(find_run(chain, "manners-sft-*").name, cfg)
    with pytest.raises(MannersError, match="Name one: reward_from=RUN"):
        model_ref.resolve_reward_model(evaluation("reward_from=auto"), [sft])


def test_a_mistake_is_answered_before_torch_is_imported(chain):
    command = [sys.executable, "-X", "importtime", str(ROOT / "evaluate.py"), "turns=-1"]
    said = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert said.returncode and "error: turns=-1 must be at least 0." in said.stderr
    assert " torch\n" not in said.stderr


def test_fading_is_the_first_half_less_the_second():
    found = multi_turn.turn_trend(np.array([[1.0, 1.0, 0.0, 0.0], [1.0, 0.5, 0.5, 0.0]]))
    assert [e.value for e in found.by_turn] == [1.0, 0.75, 0.25, 0.0]
    assert found.decline.value == pytest.approx((1.0 + 0.5) / 2)


def test_chats_ask_every_model_the_same_single_questions():
    single = [Prompt([{"role": "user", "content": str(i)}]) for i in range(5)]
    longer = Prompt([{"role": r, "content": "no"} for r in ("user", "assistant", "user")])
    sides = multi_turn.draw_questions([longer, *single], turns=4, conversations=6, seed=1)
    assert [len(side) for side in sides] == [4] * 6
    assert all(p.messages[0]["content"] != "no" for side in sides for p in side)
    assert (
        sides
        == multi_turn.draw_questions([longer, *single], 4, 6, 1)
        != multi_turn.draw_questions([longer, *single], 4, 6, 2)
    )


def test_each_turn_of_a_chat_sees_what_was_said_before(monkeypatch):
    def echo(_model, _tokenizer, asked, _judged, **_settings):
        return [Generation(p.messages[-1]["content"], f"re: {p.messages[-1]['content']}", True) for p in asked]

    monkeypatch.setattr(multi_turn, "generate_replies", echo)
    side = [Prompt([{"role": "user", "content": c}]) for c in "ab"]
    (_, _), (second, _) = multi_turn.run_conversations(None, None, [side], False)
    assert [m["content"] for m in second[0].messages] == ["a", "re: a", "b"]


def test_a_table_keeps_bars_and_brackets_of_what_was_said():
    answer = Generation("a | b", "[red]no[/red] | yes", True)
    heard = [ModelResult(name, [answer], [answer], {"x": Estimate(0.5, 0.4, 0.6)}) for name in ("one", "two")]
    assert r"| a \| b | [red]no[/red] \| yes | [red]no[/red] \| yes |" in side_by_side.replies_markdown("t", heard)
    assert side_by_side.comparison_rows(heard, {}) == [["x", "0.500 [0.400, 0.600]", "0.500 [0.400, 0.600]", ""]]
