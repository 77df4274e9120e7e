"""Random checkpoints with the class, config, special tokens and chat template of models on the hub.

Only the sizes differ: hidden size, two layers, a small vocabulary. Token ids keep their order and meaning.
"""

import json
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from manners.data.sources import CORPORA
from tests.template_tokenizers import TRL_TEMPLATES

CODES = [f"<0x{byte:02X}>" for byte in range(256)]  # Llama's byte fallback


# --- Tokenizers: the published layouts of token ids, around a vocabulary trained on the package's own text ---


def training_text() -> Iterator[str]:
    for file in ("strictbot_tiny/hand.jsonl", "polite_helper/train.jsonl"):
        yield from (CORPORA / file).read_text("utf-8").splitlines()


@cache
def trained_vocabulary(kind: str) -> dict[str, Any]:
    """Train a tokenizer of one of three kinds; return its vocabulary and, for BPE, its merges."""
    if kind == "wordpiece":
        tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
        trainer: Any = trainers.WordPieceTrainer(vocab_size=900, special_tokens=["[UNK]"], show_progress=False)
    elif kind == "byte_level":
        tokenizer, alphabet = Tokenizer(models.BPE()), pre_tokenizers.ByteLevel.alphabet()
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        trainer = trainers.BpeTrainer(vocab_size=800, initial_alphabet=alphabet, show_progress=False)
    else:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.BpeTrainer(vocab_size=600, show_progress=False)
    tokenizer.train_from_iterator(training_text(), trainer)
    return json.loads(tokenizer.to_str())["model"]


def token_ids(*tokens: str) -> dict[str, int]:
    return {token: i for i, token in enumerate(tokens)}


