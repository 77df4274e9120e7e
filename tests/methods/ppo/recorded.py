"""A PPO run that records all that it logs."""

import torch

from manners.methods.distributed import ProcessGroup
from manners.methods.ppo.checkpoint import trainable_weights
from manners.methods.ppo.trainer import PPOTrainer, train_ppo
from tests.methods.ppo.cases import (
    frequent_stop_ids,
    is_rloo,
    make_policy,
    make_prompts,
    rewarded_tokens,
    token_share_reward,
)

FIRST_EVAL_PROMPT = 100  # the number of the first held-out prompt


class Killed(Exception):
    """Stands for kill -9: nothing that the program would do on its way out is done."""


class RecordedRun:
    """Five held-out prompts, twelve training prompts; ``kill_at`` kills the run when that iteration has been logged."""

    def __init__(self, model, tokenizer, config, folder, rewards=None, kill_at=None, adapter="lora", critic=None):
        self.metrics, self.tables, self.warnings, self.eval_weights = {}, {}, [], {}
        self.policy = make_policy(model, adapter, critic or ("none" if is_rloo(config) else "head"))
        self.kill_at, self.folder = kill_at, folder
        folder.mkdir(exist_ok=True)
        rewards = rewards or token_share_reward(rewarded_tokens(model))
        stop_ids = frequent_stop_ids(tokenizer)
        self.trainer = PPOTrainer(self.policy, tokenizer, stop_ids, rewards, config, 3, ProcessGroup())

    def train(self):
        self.result = train_ppo(
            self.trainer,
            make_prompts(12),
            make_prompts(5, FIRST_EVAL_PROMPT),
            self.folder,
            self.log,
            self.log_table,
            self.warnings.append,
        )
        return self

    def log(self, metrics, step):
        self.metrics |= {(name, step): value for name, value in metrics.items()}
        if "eval/scores" in metrics:
            self.eval_weights[step] = trainable_weights(self.policy)
        elif step == self.kill_at:
            raise Killed

    def log_table(self, rows, name):
        assert name not in self.tables
        self.tables[name] = rows

    def values(self, metric):
        """The values of a metric, by step."""
        return [value for (name, _), value in sorted(self.metrics.items(), key=lambda m: m[0][1]) if name == metric]

    def weights(self):
        return trainable_weights(self.policy)


def equal_weights(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def seven_iterations(make_config, **changes):
    """Seven iterations: a checkpoint and a table of samples every 2, an evaluation every 3, and an adaptive KL."""
    steps = {"total_episodes": 7 * 8, "save_steps": 2, "eval_steps": 3, "log_samples_steps": 2, "log_samples": 3}
    adaptive = {"adaptive_kl": True, "kl_target": 0.5, "kl_horizon": 50, "learning_rate": 5e-3, "num_ppo_epochs": 2}
    return make_config(**(steps | adaptive | changes))
