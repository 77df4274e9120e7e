"""What the GPU tests run, on any device and in any size: ``test_trials`` runs it on a CPU with a small model."""

import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from manners.data.batching import ResumableBatches, collate, validation_batches
from manners.data.tokenize import IGNORE_INDEX, TokenizedExample
from manners.methods.distributed import SINGLE_PROCESS
from manners.methods.lightning import fit_with_lightning
from manners.methods.ppo.trainer import PPOTrainer, train_ppo
from manners.models import loading
from manners.models.lora import prepare_for_training
from manners.models.policy import Policy
from manners.runtime.device import Device
from tests.methods.ppo.cases import frequent_stop_ids, make_prompts, ppo_config, token_share_reward
from tests.methods.test_sft import module

# The published Qwen2.5-0.5B, and a small model for a CPU. Both vocabularies are larger than the tiny tokenizer's.
QWEN2_0_5B = {
    "vocab_size": 151936,
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
}
SMALL = {
    "vocab_size": 5000,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def random_qwen2(shape: dict[str, int]) -> Qwen2ForCausalLM:
    """Random weights from a fixed seed."""
    torch.manual_seed(0)
    return Qwen2ForCausalLM(Qwen2Config(**shape, tie_word_embeddings=True))


def train_sft(
    model: Any, device: Device, folder: Path, steps: int, rows: int = 8, length: int = 512
) -> dict[str, float]:
    """Losses, median tokens per second and peak GB of ``steps`` on full rows whose second half carries loss."""
    vocab, half = model.config.vocab_size, length // 2
    ids = torch.randint(5, vocab, (rows, length), generator=torch.Generator().manual_seed(1)).tolist()
    examples = [TokenizedExample(row, [IGNORE_INDEX] * half + row[half:]) for row in ids]
    collate_rows = partial(collate, pad=0)
    logged: list[dict[str, float]] = []
    sft_module = module(model, total=steps, log=lambda metrics, _step: logged.append(metrics), learning_rate=1e-3)
    folder.mkdir(parents=True, exist_ok=True)
    reset_peak_memory()
    batches = ResumableBatches(examples, rows, collate_rows, steps, 1, 1, True)
    fit_with_lightning(
        sft_module, batches, validation_batches(examples, rows, collate_rows), folder, device, steps, steps, 0
    )
    train_metrics = [metrics for metrics in logged if "train/loss" in metrics]
    rates = sorted(metrics["train/tokens_per_second"] for metrics in train_metrics)
    return {
        "first loss": train_metrics[0]["train/loss"],
        "last loss": logged[-1]["eval/loss"],
        "tokens per second": rates[len(rates) // 2],
        "peak GB": peak_memory_gb(),
    }


def load_in_4_bits(shape: dict[str, int], folder: Path) -> tuple[Any, int, int]:
    """A QLoRA model, and the bytes of its base in 16 bits and in 4 bits."""
    random_qwen2(shape).save_pretrained(folder)
    sizes = []
    for quantization in ("none", "nf4"):
        before = torch.cuda.memory_allocated() if torch.cuda.is_available() else 0
        model = loading.load_model(str(folder), dtype=torch.bfloat16, quantization=quantization)
        if not torch.cuda.is_available():
            sizes.append(model.get_memory_footprint())
            continue
        if quantization == "none":  # bitsandbytes has put the 4-bit model on the GPU already
            model.to("cuda")
        sizes.append(torch.cuda.memory_allocated() - before)
    return prepare_for_training(model, "qlora", 16, 32, 0.0, "all-linear"), sizes[0], sizes[1]


def train_small_ppo(
    shape: dict[str, int], device: Device, folder: Path, tokenizer: Any, replies: int, length: int
) -> Any:
    """Two iterations of PPO: the metrics of each, and the seconds and peak GB of both."""
    model = prepare_for_training(random_qwen2(shape), "lora", 16, 32, 0.0, "all-linear").to(device.kind)
    policy = Policy(model, "head", device.precision == "bf16")
    config = ppo_config(total_episodes=2 * replies, batch_size=replies, response_length=length, learning_rate=1e-4)
    rewards = token_share_reward(torch.arange(shape["vocab_size"]) % 2 == 0)
    trainer = PPOTrainer(policy, tokenizer, frequent_stop_ids(tokenizer), rewards, config, 1, SINGLE_PROCESS)
    logged: list[dict[str, float]] = []
    reset_peak_memory()
    started = time.perf_counter()
    train_ppo(trainer, make_prompts(replies), [], folder, lambda m, _step: logged.append(m), lambda *_: None, print)
    cost = {"seconds": time.perf_counter() - started, "peak GB": peak_memory_gb()}
    return [metrics for metrics in logged if "objective/kl" in metrics], cost


def reset_peak_memory() -> None:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def peak_memory_gb() -> float:
    """Peak GPU memory in 10⁹ bytes; 0.0 without a GPU."""
    return torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else 0.0
