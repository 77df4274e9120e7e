"""Tiny runs of each method, to be killed and starved, and their results."""

import sqlite3
from pathlib import Path

from tests.commands import SMALL

TINY = [*SMALL, "evaluation.test_prompts=2", "evaluation.prompts=1", "evaluation.max_new_tokens=4"]
SUPERVISED = [
    *("method.max_steps=12", "method.eval_steps=4", "method.logging_steps=1", "method.max_length=48"),
    *("method.per_device_train_batch_size=2", "method.per_device_eval_batch_size=2"),
    "method.gradient_accumulation_steps=1",
]
ONLINE = [
    *("method.total_episodes=32", "method.batch_size=4", "method.num_mini_batches=2", "method.num_ppo_epochs=1"),
    *("method.max_prompt_length=40", "method.response_length=6", "method.num_eval_prompts=2", "method.eval_steps=3"),
    *("method.log_samples_steps=1", "policy_from=none", "reward_from=none", "~method.rewards.model"),
    "+method.rewards.brevity={_target_: manners.rewards.functions.brevity}",
]
METHODS = {
    "sft": [*TINY, *SUPERVISED, "method=sft"],
    "reward": [*TINY, *SUPERVISED, "method=reward", "adapter=none"],
    "ppo": [*TINY, *ONLINE, "method=ppo"],
}
DEPEND_ON_TIME = ("per_second", "cost/", "system/")  # metrics that differ from run to run


def model_weights(run: Path) -> dict[str, bytes]:
    return {f.name: f.read_bytes() for f in sorted((run / "model").glob("*.safetensors"))}


def metric_history(store: Path, run: str) -> dict[tuple[str, int], float]:
    """The metrics of a finished run in a SQLite store, by name and step, less those that depend on time.

    Fails where a step was logged twice.
    """
    with sqlite3.connect(store) as connection:
        rows = connection.execute(
            "select key, step, value from metrics join runs using (run_uuid) where runs.name = ?", (run,)
        ).fetchall()
        statuses = connection.execute("select status from runs where name = ?", (run,)).fetchall()
    assert statuses == [("FINISHED",)], statuses
    kept = [((key, step), value) for key, step, value in rows if not any(name in key for name in DEPEND_ON_TIME)]
    history = dict(kept)
    assert len(history) == len(kept), "a step was logged twice"
    return history
