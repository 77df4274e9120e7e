"""Our side of the RLOO line: the package's own iteration, on the task that it shares with peer.py."""

import tempfile
from pathlib import Path

import game
import torch
from task import score

from manners.config.schema import RLOOConfig
from manners.data.types import Prompt
from manners.methods.distributed import ProcessGroup
from manners.methods.ppo.checkpoint import TrainerState
from manners.methods.ppo.rollout import Rollout, rollout
from manners.methods.ppo.trainer import PPOTrainer, make_optimizer, training_step
from manners.models import loading, lora
from manners.models.generation import Sampling
from manners.models.policy import Policy
from manners.rewards.combine import RewardComponent


class GivenTokens(PPOTrainer):
    """The game with prompts that are token ids already, in ``extra["ids"]``."""

    def roll(self, prompts: list[Prompt], uniforms: torch.Tensor | None) -> Rollout:
        s, pad = self.settings, self.tokenizer.pad_token_id
        sampling = Sampling(s.response_length, tuple(self.stops), pad, s.temperature)
        ids = [p.metadata["ids"] for p in prompts]
        return rollout(self.actor, self.tokenizer, prompts, ids, sampling, uniforms, s.microbatch_tokens)


def settings(iterations: int, epochs: int) -> RLOOConfig:
    """The package's options as the task asks; what is not named keeps the package's default."""
    return RLOOConfig(
        total_episodes=iterations * game.BATCH,
        batch_size=game.BATCH,
        num_generations=game.SIBLINGS,
        response_length=game.NEW_TOKENS,
        missing_eos_penalty=0.0,
        learning_rate=game.RATE,
        lr_scheduler_type="constant",
        num_ppo_epochs=epochs,
        num_mini_batches=game.MINIBATCHES,
        cliprange=game.RANGE,
        kl_coef=game.KL,
        kl_estimator="k1",
        max_grad_norm=game.CLIP,
    )


def main() -> None:
    args = game.arguments("Iterations of our RLOO, measured.")
    clock, lengths = game.Clock(), []

    def reward(completion_ids: list[list[int]], **_columns: object) -> list[float]:
        lengths.append([len(ids) for ids in completion_ids])
        return [score(ids) for ids in completion_ids]

    folder = str(game.model_folder(args.vocabulary))
    tokenizer = loading.load_tokenizer(folder)
    model = lora.prepare_for_training(
        loading.load_model(folder), "lora" if args.lora else "none", 16, 32, 0.0, "all-linear"
    )
    parts = {"score": RewardComponent(1.0, reward)}
    rules = settings(args.iterations + 1, args.epochs)
    played = GivenTokens(
        Policy(model, "none"), tokenizer, [tokenizer.eos_token_id], parts, rules, args.seed, ProcessGroup()
    )
    # The words of a prompt matter to nobody here: they only fill the tables of replies.
    found = game.prompts(tokenizer, args.seed)
    asked = [Prompt([{"role": "user", "content": ""}], metadata={"ids": ids}) for ids in found]
    optimizer, state = make_optimizer(played.actor, rules), TrainerState(kl_coef=rules.kl_coef)
    logs = []
    clock.start()
    with tempfile.TemporaryDirectory() as scratch:
        for _ in range(args.iterations + 1):
            logs.append(training_step(played, asked, optimizer, state, Path(scratch))[0])
            clock.lap()
    steps = int(logs[-1]["policy/optimizer_steps"])
    game.say(clock, [log["objective/scores"] for log in logs], lengths, [log["objective/kl"] for log in logs], steps)


if __name__ == "__main__":
    main()
