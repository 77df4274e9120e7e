"""A reward model whose base stays frozen: hidden states half way up → a small network → score.

The base is read once for all epochs, since what it says of a reply never changes; the network is trained on that in
seconds. Its input are the means of the hidden states of the reply's tokens and of the prompt's, each feature
standardized. Alain and Bengio 2017 (arXiv 1610.01644) call such a network a probe; that the middle layers of a language
model tell more about a text than the last is in Liu et al. 2019 (arXiv 1903.08855), section 4.
"""

import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from manners.data.batching import Batch
from manners.errors import MannersError
from manners.models import loading
from manners.runtime.device import BF16_WIDTH, bf16_is_faster

HEAD_FILE, CONFIG_FILE = "score_head.safetensors", "score_head_config.json"  # in the model directory
DEPTH = 1 / 2  # of the layers are read: of SmolLM2's 30, 15 tell as much as 20 (experiments/strictbot), 12 less
WIDTH = 256  # of the network's hidden layer
DROPOUT = 0.3


class ScoreHead(torch.nn.Module):
    """Features (N, D) → standardized scores (N,), in 32 bits whatever autocast says."""

    def __init__(self, num_features: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(num_features))
        self.register_buffer("scale", torch.ones(num_features))
        self.layers = torch.nn.Sequential(
            torch.nn.Dropout(DROPOUT),
            torch.nn.Linear(num_features, WIDTH),
            torch.nn.GELU(),
            torch.nn.Dropout(DROPOUT),
            torch.nn.Linear(WIDTH, 1),
        )

    def standardize_by(self, features: torch.Tensor) -> None:
        """Take mean and deviation of each feature from those of the training examples, (N, D)."""
        self.mean = features.mean(0)
        self.scale = features.std(0).clamp(min=1e-5)

    @property
    def device(self) -> torch.device:
        return self.mean.device

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        with torch.autocast(features.device.type, enabled=False):
            return self.layers((features.float() - self.mean) / self.scale)[:, 0]


class FrozenRewardModel(torch.nn.Module):
    """The lower layers of a decoder, which are not trained, and a ``ScoreHead`` on what they say."""

    def __init__(self, trunk: Any, base: str, revision: str | None, num_layers: int | None = None):
        super().__init__()
        self.base, self.revision, self.config = base, revision, trunk.config
        self.num_layers = keep_lower_layers(trunk, num_layers)
        self.base_model = trunk.eval().requires_grad_(False)
        self.head = ScoreHead(2 * trunk.config.get_text_config().hidden_size)

    @property
    def device(self) -> torch.device:
        return self.head.device

    @torch.no_grad()
    def features(self, batch: Batch) -> torch.Tensor:
        """Mean hidden states of each reply and of its prompt, (N, 2H), of a batch by ``collate_groups``."""
        hidden: list[torch.Tensor] = []
        on_cpu = batch["input_ids"].device.type == "cpu"
        in_bf16 = on_cpu and self.config.get_text_config().hidden_size >= BF16_WIDTH and bf16_is_faster()
        hook = layers_of(self.base_model)[-1].register_forward_hook(
            lambda _module, _inputs, output: hidden.append(output[0] if isinstance(output, tuple) else output)
        )
        shared = {}  # a row of one reply is padded on the right, and no token sees the padding
        if "attention_mask_4d" in batch:
            shared = {"attention_mask": batch["attention_mask_4d"], "position_ids": batch["position_ids"]}
        try:
            with torch.autocast("cpu", torch.bfloat16, enabled=in_bf16):
                self.base_model(batch["input_ids"], use_cache=False, **shared)
        finally:
            hook.remove()
        return span_means(hidden[0], batch["reply_spans"])

    def save_pretrained(self, folder: Path, **_kwargs: Any) -> None:
        """Write the head, and what it stands on. The base is not copied, as for an adapter."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: value.contiguous() for name, value in self.head.state_dict().items()}, folder / HEAD_FILE)
        made_by = {"base_model_name_or_path": self.base, "revision": self.revision, "num_layers": self.num_layers}
        (folder / CONFIG_FILE).write_text(json.dumps(made_by, indent=1))


def layers_of(trunk: Any) -> torch.nn.ModuleList:
    """The layers of a decoder, in order. Raises MannersError where they are not one list."""
    count = trunk.config.get_text_config().num_hidden_layers
    lists = [m for m in trunk.children() if isinstance(m, torch.nn.ModuleList)]
    if len(lists) != 1 or len(lists[0]) > count:
        raise MannersError(f"adapter=frozen: {type(trunk).__name__} has no list of layers. Use adapter=lora.")
    return lists[0]


def keep_lower_layers(trunk: Any, num_layers: int | None) -> int:
    """Drop the layers above the first ``num_layers`` (by default ``DEPTH`` of all), in place; return their number."""
    layers = layers_of(trunk)
    keep = num_layers or max(1, round(DEPTH * trunk.config.get_text_config().num_hidden_layers))
    del layers[keep:]
    return len(layers)


def span_means(hidden: torch.Tensor, spans: torch.Tensor) -> torch.Tensor:
    """Means over the tokens of N replies and of their prompts: (B, T, H), (N, 4) → (N, 2H), on the CPU in 32 bits.

    A span is a row, the tokens of its prompt, and the first token of a reply and the one behind its last. Without a
    prompt the mean is 0.
    """
    sums = F.pad(hidden.double().cumsum(1), (0, 0, 1, 0))  # (B, T+1, H)
    row, prompt, start, end = spans.to(hidden.device).unbind(1)
    reply = (sums[row, end] - sums[row, start]) / (end - start).clamp(min=1)[:, None]
    return torch.cat([reply, sums[row, prompt] / prompt.clamp(min=1)[:, None]], 1).float().cpu()


def load_frozen_base(
    name: str, revision: str | None, attn_implementation: str | None, num_layers: int | None = None
) -> FrozenRewardModel:
    """The base ``name`` on the CPU, without its upper layers, and a new head. Raises MannersError without layers."""
    model = loading.load_model(name, revision, attn_implementation)
    return FrozenRewardModel(model.base_model, name, revision, num_layers)


def load_frozen_reward_model(folder: Path, attn_implementation: str | None) -> FrozenRewardModel:
    """A trained one from its run's folder, for inference."""
    made_by = json.loads((folder / CONFIG_FILE).read_text())
    base, revision, num_layers = (made_by[key] for key in ("base_model_name_or_path", "revision", "num_layers"))
    model = load_frozen_base(base, revision, attn_implementation, num_layers)
    model.head.load_state_dict(load_file(folder / HEAD_FILE))
    return model.eval().requires_grad_(False)
