"""Our side of the RLOO benchmark: the package's own iteration, on the task that it shares with peer.py."""

import argparse
import tempfile
from pathlib import Path

import rloo_task
import torch
from task import score

from manners.config.schema import RLOOConfig
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


class TokenizedPrompts(PPOTrainer):
    """A trainer whose prompts are token ids already, in ``metadata["ids"]``."""

    def sample(self, prompts: list[Prompt], uniforms: torch.Tensor | None) -> Rollout:
        c, pad = self.config, self.tokenizer.pad_token_id
        sampling = Sampling(c.response_length, tuple(self.stop_token_ids), pad, c.temperature)
        ids = [p.metadata["ids"] for p in prompts]
        batch = sample_replies(self.policy, self.tokenizer, prompts, ids, sampling, uniforms)
        run_networks(self.policy, batch, c.temperature, c.microbatch_tokens, pad)
        return batch


def make_config(args: argparse.Namespace) -> RLOOConfig:
    """The options of the task; the others keep the package's defaults."""
    return RLOOConfig(
        total_episodes=(args.iterations + 1) * args.batch,
        batch_size=args.batch,
        num_generations=rloo_task.NUM_GENERATIONS,
        response_length=args.new_tokens,
        missing_eos_penalty=0.0,
        learning_rate=rloo_task.LEARNING_RATE,
        lr_scheduler_type="constant",
        num_ppo_epochs=args.epochs,
        num_mini_batches=args.minibatches,
        cliprange=rloo_task.CLIPRANGE,
        kl_coef=rloo_task.KL_COEF,
        max_grad_norm=rloo_task.MAX_GRAD_NORM,
    )


def main() -> None:
    args = rloo_task.arguments("Iterations of our RLOO, measured.")
    clock, lengths = rloo_task.Clock(), []

    def reward(completion_ids: list[list[int]], **_columns: object) -> list[float]:
        lengths.append([len(ids) for ids in completion_ids])
        return [score(ids) for ids in completion_ids]

    folder = str(args.model or rloo_task.model_folder(args.vocabulary))
    tokenizer = load_tokenizer(folder)
    model = lora.prepare_for_training(
        loading.load_model(folder), "lora" if args.lora else "none", 16, 32, 0.0, "all-linear"
    )
    rewards = {"score": RewardComponent(1.0, reward)}
    config = make_config(args)
    policy, stop_token_ids = Policy(model, "none", args.bf16), [tokenizer.eos_token_id]
    trainer = TokenizedPrompts(policy, tokenizer, stop_token_ids, rewards, config, args.seed, ProcessGroup())
    # The text of a prompt would only be shown in tables of samples.
    all_ids = rloo_task.prompts(tokenizer, args.seed)
    prompts = [Prompt([{"role": "user", "content": ""}], metadata={"ids": ids}) for ids in all_ids]
    optimizer, state = make_optimizer(policy, config), TrainerState(kl_coef=config.kl_coef)
    logs = []
    clock.start()
    with tempfile.TemporaryDirectory() as scratch:
        for _ in range(args.iterations + 1):
            logs.append(training_step(trainer, prompts, optimizer, state, Path(scratch))[0])
            clock.lap()
    steps = int(logs[-1]["policy/optimizer_steps"])
    rloo_task.print_result(
        clock, [log["objective/scores"] for log in logs], lengths, [log["objective/kl"] for log in logs], steps
    )


if __name__ == "__main__":
    main()