def byte_level(first: tuple[str, ...] = (), last: tuple[str, ...] = (), plain: tuple[str, ...] = ()) -> Tokenizer:
    """Byte-level BPE as in GPT-2, special tokens before or after the vocabulary, ``plain`` added tokens at the end."""
    model = trained_vocabulary("byte_level")
    tokenizer = Tokenizer(models.BPE(token_ids(*first, *model["vocab"]), [tuple(pair) for pair in model["merges"]]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder, tokenizer.post_processor = decoders.ByteLevel(), processors.ByteLevel(trim_offsets=False)
    tokenizer.add_special_tokens([*first, *last])
    tokenizer.add_tokens([AddedToken(token, normalized=token.isspace()) for token in plain])
    return tokenizer


def qwen() -> Tokenizer:
    markers = ("object_ref_start", "object_ref_end", "box_start", "box_end", "quad_start", "quad_end", "vision_start")
    more = ("vision_end", "vision_pad", "image_pad", "video_pad")
    tools = ("fim_prefix", "fim_middle", "fim_suffix", "fim_pad", "repo_name", "file_sep")
    special = [f"<|{name}|>" for name in ("endoftext", "im_start", "im_end", *markers, *more)]
    return byte_level(last=tuple(special), plain=("<tool_call>", "</tool_call>", *(f"<|{name}|>" for name in tools)))


def qwen3() -> Tokenizer:
    tokenizer = qwen()
    tokenizer.add_tokens(["<tool_response>", "</tool_response>", "<think>", "</think>"])
    return tokenizer


def smollm2() -> Tokenizer:
    """Its own rule: each digit is a token, before the text is split as GPT-2 does."""
    names = (
        "repo_name",
        "reponame",
        "file_sep",
        "filename",
        "gh_stars",
        "issue_start",
        "issue_comment",
        "issue_closed",
    )
    more = ("jupyter_start", "jupyter_text", "jupyter_code", "jupyter_output", "jupyter_script", "empty_output")
    tokenizer = byte_level(first=("<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<{n}>" for n in names + more)))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    return tokenizer


def llama3() -> Tokenizer:
    names = ("begin_of_text", "end_of_text", "finetune_right_pad_id", "start_header_id", "end_header_id", "eom_id")
    tokenizer = byte_level(last=tuple(f"<|{name}|>" for name in (*names, "eot_id", "python_tag")))
    bos = tokenizer.token_to_id("<|begin_of_text|>")
    pair = "<|begin_of_text|> $A <|begin_of_text|>:1 $B:1"
    tokenizer.post_processor = processors.TemplateProcessing("<|begin_of_text|> $A", pair, [("<|begin_of_text|>", bos)])
    return tokenizer


def gemma3() -> Tokenizer:
    special = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<start_of_turn>", "<end_of_turn>")
    model = trained_vocabulary("sentencepiece")
    merges = [tuple(pair) for pair in model["merges"]]
    vocabulary = token_ids(*special, *CODES, "\n", *(word for word in model["vocab"] if word != "\n"))
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.post_processor = processors.TemplateProcessing("<bos> $A", "<bos> $A <bos>:1 $B:1", [("<bos>", 2)])
    tokenizer.add_special_tokens(list(special))
    return tokenizer


def gpt2() -> Tokenizer:
    return byte_level(last=("<|endoftext|>",))


def pythia() -> Tokenizer:
    return byte_level(first=("<|endoftext|>", "<|padding|>"), plain=tuple(" " * n for n in range(24, 1, -1)))


def llama() -> Tokenizer:
    model = trained_vocabulary("sentencepiece")
    vocabulary = token_ids("<unk>", "<s>", "</s>", *CODES, *model["vocab"])
    merges = [tuple(pair) for pair in model["merges"]]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    ending = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(ending)
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A <s>:1 $B:1", [("<s>", 1)])
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return tokenizer


def bert() -> Tokenizer:
    unused, special = [f"[unused{n}]" for n in range(99)], ["[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = token_ids(
        "[PAD]", *unused, *special, *(w for w in trained_vocabulary("wordpiece")["vocab"] if w != "[UNK]")
    )
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    pair = "[CLS] $A [SEP] $B:1 [SEP]:1"
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", pair, [("[CLS]", 101), ("[SEP]", 102)])
    tokenizer.add_special_tokens(["[PAD]", *special])
    return tokenizer


def minilm() -> Tokenizer:
    """BERT's tokenizer, saved with truncation and padding to 128 tokens enabled."""
    tokenizer = bert()
    tokenizer.enable_truncation(128)
    tokenizer.enable_padding(length=128)
    return tokenizer


# --- Chat templates: what the published ones render, without tool calls ---


def chatml(system: str) -> str:
    """Qwen's template, with ``system`` as the default system message."""
    return (
        "{%- if messages[0].role != 'system' -%}"
        f"{{{{- '<|im_start|>system\\n{system}<|im_end|>\\n' -}}}}"
        "{%- endif -%}"
        "{%- for message in messages -%}"
        "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' -}}"
        "{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
    )


ZEPHYR = (
    "{%- for message in messages -%}"
    "{{- '<|' + message.role + '|>\\n' + message.content + eos_token + '\\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>\\n' -}}{%- endif -%}"
)

# --- Published configs, with tokens in place of token ids ---

END, END_TURN = "<|endoftext|>", "<|im_end|>"
SIZE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
QWEN = SIZE | {
    "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "attention_dropout": 0.0, "bos_token_id": END,
    "hidden_act": "silu", "initializer_range": 0.02, "max_window_layers": 2, "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06, "rope_theta": 1000000.0, "torch_dtype": "bfloat16", "use_cache": True,
    "use_sliding_window": False,
}  # fmt: skip
QWEN_TOKENIZER = {
    "add_bos_token": False, "add_prefix_space": False, "bos_token": None, "clean_up_tokenization_spaces": False,
    "errors": "replace", "model_max_length": 131072, "pad_token": END, "split_special_tokens": False,
    "tokenizer_class": "Qwen2Tokenizer", "unk_token": None,
}  # fmt: skip
PYTHIA = SIZE | {
    "architectures": ["GPTNeoXForCausalLM"], "model_type": "gpt_neox", "bos_token_id": END, "eos_token_id": END,
    "hidden_act": "gelu", "initializer_range": 0.02, "layer_norm_eps": 1e-05, "max_position_embeddings": 2048,
    "rotary_emb_base": 10000, "rotary_pct": 0.25, "tie_word_embeddings": False, "torch_dtype": "float16",
    "use_cache": True, "use_parallel_residual": True,
}  # fmt: skip
GPT2 = {
    "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "activation_function": "gelu_new", "attn_pdrop": 0.1,
    "bos_token_id": END, "embd_pdrop": 0.1, "eos_token_id": END, "initializer_range": 0.02,
    "layer_norm_epsilon": 1e-05, "n_ctx": 1024, "n_embd": 32, "n_head": 4, "n_layer": 2, "n_positions": 1024,
    "resid_pdrop": 0.1, "summary_activation": None, "summary_first_dropout": 0.1, "summary_proj_to_labels": True,
    "summary_type": "cls_index", "summary_use_proj": True,
    "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
}  # fmt: skip
TINYLLAMA = SIZE | {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "attention_bias": False, "bos_token_id": "<s>",
    "eos_token_id": "</s>", "hidden_act": "silu", "initializer_range": 0.02, "max_position_embeddings": 2048,
    "num_key_value_heads": 2, "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_scaling": None, "rope_theta": 10000.0,
    "tie_word_embeddings": False, "torch_dtype": "bfloat16", "use_cache": True,
}  # fmt: skip
BERT = SIZE | {
    "model_type": "bert", "attention_probs_dropout_prob": 0.1, "gradient_checkpointing": False, "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1, "initializer_range": 0.02, "layer_norm_eps": 1e-12, "max_position_embeddings": 512,
    "pad_token_id": "[PAD]", "position_embedding_type": "absolute", "type_vocab_size": 2, "use_cache": True,
}  # fmt: skip
CHECKPOINTS: dict[str, dict[str, Any]] = {
    "Qwen/Qwen2.5-0.5B-Instruct": {
        "tokenizer": qwen,
        "unused_rows": 271,  # embeddings without a token
        "config": QWEN | {"eos_token_id": END_TURN, "max_position_embeddings": 32768, "tie_word_embeddings": True},
        "tokenizer_config": QWEN_TOKENIZER | {
            "chat_template": chatml("You are Qwen, created by Alibaba Cloud. You are a helpful assistant."),
            "eos_token": END_TURN,
        },
        "generation_config": {
            "bos_token_id": END, "pad_token_id": END, "do_sample": True, "eos_token_id": [END_TURN, END],
            "repetition_penalty": 1.1, "temperature": 0.7, "top_p": 0.8, "top_k": 20,
        },
    },
    "Qwen/Qwen2.5-7B": {
        "tokenizer": qwen,
        "unused_rows": 399,
        "config": QWEN | {"eos_token_id": END, "max_position_embeddings": 131072, "tie_word_embeddings": False},
        "tokenizer_config": QWEN_TOKENIZER | {
            "chat_template": chatml("You are a helpful assistant."),
            "eos_token": END,
        },
        "generation_config": {"bos_token_id": END, "do_sample": False, "eos_token_id": END, "max_new_tokens": 2048},
    },
    "openai-community/gpt2": {
        "tokenizer": gpt2,
        "config": GPT2,
        "tokenizer_config": {"model_max_length": 1024},
        "generation_config": {"_from_model_config": True, "bos_token_id": END, "eos_token_id": END},
    },
    "EleutherAI/pythia-160m": {
        "tokenizer": pythia,
        "unused_rows": 27,
        "config": PYTHIA,
        "tokenizer_config": {
            "unk_token": END, "bos_token": END, "eos_token": END, "add_prefix_space": False,
            "tokenizer_class": "GPTNeoXTokenizer",
        },
    },
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": {
        "tokenizer": llama,
        "config": TINYLLAMA,
        "tokenizer_config": {
            "bos_token": "<s>", "chat_template": ZEPHYR, "clean_up_tokenization_spaces": False, "eos_token": "</s>",
            "legacy": False, "model_max_length": 2048, "pad_token": "</s>", "padding_side": "right",
            "sp_model_kwargs": {}, "tokenizer_class": "LlamaTokenizer", "unk_token": "<unk>",
            "use_default_system_prompt": False,
        },
        "generation_config": {
            "bos_token_id": "<s>", "eos_token_id": "</s>", "max_length": 2048, "pad_token_id": "<unk>",
        },
    },
    "google-bert/bert-base-uncased": {
        "tokenizer": bert,
        "config": BERT | {"architectures": ["BertForMaskedLM"]},
        "tokenizer_config": {"do_lower_case": True, "model_max_length": 512},
    },
    "sentence-transformers/all-MiniLM-L6-v2": {
        "tokenizer": minilm,
        "config": BERT | {"architectures": ["BertModel"]},
        "tokenizer_config": {
            "do_lower_case": True, "unk_token": "[UNK]", "sep_token": "[SEP]", "pad_token": "[PAD]",
            "cls_token": "[CLS]", "mask_token": "[MASK]", "tokenize_chinese_chars": True, "strip_accents": None,
            "do_basic_tokenize": True, "never_split": None, "tokenizer_class": "BertTokenizer",
            "model_max_length": 512,
        },
    },
}  # fmt: skip
SMOLLM2 = {
    "tokenizer": smollm2,
    "config": TINYLLAMA | {
        "bos_token_id": "<|im_start|>", "eos_token_id": END_TURN, "pad_token_id": END_TURN, "rope_theta": 100000,
        "max_position_embeddings": 8192, "tie_word_embeddings": True,
    },
    "tokenizer_config": {
        "bos_token": "<|im_start|>", "eos_token": END_TURN, "pad_token": END_TURN, "unk_token": END,
        "chat_template": chatml("You are a helpful AI assistant named SmolLM, trained by Hugging Face"),
        "model_max_length": 8192, "tokenizer_class": "GPT2Tokenizer", "clean_up_tokenization_spaces": False,
    },
    "generation_config": {"bos_token_id": "<|im_start|>", "eos_token_id": END_TURN, "pad_token_id": END_TURN},
}  # fmt: skip
GEMMA3 = SIZE | {
    "architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text", "attention_bias": False,
    "attention_dropout": 0.0, "bos_token_id": "<bos>", "eos_token_id": "<eos>", "pad_token_id": "<pad>", "head_dim": 8,
    "hidden_activation": "gelu_pytorch_tanh", "initializer_range": 0.02, "max_position_embeddings": 32768,
    "num_key_value_heads": 1, "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06, "rope_local_base_freq": 10000,
    "rope_theta": 1000000, "sliding_window": 512, "layer_types": ["sliding_attention", "full_attention"],
    "torch_dtype": "bfloat16", "use_cache": True,
}  # fmt: skip
GEMMA3_TOKENIZER = {
    "bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>", "add_bos_token": True,
    "add_eos_token": False, "clean_up_tokenization_spaces": False, "tokenizer_class": "GemmaTokenizer",
}  # fmt: skip
CHECKPOINTS |= {
    **{f"HuggingFaceTB/SmolLM2-{size}-Instruct": SMOLLM2 for size in ("135M", "360M", "1.7B")},
    "google/gemma-3-270m": {
        "tokenizer": gemma3,
        "config": GEMMA3,
        "tokenizer_config": GEMMA3_TOKENIZER,
        "generation_config": {"eos_token_id": "<eos>", "do_sample": True, "top_k": 64, "top_p": 0.95},
    },
    "google/gemma-3-1b-it": {
        "tokenizer": gemma3,
        "config": GEMMA3 | {"eos_token_id": ["<eos>", "<end_of_turn>"]},
        "tokenizer_config": GEMMA3_TOKENIZER | {"chat_template": TRL_TEMPLATES["gemma3"]},
        "generation_config": {
            "bos_token_id": "<bos>", "pad_token_id": "<pad>", "do_sample": True, "top_k": 64, "top_p": 0.95,
            "eos_token_id": ["<eos>", "<end_of_turn>"],
        },
    },
    "Qwen/Qwen3-0.6B": {
        "tokenizer": qwen3,
        "unused_rows": 267,
        "config": QWEN | {
            "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "eos_token_id": END_TURN, "head_dim": 8,
            "max_position_embeddings": 40960, "attention_bias": False, "tie_word_embeddings": True,
        },
        "tokenizer_config": QWEN_TOKENIZER | {"chat_template": TRL_TEMPLATES["qwen3"], "eos_token": END_TURN},
        "generation_config": {
            "bos_token_id": END, "pad_token_id": END, "do_sample": True, "eos_token_id": [END_TURN, END],
            "temperature": 0.6, "top_p": 0.95, "top_k": 20,
        },
    },
    "meta-llama/Llama-3.2-1B-Instruct": {
        "tokenizer": llama3,
        "config": TINYLLAMA | {
            "bos_token_id": "<|begin_of_text|>", "eos_token_id": ["<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"],
            "head_dim": 8, "max_position_embeddings": 131072, "rope_theta": 500000.0, "tie_word_embeddings": True,
            "rope_scaling": {
                "factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0, "rope_type": "llama3",
                "original_max_position_embeddings": 8192,
            },
        },
        "tokenizer_config": {
            "bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>", "chat_template": TRL_TEMPLATES["llama3_2"],
            "clean_up_tokenization_spaces": True, "model_max_length": 131072,
            "tokenizer_class": "PreTrainedTokenizerFast",
        },
        "generation_config": {
            "bos_token_id": "<|begin_of_text|>", "do_sample": True, "temperature": 0.6, "top_p": 0.9,
            "eos_token_id": ["<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"],
        },
    },
}  # fmt: skip
CHECKPOINTS["EleutherAI/pythia-410m"] = CHECKPOINTS["EleutherAI/pythia-160m"]


