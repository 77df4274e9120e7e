"""What the tests of PPO have in common: settings, prompts, a small policy, and rewards that can be checked by hand."""

import copy
from typing import Any

import torch

from manners.config.schema import PPOConfig, RLOOConfig
from manners.data.types import Prompt
from manners.methods.ppo.rollout import encode_prompts, rollout
from manners.models.generation import Sampling
from manners.models.lora import prepare_for_training
from manners.models.policy import Policy
from manners.rewards.combine import RewardComponent

QUESTIONS = ("Hello!", "What does the lion eat?", "Is a cat an animal, or is it a fruit?", "Hi", "Who are you?", "No.")


def prompts(count: int, first: int = 0) -> list[Prompt]:
    """Each different from all others."""
    said = [f"{QUESTIONS[i % len(QUESTIONS)]} {i}" for i in range(first, first + count)]
    return [Prompt([{"role": "user", "content": text}], metadata={"number": first + i}) for i, text in enumerate(said)]


def ppo(**changes: Any) -> PPOConfig:
    small = {"total_episodes": 64, "batch_size": 8, "response_length": 8, "num_mini_batches": 2, "temperature": 0.8}
    return PPOConfig(**(small | {"missing_eos_penalty": 0.0} | changes))


def rloo(**changes: Any) -> RLOOConfig:
    small = {"total_episodes": 64, "batch_size": 8, "response_length": 8, "num_mini_batches": 2, "temperature": 0.8}
    return RLOOConfig(**(small | {"missing_eos_penalty": 0.0} | changes))


def policy(model: Any, kind: str = "lora", critic: str = "head") -> Policy:
    """The model is left as it is."""
    torch.manual_seed(1)
    return Policy(prepare_for_training(copy.deepcopy(model), kind, 4, 8, 0.0, "all-linear"), critic)


def early_stops(tokenizer: Any) -> list[int]:
    """One token in eight, so that the replies of a random model end at all lengths."""
    return list(range(0, len(tokenizer), 8))


def rolled_out(actor: Policy, tokenizer: Any, stops: Any, count: int = 8, steps: int = 8, temperature: float = 0.8):
    asked = prompts(count)
    draws = torch.rand(count, steps, generator=torch.Generator().manual_seed(0))
    sampling = Sampling(steps, tuple(stops), tokenizer.pad_token_id, temperature)
    return rollout(actor, tokenizer, asked, encode_prompts(asked, tokenizer, 64), sampling, draws, 256)


def liked(model: Any) -> torch.Tensor:
    """Which tokens the reward below likes: about half of them, by a feature that the model knows."""
    return model.get_input_embeddings().weight.detach()[:, 0] > 0


def share_of(tokens: torch.Tensor) -> dict[str, RewardComponent]:
    """Pays the share of a reply's tokens that are liked."""

    def share(prompts: Any, completions: Any, completion_ids: Any, **_: Any) -> list[float]:
        return [float(tokens[torch.tensor(ids)].float().mean()) for ids in completion_ids]

    return {"share": RewardComponent(1.0, share)}
