"""A small GGUF file with random weights, written as llama.cpp's own converter would."""

from pathlib import Path
from typing import Any

import gguf
import torch
from transformers import LlamaConfig, LlamaForCausalLM

NAMES = {
    **{"q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output"},
    **{"gate_proj": "ffn_gate", "up_proj": "ffn_up", "down_proj": "ffn_down"},
    **{"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"},
}


def small_llama(vocab_size: int) -> Any:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "max_position_embeddings": 256}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=vocab_size, tie_word_embeddings=True, **sizes, **heads)).eval()


def interleaved(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """The rows of a query or key layer in the order of llama.cpp's rotary embedding: pairs stand side by side."""
    out, width = weight.shape
    return weight.reshape(heads, 2, out // heads // 2, width).swapaxes(1, 2).reshape(out, width)


def write_gguf(path: Path, model: Any, tokenizer: Any, pre: str = "smollm", template: str | None = None) -> None:
    """``model`` with the vocabulary and merges of ``tokenizer``, split by the rule ``pre``."""
    config, file = model.config, gguf.GGUFWriter(path, "llama")
    file.add_context_length(config.max_position_embeddings)
    file.add_embedding_length(config.hidden_size)
    file.add_block_count(config.num_hidden_layers)
    file.add_feed_forward_length(config.intermediate_size)
    file.add_head_count(config.num_attention_heads)
    file.add_head_count_kv(config.num_key_value_heads)
    file.add_layer_norm_rms_eps(config.rms_norm_eps)
    file.add_rope_freq_base(10000.0)
    file.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    file.add_vocab_size(config.vocab_size)
    backend = tokenizer.backend_tokenizer
    special = set(tokenizer.all_special_tokens)
    tokens = [backend.id_to_token(i) for i in range(config.vocab_size)]
    file.add_tokenizer_model("gpt2")
    file.add_tokenizer_pre(pre)
    file.add_token_list(tokens)
    file.add_token_types([gguf.TokenType.CONTROL if token in special else gguf.TokenType.NORMAL for token in tokens])
    file.add_token_merges([" ".join(pair) for pair in merges(backend)])
    file.add_bos_token_id(tokenizer.eos_token_id)
    file.add_eos_token_id(tokenizer.eos_token_id)
    file.add_pad_token_id(tokenizer.eos_token_id)
    if template:
        file.add_chat_template(template)
    for name, weight in model.state_dict().items():
        _, *layer, kind, _ = name.split(".") if "layers" in name else ("", name.split(".")[-2], "")
        if name == "lm_head.weight":  # tied
            continue
        if "q_proj" in name:
            weight = interleaved(weight, config.num_attention_heads)
        if "k_proj" in name:
            weight = interleaved(weight, config.num_key_value_heads)
        if layer:
            target = f"blk.{layer[1]}.{NAMES[kind]}.weight"
        else:
            target = {"embed_tokens": "token_embd.weight", "norm": "output_norm.weight"}[kind]
        file.add_tensor(target, weight.numpy().copy())
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()


def merges(backend: Any) -> list[list[str]]:
    import json

    return [m.split(" ") if isinstance(m, str) else m for m in json.loads(backend.to_str())["model"]["merges"]]
