"""What PPO trains: policy, critic and reference, one network wherever possible.

The policy is the language model; the critic a scalar head on the same trunk (or on an adapter of its own there); the
reference is the same network with its adapter disabled, or a frozen copy of the start after full fine-tuning.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel

from manners.models import lora
from manners.models.logprobs import TokenLogprobs, logits_at
from manners.models.shared_prefixes import (
    Reading,
    model_inputs,
    plain_reading,
    read_once,
    supports_shared_prefixes,
)

CRITIC = "critic"


@dataclass
class PolicyOutput:
    """For N response tokens, (N,) each: log-probability at the sampling temperature, entropy in nats, value."""

    logprobs: torch.Tensor
    entropy: torch.Tensor
    values: torch.Tensor


class Policy(torch.nn.Module):
    """``model`` as a policy. ``critic`` is "head", "adapter" (needs a LoRA policy) or "none" (no values: RLOO).

    With ``bf16`` forward passes run under autocast, in sampling as in training; log-probabilities stay in 32 bits.
    """

    def __init__(self, model: Any, critic: str = "head", bf16: bool = False):
        super().__init__()
        self.bf16 = bf16
        if critic == "adapter":
            add_critic_adapter(model)
        disable_dropout(model)
        adapted = isinstance(model, PeftModel)
        self.reference = None if adapted else copy.deepcopy(model).requires_grad_(False).eval()
        self.model, self.critic, self.shares_prefixes = model, critic, supports_shared_prefixes(model)
        self.value_head = torch.nn.Linear(model.config.get_text_config().hidden_size, 1)
        torch.nn.init.zeros_(self.value_head.weight)  # values begin at 0, the mean of a standardized reward
        torch.nn.init.zeros_(self.value_head.bias)
        self.value_head.to(model.device)

    def forward(self, ids: torch.Tensor, response_mask: torch.Tensor, temperature: float) -> PolicyOutput:
        """Log-probabilities, entropies and values of the response tokens: (B, T), (B, T-1) → (N,) each.

        ``response_mask[:, t]`` is true where position t predicts a response token, t + 1. Rows are right-padded. What
        several rows begin with is read once, where the model allows it.
        """
        reading, tokens = self.reading(ids, response_mask), ids[:, 1:][response_mask]
        logprobs, entropy, hidden = self.token_logprobs(self.model, reading, tokens, temperature)
        if self.critic == "none":
            return PolicyOutput(logprobs, entropy, torch.zeros_like(logprobs))
        if self.critic == "adapter":
            with self.active_adapter(CRITIC):
                hidden = self.hidden_states(self.model, reading)
        return PolicyOutput(logprobs, entropy, self.value_head(hidden.float())[:, 0])

    @property
    def is_reference(self) -> bool:
        """Whether an adapter adds nothing to the reference, as before its first step: all its B are 0."""
        trained = ((n, p) for n, p in self.model.named_parameters() if p.requires_grad and f".{CRITIC}." not in n)
        return self.reference is None and all("lora_A" in n or ("lora_B" in n and not p.any()) for n, p in trained)

    @torch.no_grad()
    def reference_logprobs(self, ids: torch.Tensor, response_mask: torch.Tensor, temperature: float) -> torch.Tensor:
        """Log-probabilities (N,) of the same tokens under the reference."""
        reading, tokens = self.reading(ids, response_mask), ids[:, 1:][response_mask]
        if self.reference is not None:
            return self.token_logprobs(self.reference, reading, tokens, temperature, with_entropy=False)[0]
        with self.model.disable_adapter():
            logprobs = self.token_logprobs(self.model, reading, tokens, temperature, with_entropy=False)[0]
        unfreeze_adapters(self.model)
        return logprobs

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.model.device.type, torch.bfloat16, enabled=self.bf16)

    @contextmanager
    def frozen_weights_in_bf16(self) -> Iterator[None]:
        """Hold what does not train in bf16 inside the context, where forward passes are in bf16 on a CPU."""
        with lora.frozen_weights_in_bf16(self.model, self.bf16):
            yield

    def reading(self, ids: torch.Tensor, response_mask: torch.Tensor) -> Reading:
        """How the rows (B, T) are read. Right padding needs no attention mask."""
        asked = F.pad(response_mask, (0, 1))
        return read_once(self.model, ids, asked) if self.shares_prefixes else plain_reading(ids, asked)

    def hidden_states(self, model: Any, reading: Reading) -> torch.Tensor:
        """Last hidden states (N, H) at the positions that are asked for."""
        with self.autocast():
            out = model.get_decoder()(**model_inputs(model, reading))
        return out.last_hidden_state.flatten(0, 1)[reading.positions]

    def token_logprobs(
        self,
        model: Any,
        reading: Reading,
        tokens: torch.Tensor,
        temperature: float,
        with_entropy: bool = True,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Log-probability and entropy of the tokens (N,), and the hidden states (N, H) that predict them."""
        with self.autocast():
            logits, hidden = logits_at(model, reading)
        logprobs, entropy = TokenLogprobs.apply(logits, tokens, temperature, with_entropy)
        return logprobs, entropy, hidden

    @contextmanager
    def active_adapter(self, adapter: str) -> Iterator[None]:
        """Use ``adapter`` alone. Gradients still flow to everything that trains.

        Gradient checkpointing is off inside: the backward pass would recompute with another adapter active.
        """
        checkpointed = [m for m in self.model.modules() if vars(m).get("gradient_checkpointing")]
        for module in checkpointed:
            module.gradient_checkpointing = False
        active = self.model.active_adapter
        self.model.set_adapter(adapter)
        unfreeze_adapters(self.model)
        try:
            yield
        finally:
            self.model.set_adapter(active)
            unfreeze_adapters(self.model)
            for module in checkpointed:
                module.gradient_checkpointing = True


def disable_dropout(model: torch.nn.Module) -> None:
    """Set every dropout to 0: random masks would make the ratio of the first epoch other than 1."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name, value in list(vars(module).items()):
            if "dropout" in name and isinstance(value, float):  # what Llama, Qwen2 and GPT-NeoX hand to attention
                setattr(module, name, 0.0)


def has_dropout(model: torch.nn.Module) -> bool:
    """Return whether training draws random masks, which ``disable_dropout`` would end."""
    layers = any(isinstance(m, torch.nn.Dropout) and m.p for m in model.modules())
    attributes = ((name, value) for m in model.modules() for name, value in vars(m).items())
    return layers or any("drop" in name and isinstance(value, float) and value for name, value in attributes)


def unfreeze_adapters(model: PeftModel) -> None:
    """Make every adapter trainable again: peft freezes inactive ones."""
    for name, p in model.named_parameters():
        if "lora_" in name:
            p.requires_grad_(True)


def add_critic_adapter(model: PeftModel) -> None:
    """Add a second adapter for the critic, configured as the policy's."""
    policy = model.peft_config["default"]
    assert isinstance(policy, LoraConfig)
    model.add_adapter(CRITIC, copy.deepcopy(policy))
    unfreeze_adapters(model)
