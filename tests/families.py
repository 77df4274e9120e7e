"""Random two-layer models of every supported model family, with weights large enough that logits differ."""

from typing import Any

import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    GPTNeoXForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2ForSequenceClassification,
)

VOCAB = 97
INITIALIZER_RANGE = 0.3  # with the usual 0.02 all tokens would be about equally likely
DECODERS = ("qwen2", "llama", "gpt2", "gpt_neox")

CONFIGS: dict[str, Any] = {
    "qwen2": (Qwen2Config, {"num_key_value_heads": 2}),
    "llama": (LlamaConfig, {}),
    "gpt2": (GPT2Config, {}),
    "gpt_neox": (GPTNeoXConfig, {}),
    "bert": (BertConfig, {}),
}
LANGUAGE_MODELS = {
    "qwen2": Qwen2ForCausalLM,
    "llama": LlamaForCausalLM,
    "gpt2": GPT2LMHeadModel,
    "gpt_neox": GPTNeoXForCausalLM,
}
CLASSIFIERS = {
    "qwen2": Qwen2ForSequenceClassification,
    "llama": LlamaForSequenceClassification,
    "gpt2": GPT2ForSequenceClassification,
    "gpt_neox": GPTNeoXForSequenceClassification,
    "bert": BertForSequenceClassification,
}


def model_config(family: str, **changes: Any) -> Any:
    config_class, family_kwargs = CONFIGS[family]
    size = {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    tokens = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None} if family != "bert" else {}
    mlp = {} if family == "gpt2" else {"intermediate_size": 64}
    return config_class(**(size | tokens | mlp | family_kwargs | {"initializer_range": INITIALIZER_RANGE} | changes))


def language_model(family: str, seed: int = 0, **changes: Any) -> Any:
    """Return a random causal language model in eval mode."""
    torch.manual_seed(seed)
    return LANGUAGE_MODELS[family](model_config(family, **changes)).eval()


def classifier(family: str, seed: int = 0, **changes: Any) -> Any:
    """Return a random sequence classifier with one label in eval mode."""
    torch.manual_seed(seed)
    return CLASSIFIERS[family](model_config(family, num_labels=1, **changes)).eval()
