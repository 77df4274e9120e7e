"""What the GPU tests run, on any device and in any size: so the same code is tried on a CPU, in small."""

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
from tests.methods.ppo.cases import early_stops, ppo, preferred_share, prompts
from tests.methods.test_sft import module

# Qwen2.5-0.5B as it is published, and a model of its kind for a CPU. Both know more tokens than the tiny tokenizer.
TRUE = {
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


def network(shape: dict[str, int]) -> Qwen2ForCausalLM:
    """Random weights, the same each time."""
    torch.manual_seed(0)
    return Qwen2ForCausalLM(Qwen2Config(**shape, tie_word_embeddings=True))


def sft(model: Any, device: Device, folder: Path, steps: int, rows: int = 8, length: int = 512) -> dict[str, float]:
    """``steps`` of ``rows`` full rows each, of which the second half carries loss: losses, tokens a second, peak GB.

    The rate is the median step's.
    """
    vocab, half = model.config.vocab_size, length // 2
    ids = torch.randint(5, vocab, (rows, length), generator=torch.Generator().manual_seed(1)).tolist()
    examples = [TokenizedExample(row, [IGNORE_INDEX] * half + row[half:]) for row in ids]
    together = partial(collate, pad_token_id=0)
    logged: list[dict[str, float]] = []
    learner = module(model, total=steps, log=lambda found, _step: logged.append(found), learning_rate=1e-3)
    folder.mkdir(parents=True, exist_ok=True)
    forget_peak()
    batches = ResumableBatches(examples, rows, together, steps, 1, 1, True)
    fit_with_lightning(learner, batches, validation_batches(examples, rows, together), folder, device, steps, steps, 0)
    trained = [found for found in logged if "train/loss" in found]
    rates = sorted(found["train/tokens_per_second"] for found in trained)
    return {
        "first loss": trained[0]["train/loss"],
        "last loss": logged[-1]["eval/loss"],
        "tokens/s": rates[len(rates) // 2],
        "peak GB": peak(),
    }


def in_four_bits(shape: dict[str, int], folder: Path) -> tuple[Any, int, int]:
    """A QLoRA model, and the bytes of the base in 16 bits and in 4, on the GPU where there is one."""
    network(shape).save_pretrained(folder)
    sizes = []
    for quantization in ("none", "nf4"):
        before = torch.cuda.memory_allocated() if torch.cuda.is_available() else 0
        model = loading.load_model(str(folder), dtype=torch.bfloat16, quantization=quantization)
        if not torch.cuda.is_available():
            sizes.append(model.get_memory_footprint())
            continue
        if quantization == "none":  # the other is there already
            model.to("cuda")
        sizes.append(torch.cuda.memory_allocated() - before)
    return prepare_for_training(model, "qlora", 16, 32, 0.0, "all-linear"), sizes[0], sizes[1]


def play(shape: dict[str, int], device: Device, folder: Path, tokenizer: Any, replies: int, length: int) -> Any:
    """Two iterations of PPO: the metrics of each, and seconds and peak GB of both together."""
    model = prepare_for_training(network(shape), "lora", 16, 32, 0.0, "all-linear").to(device.kind)
    trained = Policy(model, "head", device.precision == "bf16")
    settings = ppo(total_episodes=2 * replies, batch_size=replies, response_length=length, learning_rate=1e-4)
    parts = preferred_share(torch.arange(shape["vocab_size"]) % 2 == 0)
    trainer = PPOTrainer(trained, tokenizer, early_stops(tokenizer), parts, settings, 1, SINGLE_PROCESS)
    logged: list[dict[str, float]] = []
    forget_peak()
    started = time.perf_counter()
    train_ppo(trainer, prompts(replies), [], folder, lambda m, _step: logged.append(m), lambda *_: None, print)
    spent = {"seconds": time.perf_counter() - started, "peak GB": peak()}
    return [found for found in logged if "objective/kl" in found], spent


def forget_peak() -> None:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def peak() -> float:
    """The most memory of the GPU in use at once, in 10⁹ bytes; 0 without one."""
    return torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else 0.0
