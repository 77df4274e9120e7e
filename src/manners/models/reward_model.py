"""Reward models: a transformer with one number at its end, on encoders and decoders alike.

The network is an ordinary ``AutoModelForSequenceClassification`` with one label, so that what is saved loads with
plain transformers (and peft). Scores leave it standardised; ``ScoreNormalizer`` turns them into the dataset's own.
"""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerBase

from manners.errors import MannersError
from manners.models import loading

NORMALIZER_FILE = "units.json"


@dataclass(frozen=True)
class ScoreNormalizer:
    """Mean and spread of the scores trained on: ``score = mean + scale * output``."""

    mean: float = 0.0
    scale: float = 1.0

    @classmethod
    def of(cls, scores: list[float]) -> "ScoreNormalizer":
        if min(scores) == max(scores):  # their spread may come out above 0: 0.1 is no binary number
            raise MannersError("all scores are the same: there is nothing for a reward model to learn.")
        values = torch.tensor(scores, dtype=torch.float64)
        return cls(float(values.mean()), float(values.std()))

    def save(self, folder: Path) -> None:
        (folder / NORMALIZER_FILE).write_text(json.dumps(asdict(self)))

    @classmethod
    def load(cls, folder: Path) -> "ScoreNormalizer":
        return cls(**json.loads((folder / NORMALIZER_FILE).read_text()))


def load_reward_base(
    name: str,
    tokenizer: PreTrainedTokenizerBase,
    revision: str | None = None,
    attn_implementation: str = "sdpa",
    dtype: torch.dtype = torch.float32,
    **quantization: Any,
) -> Any:
    """``name`` with a fresh head of one output, on the CPU; its dropout is off while ``eval`` is on."""
    network = loading.load_model(
        name,
        revision,
        attn_implementation,
        dtype,
        **quantization,
        auto=AutoModelForSequenceClassification,
        num_labels=1,
        problem_type="regression",
        ignore_mismatched_sizes=True,  # a classifier's own head, of so many classes, gives way to ours
    )
    network.config.pad_token_id = tokenizer.pad_token_id  # plain transformers looks for the last token by it
    init_score_head(network)
    return network


def load_reward_model(folder: Path, revision: str | None = None, attn_implementation: str = "sdpa") -> Any:
    """A trained reward model from its run's folder, merged where it is an adapter, ready to score."""
    adapter = folder / "adapter_config.json"
    name = json.loads(adapter.read_text())["base_model_name_or_path"] if adapter.exists() else str(folder)
    network: Any = loading.load_model(
        name, revision if adapter.exists() else None, attn_implementation,
        auto=AutoModelForSequenceClassification, num_labels=1,
    )  # fmt: skip
    if adapter.exists():
        network = PeftModel.from_pretrained(network, str(folder)).merge_and_unload()
    return network.eval().requires_grad_(False)


def init_score_head(network: Any) -> None:
    """Normal with a spread of 1/√(h+1), bias 0: first scores are of order 1 (Huang et al. 2024, detail 8)."""
    layer = score_head(network)
    torch.nn.init.normal_(layer.weight, std=1 / math.sqrt(layer.in_features + 1))
    if layer.bias is not None:
        torch.nn.init.zeros_(layer.bias)


def score_head(network: Any) -> torch.nn.Linear:
    """``score`` on decoders, ``classifier`` on encoders."""
    found = getattr(network, "score", None) or getattr(network, "classifier", None)
    if not isinstance(found, torch.nn.Linear):
        raise MannersError(
            f"{type(network).__name__} has no linear head named 'score' or 'classifier': reward models are built on "
            "BERT-like encoders and on decoders such as Qwen2, Llama, GPT-2 and GPT-NeoX."
        )
    return found


def normalized_scores(network: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Standardised scores (N,) of a batch: of ``input_ids`` and ``mask`` (N, T), wherever the padding stands, or of
    the replies that share a prompt's row (``collate_families``).

    The padding is moved to the right. A decoder's score is read at its last real token, which by then has seen
    everything, and no padding; so it needs neither mask nor position ids, and a padding token that is the stop token
    as well does no harm.
    """
    wrapped = network.get_base_model() if hasattr(network, "get_base_model") else network
    if "ends" in batch:
        body = wrapped.base_model(
            batch["input_ids"],
            attention_mask=batch["allowed"],
            position_ids=batch["position_ids"],
            use_cache=False,
        )
        rows, last = batch["ends"].unbind(1)
        return wrapped.score(body.last_hidden_state[rows, last])[:, 0].float()
    order = batch["mask"].argsort(dim=1, descending=True, stable=True)
    ids, mask = batch["input_ids"].gather(1, order), batch["mask"].gather(1, order)
    if is_encoder(network):
        extra = {}
        if "segments" in batch and has_token_types(network):
            extra = {"token_type_ids": batch["segments"].gather(1, order)}
        return network(input_ids=ids, attention_mask=mask, **extra).logits[:, 0].float()
    hidden = wrapped.base_model(ids, use_cache=False).last_hidden_state  # (N, T, H)
    last = hidden[torch.arange(len(ids), device=ids.device), mask.sum(1) - 1]  # (N, H)
    return wrapped.score(last)[:, 0].float()


def supports_shared_prompts(network: Any) -> bool:
    """Whether several replies to a prompt may stand in one row: see ``manners.data.prompt_groups``."""
    return not is_encoder(network) and network.config._attn_implementation == "sdpa"


def is_encoder(network: Any) -> bool:
    wrapped = network.get_base_model() if hasattr(network, "get_base_model") else network
    return hasattr(wrapped, "classifier")


def has_token_types(network: Any) -> bool:
    return getattr(network.config, "type_vocab_size", 0) > 1
