"""Reward models: a transformer with a scalar head, on encoders and decoders alike.

The model is an ordinary ``AutoModelForSequenceClassification`` with one label, so that what is saved loads with plain
transformers (and peft). Its outputs are standardized; ``ScoreNormalizer`` converts them to the dataset's own scores.
"""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.utils import ModulesToSaveWrapper
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerBase

from manners.errors import MannersError
from manners.models import loading, lora
from manners.models.adapter_config import CONFIG
from manners.models.frozen_reward import HEAD_FILE, FrozenRewardModel, load_frozen_reward_model
from manners.models.shared_prefixes import supports_shared_prefixes

NORMALIZER_FILE = "normalizer.json"


@dataclass(frozen=True)
class ScoreNormalizer:
    """Standardizes the scores that a reward model is trained on (``to_target``), and converts its outputs back
    (``to_score``).
    """

    mean: float = 0.0
    scale: float = 1.0

    @classmethod
    def from_scores(cls, scores: list[float]) -> "ScoreNormalizer":
        """Take mean and standard deviation of ``scores``. Raises MannersError if they are all equal."""
        if min(scores) == max(scores):  # the computed deviation may be above 0: 0.1 is not exact in binary
            raise MannersError("all scores are the same: there is nothing for a reward model to learn.")
        values = torch.tensor(scores, dtype=torch.float64)
        return cls(float(values.mean()), float(values.std()))

    def to_target(self, score: float) -> float:
        """Standardize a score of the dataset: the training target."""
        return (score - self.mean) / self.scale

    def to_score(self, output: float) -> float:
        """Convert a standardized output of the model back into a score."""
        return self.mean + self.scale * output

    def save(self, folder: Path) -> None:
        """Write mean and scale into the folder of the model."""
        (folder / NORMALIZER_FILE).write_text(json.dumps(asdict(self)))

    @classmethod
    def load(cls, folder: Path) -> "ScoreNormalizer":
        """Read mean and scale from the folder of a model."""
        return cls(**json.loads((folder / NORMALIZER_FILE).read_text()))


def load_reward_base(
    name: str,
    tokenizer: PreTrainedTokenizerBase,
    revision: str | None = None,
    attn_implementation: str | None = None,
    dtype: torch.dtype = torch.float32,
    **quantization: Any,
) -> Any:
    """Load ``name`` on the CPU, in eval mode, with a new scalar head. Raises MannersError if it cannot take one.

    ``head_modules`` names what has to be trained and saved in full.
    """
    model = loading.load_model(
        name,
        revision,
        attn_implementation,
        dtype,
        **quantization,
        auto_class=AutoModelForSequenceClassification,
        num_labels=1,
        problem_type="regression",
        ignore_mismatched_sizes=True,  # a classifier's head with other classes is replaced
    )
    init_score_head(model)
    if not is_encoder(model):  # plain transformers finds the last token by it; RoBERTa counts positions from its own
        model.config.pad_token_id = tokenizer.pad_token_id
    return model


def load_reward_model(
    folder: Path,
    revision: str | None = None,
    attn_implementation: str | None = None,
    dtype: torch.dtype = torch.float32,
    **quantization: Any,
) -> Any:
    """Load a trained reward model from its run's folder for inference; an adapter is merged, except into 4-bit weights.

    Raises MannersError where the folder lacks the weights of a head: scores would be random.
    """
    if (folder / HEAD_FILE).exists():
        return load_frozen_reward_model(folder, attn_implementation)
    is_adapter = (folder / CONFIG).exists()
    model: Any = loading.load_model(
        lora.base_model_name(folder) if is_adapter else str(folder),
        revision if is_adapter else None,
        attn_implementation,
        dtype,
        **quantization,
        auto_class=AutoModelForSequenceClassification,
        num_labels=1,
        ignore_mismatched_sizes=is_adapter,  # a classifier's head with other classes was replaced
    )
    new_modules = model.new_modules
    if is_adapter:
        adapted = lora.load_adapter(model, folder)
        new_modules = [name for name in new_modules if not is_saved(adapted, name)]
        model = adapted if lora.is_quantized(model) else adapted.merge_and_unload()  # type: ignore[operator]
    if new_modules:
        raise MannersError(f"{folder} is no reward model: it has no weights of {', '.join(new_modules)}. Train one.")
    return model.eval().requires_grad_(False)


