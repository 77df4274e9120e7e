"""Random models of every family that is promised to work: two layers, and weights lively enough that logits differ."""

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
LIVELY = 0.3  # spread of the weights; at the usual 0.02 every token is as likely as any other
DECODERS = ("qwen2", "llama", "gpt2", "gpt_neox")

CONFIGS: dict[str, Any] = {
    "qwen2": (Qwen2Config, {"num_key_value_heads": 2}),
    "llama": (LlamaConfig, {}),
    "gpt2": (GPT2Config, {}),
    "gpt_neox": (GPTNeoXConfig, {}),
    "bert": (BertConfig, {}),
}
WRITERS = {
    "qwen2": Qwen2ForCausalLM,
    "llama": LlamaForCausalLM,
    "gpt2": GPT2LMHeadModel,
    "gpt_neox": GPTNeoXForCausalLM,
}
JUDGES = {
    "qwen2": Qwen2ForSequenceClassification,
    "llama": LlamaForSequenceClassification,
    "gpt2": GPT2ForSequenceClassification,
    "gpt_neox": GPTNeoXForSequenceClassification,
    "bert": BertForSequenceClassification,
}


def config(family: str, **changes: Any) -> Any:
    kind, own = CONFIGS[family]
    size = {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    tokens = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None} if family != "bert" else {}
    wide = {} if family == "gpt2" else {"intermediate_size": 64}
    return kind(**(size | tokens | wide | own | {"initializer_range": LIVELY} | changes))


def language_model(family: str, seed: int = 0, **changes: Any) -> Any:
    torch.manual_seed(seed)
    return WRITERS[family](config(family, **changes)).eval()


def classifier(family: str, seed: int = 0, **changes: Any) -> Any:
    torch.manual_seed(seed)
    return JUDGES[family](config(family, num_labels=1, **changes)).eval()
