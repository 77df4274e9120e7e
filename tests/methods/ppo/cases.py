"""What the tests of PPO share: configs, prompts, a small policy, and a reward that can be checked by hand."""

import copy
from typing import Any

import torch

from manners.config.schema import OnlineRLConfig, PPOConfig, RLOOConfig
from manners.data.types import Prompt
from manners.methods.ppo.rollout import Rollout, encode_prompts, run_networks, sample_replies
from manners.models.generation import Sampling
from manners.models.lora import prepare_for_training
from manners.models.policy import Policy
from manners.rewards.combine import RewardComponent

QUESTIONS = ("Hello!", "What does the lion eat?", "Is a cat an animal, or is it a fruit?", "Hi", "Who are you?", "No.")
SMALL = {
    "total_episodes": 64,
    "batch_size": 8,
    "response_length": 8,
    "num_mini_batches": 2,
    "temperature": 0.8,
    "missing_eos_penalty": 0.0,
}


def make_prompts(count: int, first: int = 0) -> list[Prompt]:
    """Different prompts, numbered from ``first`` in their metadata."""
    texts = [f"{QUESTIONS[i % len(QUESTIONS)]} {i}" for i in range(first, first + count)]
    return [Prompt([{"role": "user", "content": text}], metadata={"number": first + i}) for i, text in enumerate(texts)]


def ppo_config(**changes: Any) -> PPOConfig:
    return PPOConfig(**(SMALL | changes))


def rloo_config(**changes: Any) -> RLOOConfig:
    return RLOOConfig(**(SMALL | changes))


def make_policy(model: Any, adapter: str = "lora", critic: str = "head") -> Policy:
    """A policy on a copy of ``model``; ``adapter`` is "lora", or "none" for full fine-tuning."""
    torch.manual_seed(1)
    return Policy(prepare_for_training(copy.deepcopy(model), adapter, 4, 8, 0.0, "all-linear"), critic)


def frequent_stop_ids(tokenizer: Any) -> list[int]:
    """One token in eight stops a reply, so that the replies of a random model end at all lengths."""
    return list(range(0, len(tokenizer), 8))


def sample_rollout(policy: Policy, tokenizer: Any, count: int = 8, temperature: float = 0.8) -> Rollout:
    """``count`` replies of at most 8 tokens."""
    prompts = make_prompts(count)
    uniforms = torch.rand(count, 8, generator=torch.Generator().manual_seed(0))
    sampling = Sampling(8, tuple(frequent_stop_ids(tokenizer)), tokenizer.pad_token_id, temperature)
    ids = encode_prompts(prompts, tokenizer, 64)
    batch = sample_replies(policy, tokenizer, prompts, ids, sampling, uniforms)
    run_networks(policy, batch, temperature or 1.0, 256, tokenizer.pad_token_id)
    return batch


def rewarded_tokens(model: Any) -> torch.Tensor:
    """Which tokens the reward below counts: about half of them, by a feature that the model can see. (V,) bool."""
    return model.get_input_embeddings().weight.detach()[:, 0] > 0


def token_share_reward(rewarded: torch.Tensor) -> dict[str, RewardComponent]:
    """The share of a reply's tokens that are ``rewarded`` (V,)."""

    def share(prompts: Any, completions: Any, completion_ids: Any, **_: Any) -> list[float]:
        return [float(rewarded[torch.tensor(ids)].float().mean()) for ids in completion_ids]

    return {"share": RewardComponent(1.0, share)}


def is_rloo(config: OnlineRLConfig) -> bool:
    return isinstance(config, RLOOConfig)