def is_saved(model: PeftModel, name: str) -> bool:
    """Return whether the adapter has the weights of the whole module ``name``."""
    return isinstance(model.get_base_model().get_submodule(name), ModulesToSaveWrapper)


def init_score_head(model: Any) -> None:
    """Initialize the head from N(0, 1/(H+1)), bias 0: first scores are of order 1 (Huang et al. 2024, detail 8)."""
    head = score_head(model)
    torch.nn.init.normal_(head.weight, std=1 / math.sqrt(head.in_features + 1))
    if head.bias is not None:
        torch.nn.init.zeros_(head.bias)


def score_head(model: Any) -> torch.nn.Linear:
    """Return the layer that gives the score: ``score`` on decoders, ``classifier`` or its last layer on encoders.

    Raises MannersError if there is none.
    """
    head = getattr(model, "score", None) or getattr(model, "classifier", None)
    layers = [layer for layer in head.modules() if isinstance(layer, torch.nn.Linear)] if head else []
    if not layers or layers[-1].out_features != 1:
        raise MannersError(
            f"{type(model).__name__} has no head named 'score' or 'classifier' that ends in one linear output: reward "
            "models are built on encoders such as BERT and RoBERTa, and on decoders such as Qwen2, Llama and GPT-2."
        )
    return layers[-1]


def head_modules(model: Any) -> list[str]:
    """Return the modules between trunk and score, and a pooler that was drawn at random: LoRA keeps them in full."""
    heads = {name.partition(".")[0] for name, _ in model.named_parameters()} - {model.base_model_prefix}
    return sorted(heads | {*model.new_modules})


def normalized_scores(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the standardized scores (N,) of a batch.

    The batch has ``input_ids`` and ``attention_mask`` (N, T) with the padding on any side, or packs the replies to one
    prompt into one row (``manners.data.prompt_groups``). Padding is first moved to the right: a causal model's last
    real token then has seen all of the text and no padding, so it needs neither mask nor position ids, and a padding
    token that is also the stop token does no harm.
    """
    if "features" in batch:  # of a frozen base, for its head
        return model(batch["features"])
    base = unwrapped(model)
    if isinstance(base, FrozenRewardModel):
        return base.head(base.features(batch).to(base.device))
    if "reply_ends" in batch:
        output = base.base_model(
            batch["input_ids"],
            attention_mask=batch["attention_mask_4d"],
            position_ids=batch["position_ids"],
            use_cache=False,
        )
        rows, columns = batch["reply_ends"].unbind(1)
        return base.score(output.last_hidden_state[rows, columns])[:, 0].float()
    order = batch["attention_mask"].argsort(dim=1, descending=True, stable=True)
    ids, mask = batch["input_ids"].gather(1, order), batch["attention_mask"].gather(1, order)
    if is_encoder(model):
        extra = {}
        if "token_type_ids" in batch and has_token_types(model):
            extra = {"token_type_ids": batch["token_type_ids"].gather(1, order)}
        return model(input_ids=ids, attention_mask=mask, **extra).logits[:, 0].float()
    hidden = base.base_model(ids, use_cache=False).last_hidden_state  # (N, T, H)
    last = hidden[torch.arange(len(ids), device=ids.device), mask.sum(1) - 1]  # (N, H)
    return base.score(last)[:, 0].float()


def supports_shared_prompts(model: Any) -> bool:
    """Return whether several replies to a prompt may be packed into one row (``manners.data.prompt_groups``)."""
    return not is_encoder(model) and supports_shared_prefixes(model)


def is_encoder(model: Any) -> bool:
    """Return whether the model is a BERT-like encoder rather than a decoder."""
    return hasattr(unwrapped(model), "classifier")


def unwrapped(model: Any) -> Any:
    """Return the model without peft's wrapper."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def has_token_types(model: Any) -> bool:
    """Return whether the model takes ``token_type_ids``, which tell prompt and reply apart."""
    return getattr(model.config, "type_vocab_size", 0) > 1
