"""Small random checkpoints with non-zero adapters, saved as runs save them."""

from pathlib import Path

import torch
from omegaconf import OmegaConf

from manners.chat.model import ChatModel, load_chat_model
from manners.models.lora import prepare_for_training
from manners.models.tokenizer import load_tokenizer
from manners.pipeline.model_ref import ModelRef
from manners.runtime.run_dir import CONFIG_FILE, RunArtifact
from tests.families import language_model


def base(folder: Path, family: str = "qwen2", seed: int = 0, **overrides) -> Path:
    """A model with the tiny base's tokenizer. Its context is 256 tokens."""
    tokenizer, path = load_tokenizer("tiny"), folder / f"base-{family}-{seed}"
    context = {"n_positions" if family == "gpt2" else "max_position_embeddings": 256}
    stops = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    model = language_model(family, seed, vocab_size=len(tokenizer), **(context | stops | overrides))
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def adapter(base_folder: Path, folder: Path, seed: int = 1, **settings) -> Path:
    """A LoRA on the model in ``base_folder`` with a large update."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(base_folder)
    config = LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules="all-linear", **settings)
    model = get_peft_model(model, config)
    for name, p in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.2)
    model.save_pretrained(folder)
    load_tokenizer(str(base_folder)).save_pretrained(folder)
    return folder


def trained(base_folder: Path, folder: Path) -> ModelRef:
    """A run of full fine-tuning: the model in ``base_folder``, with every weight changed."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(2)
    model = prepare_for_training(AutoModelForCausalLM.from_pretrained(base_folder), "none", 0, 0, 0.0, None)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    model.save_pretrained(folder)
    load_tokenizer(str(base_folder)).save_pretrained(folder)
    train_cfg = {
        "method": {"name": "sft"},
        "dataset": {"loss_roles": "assistant"},
        "model": {"name": str(base_folder), "revision": None, "chat_template": "native", "attn_implementation": "sdpa"},
        "adapter": {"kind": "none", "quantization": "none"},
    }
    OmegaConf.save(OmegaConf.create(train_cfg), folder / CONFIG_FILE)
    return make_ref(folder)


def make_ref(folder: Path) -> ModelRef:
    return ModelRef(folder.name, str(folder), RunArtifact(folder, "", folder.name))


def load(folder: Path) -> ChatModel:
    return load_chat_model(make_ref(folder), "cpu")
