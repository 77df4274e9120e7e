"""The policy that PPO trains, its critic and its reference: one network where it can be.

The policy is the language model; the critic a scalar head on the same trunk (or on an adapter of its own there); the
reference the same network with its adapter off, or, where every weight is trained, a frozen copy of the start.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, PeftModel

from manners.errors import MannersError

CRITIC = "critic"


@dataclass
class PolicyOutput:
    """Of N chosen tokens: log-probability under the tempered policy, entropy of its distribution, value. Each (N,)."""

    logprobs: torch.Tensor
    entropy: torch.Tensor
    values: torch.Tensor


class Policy(torch.nn.Module):
    """``model`` as a policy. ``critic`` is "head", "adapter" (needs a LoRA policy) or "none" (no values: RLOO).

    With ``bf16`` its passes are cast, sampling and reading alike; log-probabilities are still taken in 32 bits.
    """

    def __init__(self, model: Any, critic: str = "head", bf16: bool = False):
        super().__init__()
        reject_scaled_logits(model)
        self.bf16 = bf16
        if critic == "adapter":
            add_critic_adapter(model)
        disable_dropout(model)
        adapted = isinstance(model, PeftModel)
        self.reference = None if adapted else copy.deepcopy(model).requires_grad_(False).eval()
        self.model, self.critic = model, critic
        self.value_head = torch.nn.Linear(model.config.get_text_config().hidden_size, 1)
        torch.nn.init.zeros_(self.value_head.weight)  # values begin at 0, the mean of a standardised reward
        torch.nn.init.zeros_(self.value_head.bias)
        self.value_head.to(model.device)

    def judge(
        self, ids: torch.Tensor, chosen: torch.Tensor, temperature: float, entropy_grad: bool = False
    ) -> PolicyOutput:
        """The tokens where ``chosen`` (B, T-1) is true: position t speaks of token t + 1, as in ``token_nll``."""
        hidden = self.hidden(self.model, ids, chosen)  # (N, H)
        logprobs, entropy = self.token_logprobs(self.model, hidden, ids[:, 1:][chosen], temperature, entropy_grad)
        if self.critic == "none":
            return PolicyOutput(logprobs, entropy, torch.zeros_like(logprobs))
        if self.critic == "adapter":
            with self.only(CRITIC):
                hidden = self.hidden(self.model, ids, chosen)
        return PolicyOutput(logprobs, entropy, self.value_head(hidden.float())[:, 0])

    @torch.no_grad()
    def reference_logprobs(self, ids: torch.Tensor, chosen: torch.Tensor, temperature: float) -> torch.Tensor:
        """The same tokens' log-probabilities (N,) under the model that training started from."""
        if self.reference is not None:
            hidden = self.hidden(self.reference, ids, chosen)
            return self.token_logprobs(self.reference, hidden, ids[:, 1:][chosen], temperature)[0]
        with self.model.disable_adapter():
            hidden = self.hidden(self.model, ids, chosen)
            logprobs, _ = self.token_logprobs(self.model, hidden, ids[:, 1:][chosen], temperature)
        unfreeze_adapters(self.model)
        return logprobs

    def cast(self) -> torch.autocast:
        return torch.autocast(self.model.device.type, torch.bfloat16, enabled=self.bf16)

    def hidden(self, model: Any, ids: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        """The trunk's last states at the chosen positions, (N, H). Rows are right-padded: no mask is needed."""
        with self.cast():
            out = model.get_decoder()(ids, use_cache=False)
        return out.last_hidden_state[:, :-1][chosen]

    def token_logprobs(
        self, model: Any, hidden: torch.Tensor, targets: torch.Tensor, temperature: float, entropy_grad: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        with self.cast():
            logits = model.get_output_embeddings()(hidden)
        logits = logits.float() / temperature  # (N, V)
        logprobs = torch.log_softmax(logits, -1)
        with torch.set_grad_enabled(entropy_grad and torch.is_grad_enabled()):  # its graph costs N × V floats
            entropy = -(logprobs.exp() * logprobs).sum(-1)
        return logprobs.gather(1, targets[:, None])[:, 0], entropy

    @contextmanager
    def only(self, adapter: str) -> Iterator[None]:
        """Within, ``adapter`` alone acts. Gradients still flow to all that training changes.

        Activations are kept: to compute them anew in the backward pass would be after ``adapter`` has been set aside.
        """
        sparing = [m for m in self.model.modules() if vars(m).get("gradient_checkpointing")]
        for module in sparing:
            module.gradient_checkpointing = False
        active = self.model.active_adapter
        self.model.set_adapter(adapter)
        unfreeze_adapters(self.model)
        try:
            yield
        finally:
            self.model.set_adapter(active)
            unfreeze_adapters(self.model)
            for module in sparing:
                module.gradient_checkpointing = True


def disable_dropout(model: torch.nn.Module) -> None:
    """Dropout off for good: a random mask would make the ratio of the first epoch other than 1."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name, value in list(vars(module).items()):
            if "dropout" in name and isinstance(value, float):  # what Llama, Qwen2 and GPT-NeoX hand to attention
                setattr(module, name, 0.0)


def unfreeze_adapters(model: PeftModel) -> None:
    """Let every adapter train: peft freezes what it sets aside."""
    for name, p in model.named_parameters():
        if "lora_" in name:
            p.requires_grad_(True)


def reject_scaled_logits(model: Any) -> None:
    """Some families bend the logits after their head: log-probabilities without that are not those sampled from."""
    config = model.config.get_text_config()
    bent = [k for k in ("final_logit_softcapping", "logit_scale", "logits_scaling") if getattr(config, k, None)]
    if bent:
        raise MannersError(
            f"{type(model).__name__} bends its logits ({bent[0]}), which PPO does not do yet: "
            "take a Qwen2, Llama, GPT-2 or GPT-NeoX model."
        )


def add_critic_adapter(model: PeftModel) -> None:
    """A second adapter on the trunk, shaped as the policy's."""
    policy = model.peft_config["default"]
    assert isinstance(policy, LoraConfig)
    model.add_adapter(CRITIC, copy.deepcopy(policy))
    unfreeze_adapters(model)