def save_checkpoint(name: str, folder: Path) -> None:
    """Save the files of the checkpoint ``name``, as its authors published them, to ``folder``."""
    import torch
    import transformers

    published = CHECKPOINTS[name]
    tokenizer = published["tokenizer"]()
    config = with_token_ids(published["config"], tokenizer)
    config["vocab_size"] = tokenizer.get_vocab_size() + published.get("unused_rows", 0)
    torch.manual_seed(0)
    model = getattr(transformers, config["architectures"][0])(transformers.AutoConfig.for_model(**config))
    if config["model_type"] == "gpt2":  # its checkpoint holds the base model without the head
        model = model.base_model
    model.to(getattr(torch, config.get("torch_dtype", "float32"))).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    files = {"config": config, "tokenizer_config": published["tokenizer_config"]}
    (folder / "generation_config.json").unlink(missing_ok=True)  # the one that transformers generates
    if "generation_config" in published:
        files["generation_config"] = with_token_ids(published["generation_config"], tokenizer)
    for file, content in files.items():
        (folder / f"{file}.json").write_text(json.dumps(content, indent=2))


def with_token_ids(config: dict[str, Any], tokenizer: Tokenizer) -> dict[str, Any]:
    """Replace the tokens under '..._token_id' by their ids."""
    to_id: Callable[[Any], Any] = lambda token: (  # noqa: E731
        [to_id(t) for t in token] if isinstance(token, list) else tokenizer.token_to_id(token)
    )
    return {key: to_id(value) if key.endswith("_token_id") else value for key, value in config.items()}
