"""Short PPO runs in as many processes as torchrun starts; each process saves the weights that it ends with.

``python -m torch.distributed.run --nproc-per-node 2 -m tests.methods.ppo.two_processes MODEL OUT``
"""

import sys
from pathlib import Path

from safetensors.torch import save_file
from transformers import Qwen2ForCausalLM

from manners.methods.distributed import ProcessGroup, init_distributed
from manners.methods.ppo.checkpoint import trainable_weights
from manners.methods.ppo.trainer import PPOTrainer, train_ppo
from manners.models.tokenizer import load_tokenizer
from tests.methods.ppo.cases import (
    frequent_stop_ids,
    is_rloo,
    make_policy,
    make_prompts,
    ppo_config,
    rewarded_tokens,
    rloo_config,
    token_share_reward,
)

SHORT = {"total_episodes": 16, "learning_rate": 3e-3, "num_ppo_epochs": 2}
CASES = {  # name → config and adapter
    "ppo": (ppo_config(**SHORT, whiten_rewards=True), "lora"),
    "rloo": (rloo_config(**SHORT, num_generations=4), "lora"),
    "full": (ppo_config(**SHORT, adaptive_kl=True, kl_target=0.5, kl_horizon=50), "none"),
}


def train_cases(model: Path, out: Path, process_group: ProcessGroup) -> dict[str, dict[str, float]]:
    """Train each case for two iterations, and return the last value of each of its metrics."""
    network, tokenizer = Qwen2ForCausalLM.from_pretrained(model), load_tokenizer("tiny")
    metrics: dict[str, dict[str, float]] = {}
    for name, (config, adapter) in CASES.items():
        policy = make_policy(network, adapter, "none" if is_rloo(config) else "head")
        rewards = token_share_reward(rewarded_tokens(network))
        trainer = PPOTrainer(policy, tokenizer, frequent_stop_ids(tokenizer), rewards, config, 3, process_group)
        logged = metrics.setdefault(name, {})
        (out / name).mkdir(parents=True, exist_ok=True)
        log = lambda values, _step, logged=logged: logged.update(values)  # noqa: E731
        train_ppo(trainer, make_prompts(10), [], out / name, log, lambda *_: None, print)
        save_file(trainable_weights(policy), out / f"{name}{process_group.rank}")
    return metrics


if __name__ == "__main__":
    train_cases(Path(sys.argv[1]), Path(sys.argv[2]), init_distributed("cpu", "ppo"))
