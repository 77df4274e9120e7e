"""A run of the loop by as many processes as torchrun starts; each keeps the weights it ends with.

``python -m torch.distributed.run --nproc-per-node 2 -m tests.methods.ppo.together MODEL OUT``
"""

import sys
from pathlib import Path

from safetensors.torch import save_file
from transformers import Qwen2ForCausalLM

from manners.methods.distributed import ProcessGroup, init_distributed
from manners.methods.ppo.checkpoint import trainable_weights
from manners.methods.ppo.trainer import PPOTrainer, train_ppo
from manners.models.loading import load_tokenizer
from tests.methods.ppo.cases import early_stops, liked, policy, ppo, prompts, rloo, share_of

CASES = {
    "ppo": (ppo, {"whiten_rewards": True}, "lora"),
    "rloo": (rloo, {"num_generations": 4}, "lora"),
    "whole": (ppo, {"adaptive_kl": True, "kl_target": 0.5, "kl_horizon": 50}, "none"),
}


def play(folder: Path, out: Path, process_group: ProcessGroup, found: dict[str, dict[str, float]]) -> None:
    """Two iterations of each case. What is logged last goes to ``found``."""
    model, tokenizer = Qwen2ForCausalLM.from_pretrained(folder), load_tokenizer("tiny")
    for name, (make, changes, kind) in CASES.items():
        settings = make(total_episodes=16, learning_rate=3e-3, num_ppo_epochs=2, **changes)
        actor = policy(model, kind, "none" if make is rloo else "head")
        game = PPOTrainer(actor, tokenizer, early_stops(tokenizer), share_of(liked(model)), settings, 3, process_group)

        def log(metrics, step, name=name):
            found.setdefault(name, {}).update(metrics)

        (out / name).mkdir(parents=True, exist_ok=True)
        train_ppo(game, prompts(10), [], out / name, log, lambda *_: None, print)
        save_file(trainable_weights(actor), out / f"{name}{process_group.rank}")


if __name__ == "__main__":
    play(Path(sys.argv[1]), Path(sys.argv[2]), init_distributed("cpu", "ppo"), {})
