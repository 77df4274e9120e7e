"""Our side of the PPO benchmark: the package's own iteration of PPO, on the task that it shares with peer.py.

Run it with the project's Python. The arguments are those of peer.py, and so is the one line of JSON that it prints.
"""

import argparse
import json
import resource
import tempfile
from pathlib import Path

import psutil
import torch
from task import Clock, score

from manners.config.schema import PPOConfig
from manners.data.types import Prompt
from manners.methods.distributed import ProcessGroup
from manners.methods.ppo.checkpoint import TrainerState
from manners.methods.ppo.rollout import Rollout, run_networks, sample_replies
from manners.methods.ppo.trainer import PPOTrainer, make_optimizer, training_step
from manners.models import loading, lora
from manners.models.generation import Sampling
from manners.models.policy import Policy
from manners.models.tokenizer import load_tokenizer
from manners.rewards.combine import RewardComponent


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="N iterations of our PPO, measured.")
    parser.add_argument("--model", type=Path, required=True, help="folder of a causal language model")
    parser.add_argument("--prompts", type=Path, required=True, help='JSON Lines of {"ids": [...]}')
    parser.add_argument("--iterations", type=int, default=3)
    parser.add_argument("--batch", type=int, default=64, help="prompts an iteration")
    parser.add_argument("--new-tokens", type=int, default=48, help="longest reply")
    parser.add_argument("--no-stop", action="store_true", help="EOS ends no reply: all have --new-tokens")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--minibatches", type=int, default=4, help="optimizer steps an epoch")
    weights = parser.add_mutually_exclusive_group()
    weights.add_argument("--lora", action="store_true", help="LoRA of rank 16 on all linear layers (the default)")
    weights.add_argument("--full", action="store_true", help="train all the policy's weights")
    parser.add_argument("--critic", choices=["head", "adapter"], default="head", help="adapter: only with LoRA")
    parser.add_argument("--microbatch-tokens", type=int, default=384, help="padded tokens (default: the fastest, tiny)")
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--kl-coef", type=float, default=0.05)
    parser.add_argument("--lr", type=float, default=3e-4)
    parser.add_argument("--value-lr", type=float, help="learning rate of the critic (default: the package's own)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--details", action="store_true", help="all metrics of the package too")
    return parser.parse_args()


class TokenizedPrompts(PPOTrainer):
    """A trainer whose prompts are token ids already, as peer.py gets them, in ``metadata["ids"]``."""

    def sample(self, prompts: list[Prompt], uniforms: torch.Tensor | None) -> Rollout:
        c, pad = self.config, self.tokenizer.pad_token_id
        sampling = Sampling(c.response_length, tuple(self.stop_token_ids), pad, c.temperature, c.generation_backend)
        ids = [p.metadata["ids"] for p in prompts]
        batch = sample_replies(self.policy, self.tokenizer, prompts, ids, sampling, uniforms)
        run_networks(self.policy, batch, c.temperature, c.microbatch_tokens, pad)
        return batch


class Reward:
    """The shared score as a reward function that records the lengths of the replies."""

    def __init__(self) -> None:
        self.lengths: list[list[int]] = []

    def __call__(self, completion_ids: list[list[int]], **_columns: object) -> list[float]:
        self.lengths.append([len(ids) for ids in completion_ids])
        return [score(ids) for ids in completion_ids]


def make_config() -> PPOConfig:
    """The options that peer.py sets for TRL; the others keep the package's defaults."""
    value_options = {} if args.value_lr is None else {"value_learning_rate": args.value_lr}
    return PPOConfig(
        total_episodes=args.iterations * args.batch,
        batch_size=args.batch,
        response_length=args.new_tokens,
        temperature=args.temperature,
        missing_eos_penalty=0.0,
        learning_rate=args.lr,
        lr_scheduler_type="constant",
        num_ppo_epochs=args.epochs,
        num_mini_batches=args.minibatches,
        microbatch_tokens=args.microbatch_tokens,
        critic=args.critic,
        kl_coef=args.kl_coef,
        whiten_rewards=False,
        cliprange=0.2,
        cliprange_value=0.2,
        vf_coef=0.1,
        gamma=1.0,
        lam=0.95,
        max_grad_norm=0.0,  # TRL's PPO clips no gradients
        **value_options,
    )


def make_trainer(reward: Reward) -> TokenizedPrompts:
    """Model, adapter, tokenizer and reward of the arguments."""
    torch.manual_seed(args.seed)  # of the adapter
    tokenizer = load_tokenizer(str(args.model))
    kind = "none" if args.full else "lora"
    model = lora.prepare_for_training(loading.load_model(str(args.model)), kind, 16, 32, 0.0, "all-linear")
    stop_token_ids = [] if args.no_stop else [tokenizer.eos_token_id]
    rewards = {"score": RewardComponent(1.0, reward)}
    policy, config = Policy(model, args.critic), make_config()
    return TokenizedPrompts(policy, tokenizer, stop_token_ids, rewards, config, args.seed, ProcessGroup())


def peak_mb() -> float:
    """The peak memory of the process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def rss_mb() -> float:
    """The memory of the process now."""
    return psutil.Process().memory_info().rss / 2**20


def measure(folder: Path) -> dict:
    """Train, and return the record that is printed. ``folder`` is temporary."""
    torch.set_num_threads(args.threads)
    start = rss_mb()
    reward = Reward()
    trainer = make_trainer(reward)
    lines = args.prompts.read_text(encoding="utf-8").splitlines()
    # The text of a prompt would only be shown in tables of samples.
    prompts = [Prompt([{"role": "user", "content": ""}], metadata=json.loads(line)) for line in lines]
    optimizer, state = make_optimizer(trainer.policy, trainer.config), TrainerState(kl_coef=args.kl_coef)
    before, peak_before = rss_mb(), peak_mb()
    clock, wall, cpu, logs = Clock(), [], [], []
    for _ in range(args.iterations):
        clock.start()
        metrics, _, _ = training_step(trainer, prompts, optimizer, state, folder)
        clock.stop()
        wall.append(clock.wall_s)
        cpu.append(clock.cpu_s)
        logs.append(metrics)
    peak = peak_mb()
    result = {
        "side": "ours",
        "weights": "full" if args.full else "lora",
        "critic": args.critic,
        "wall_s": [round(t, 3) for t in wall],
        "cpu_s": [round(t, 3) for t in cpu],
        "rss_start_mb": round(start),
        "rss_before_mb": round(before),
        "peak_before_mb": round(peak_before),
        "peak_rss_mb": round(peak),
        "score": [round(log["objective/scores"], 4) for log in logs],
        "kl": [round(log["objective/kl"], 4) for log in logs],
        "length": [round(sum(lengths) / len(lengths), 2) for lengths in reward.lengths],
        "longest": [max(lengths) for lengths in reward.lengths],
        "eos_a_reply": [round(log["objective/eos_rate"], 3) for log in logs],
        "optimizer_steps": [int(log["policy/optimizer_steps"]) for log in logs],
    }
    return result | ({"details": logs} if args.details else {})


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        result = measure(Path(folder))
    print(json.dumps(result))


if __name__ == "__main__":
    args = arguments()
    main()
