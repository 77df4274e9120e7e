"""Little runs of each method, to be killed and starved, and what is left of them."""

import sqlite3
from pathlib import Path

from tests.commands import SMALL

LITTLE = [*SMALL, "evaluation.test_prompts=2", "evaluation.prompts=1", "evaluation.max_new_tokens=4"]
FIT = [
    *("method.max_steps=12", "method.eval_steps=4", "method.logging_steps=1", "method.max_length=48"),
    *("method.per_device_train_batch_size=2", "method.per_device_eval_batch_size=2"),
    "method.gradient_accumulation_steps=1",
]
ONLINE = [
    *("method.total_episodes=32", "method.batch_size=4", "method.num_mini_batches=2", "method.num_ppo_epochs=1"),
    *("method.max_prompt_length=40", "method.response_length=6", "method.num_eval_prompts=2", "method.eval_steps=3"),
    *("method.log_samples_steps=1", "policy_from=none", "reward_from=none", "~method.rewards.model"),
    "+method.rewards.brevity={_target_: manners.rewards.combine.brevity}",
]
METHODS = {
    "sft": [*LITTLE, *FIT, "method=sft"],
    "reward": [*LITTLE, *FIT, "method=reward", "adapter=none"],
    "ppo": [*LITTLE, *ONLINE, "method=ppo"],
}
OF_THE_CLOCK = ("per_second", "cost/", "system/")


def weights(run: Path) -> dict[str, bytes]:
    return {f.name: f.read_bytes() for f in sorted((run / "model").glob("*.safetensors"))}


def history(store: Path, run: str) -> dict[tuple[str, int], float]:
    """What a SQLite store holds of a run's metrics, less what the clock decides. No step may be there twice."""
    with sqlite3.connect(store) as base:
        rows = base.execute(
            "select key, step, value from metrics join runs using (run_uuid) where runs.name = ?", (run,)
        ).fetchall()
        states = base.execute("select status from runs where name = ?", (run,)).fetchall()
    assert states == [("FINISHED",)], states
    kept = [((key, step), value) for key, step, value in rows if not any(name in key for name in OF_THE_CLOCK)]
    found = dict(kept)
    assert len(found) == len(kept), "a step is there twice"
    return found
