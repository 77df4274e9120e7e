"""What the stages share: their context and result, loading, fitting with Lightning."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from rich.console import Console

from manners.data.batching import Batch, ResumableBatches, validation_batches
from manners.data.loading import Splits
from manners.data.types import Conversation
from manners.methods.callbacks import load_best_weights
from manners.methods.distributed import ProcessGroup
from manners.methods.lightning import TrainingModule, TrainResult, fit_with_lightning
from manners.models import loading, lora
from manners.models.adapter_config import CONFIG
from manners.models.compile import compiled_layers
from manners.models.tokenizer import load_tokenizer
from manners.runtime.device import Device, resolve_device
from manners.runtime.run_dir import RunArtifact, RunDir
from manners.tracking.logger import MLflowLogger, NullLogger

console = Console(markup=False)  # texts of the data may hold brackets


@dataclass(frozen=True)
class RunContext:
    """What a stage works with."""

    cfg: DictConfig
    splits: Splits
    device: Device
    directory: RunDir
    logger: MLflowLogger | NullLogger
    inputs: dict[str, RunArtifact] = field(default_factory=dict)  # "policy" and "reward", where the method needs them
    process_group: ProcessGroup = field(default_factory=ProcessGroup)

    @property
    def path(self) -> Path:
        return self.directory.path

    @property
    def test_rows(self) -> list[Conversation]:
        """The rows that are reported on."""
        return self.splits.test or self.splits.validation

    @property
    def loss_rows(self) -> list[Conversation]:
        """The rows of the held-out loss: as many as prompts are answered, or all where none is."""
        return self.test_rows[: self.cfg.evaluation.test_prompts or None]

    @property
    def eval_rows(self) -> list[Conversation]:
        """The rows that the best checkpoint is chosen on."""
        return self.splits.validation or self.splits.test

    @property
    def has_rows_to_choose_by(self) -> bool:
        """Whether there are held-out rows beside those that are reported, to choose the best checkpoint by."""
        return bool(self.splits.validation and self.splits.test)

    def eval_steps(self, total_steps: int) -> int:
        """Steps between evaluations: the last alone is evaluated, and kept, where none may be chosen."""
        return self.cfg.method.eval_steps if self.has_rows_to_choose_by else total_steps  # type: ignore[no-any-return]


@dataclass(frozen=True)
class StageResult:
    metric: float | None  # what a sweep optimizes
    best_step: int  # whose weights were kept
    summary: str = ""  # one line


def total_steps(cfg: DictConfig, examples: int) -> int:
    """Optimizer steps of a supervised run, in which each epoch reads all rows, the last batch being a smaller one.

    Warns where the warm-up is longer than the run.
    """
    m = cfg.method
    batches = math.ceil(examples / (m.per_device_train_batch_size * cfg.hardware.devices))
    per_epoch = batches / m.gradient_accumulation_steps  # an optimizer step of ours may span two epochs
    if m.name in ("dpo", "kto"):  # one of the Trainer's does not
        per_epoch = math.ceil(per_epoch)
    steps = m.max_steps if m.max_steps > 0 else max(1, math.ceil(m.num_train_epochs * per_epoch))
    if 1 <= steps <= m.warmup_steps:
        console.print(
            f"the warm-up of {m.warmup_steps:.0f} steps is longer than the run of {steps}: the learning rate "
            "never reaches its peak. For a share of the run: method.warmup_steps=0.1",
            style="yellow",
        )
    return int(steps)


def report_truncation(num_truncated: Sequence[int], option: str) -> None:
    """Print how many rows were cut to ``option``; ``num_truncated`` are the tokens that each lost."""
    if line := truncation_line(num_truncated, option):
        console.print(line, style="yellow", highlight=False)


def truncation_line(num_truncated: Sequence[int], option: str) -> str:
    """A line on the tokens that rows lost to ``option``; empty where none lost any."""
    cut = [n for n in num_truncated if n]
    return f"cut to {option}: {len(cut)} of {len(num_truncated)} rows lose {sum(cut):,} tokens" if cut else ""


def fit_module(
    run: RunContext,
    module: Callable[..., TrainingModule],
    examples: list[Any],
    eval_examples: list[Any],
    collate: Callable[..., Batch],
) -> TrainResult:
    """Train ``module`` on ``examples`` with Lightning, in batches made by ``collate``."""
    cfg, m, processes = run.cfg, run.cfg.method, run.process_group
    steps = total_steps(cfg, len(examples))
    batches = ResumableBatches(
        examples,
        batch_size=m.per_device_train_batch_size,
        collate=collate,
        steps=steps,
        accumulate=m.gradient_accumulation_steps,
        seed=cfg.seed,
        group_by_length=m.group_by_length,
        rank=processes.rank,
        num_processes=processes.size,
        microbatch_size=run.directory.state.microbatch_size,
    )
    training = module(
        log=run.logger.log,
        total_steps=steps,
        learning_rate=m.learning_rate,
        lr_scheduler_type=m.lr_scheduler_type,
        warmup_steps=m.warmup_steps,
        weight_decay=m.weight_decay,
        max_grad_norm=m.max_grad_norm,
        accumulate=batches.accumulate,
        logging_steps=m.logging_steps,
        optim=m.optim,
        process_group=processes,
    )
    eval_batches = validation_batches(
        eval_examples, m.per_device_eval_batch_size, collate, processes.rank, processes.size
    )
    if cfg.hardware.compile:
        console.print("compiling the layers: the first steps take half a minute or more")
    in_bf16 = run.device.precision == "bf16"
    with compiled_layers(training.model, cfg.hardware.compile), lora.frozen_weights_in_bf16(training.model, in_bf16):
        result = fit_with_lightning(
            training,
            batches,
            eval_batches,
            run.path,
            run.device,
            eval_steps=run.eval_steps(steps),
            save_steps=m.save_steps,
            patience=m.early_stopping_patience,
            process_group=processes,
            strategy=cfg.hardware.strategy,
        )
    if processes.rank == 0:
        run.directory.update_state(tokens=count_tokens(batches, result.steps))
    return result


def gather_full_model(run: RunContext, model: Any, make: Callable[[], Any]) -> Any:
    """The trained model as a whole: under FSDP a new one from ``make``, with the best weights loaded."""
    if run.cfg.hardware.strategy == "fsdp":
        model = make()
        load_best_weights(run.path, model)
    return model


def count_tokens(batches: ResumableBatches, steps: int) -> int:
    """Tokens of the first ``steps`` optimizer steps, prompts included, padding not."""
    return sum(batches.examples[i].tokens for step in range(steps) for group in batches.step(step) for i in group)


def loading_kwargs(cfg: DictConfig, device: Device) -> dict[str, Any]:
    """Weights are in 32 bits; 4-bit ones compute in the device's number format."""
    four_bit = cfg.adapter.quantization != "none"
    return {
        "dtype": torch.bfloat16 if four_bit and device.precision == "bf16" else torch.float32,
        "quantization": cfg.adapter.quantization,
        "double_quantization": cfg.adapter.double_quantization,
    }


def device_of(cfg: DictConfig) -> Device:
    """The device and the number format that the config asks for. Raises MannersError."""
    h, width = cfg.hardware, 0
    if h.precision == "auto":
        config = loading.load_config(cfg.model.name, cfg.model.revision).get_text_config()
        width = getattr(config, "hidden_size", 0)
    return resolve_device(h.accelerator, h.precision, h.num_threads, width)


def prepare_model(cfg: DictConfig, model: Any, device: Device, **options: Any) -> Any:
    """``model`` with the adapter that the config asks for, on its device.

    ``options`` are more arguments of ``prepare_for_training``.
    """
    a, checkpointing = cfg.adapter, cfg.method.gradient_checkpointing
    options |= {"use_rslora": a.use_rslora, "use_dora": a.use_dora, "init_lora_weights": a.init_lora_weights}
    model = lora.prepare_for_training(
        model, a.kind, a.r, a.lora_alpha, a.lora_dropout, a.target_modules, checkpointing, **options
    )
    return model if a.quantization != "none" else model.to(device.kind)


def configured_tokenizer(cfg: DictConfig) -> Any:
    m = cfg.model
    return load_tokenizer(m.name, m.revision, m.chat_template, m.decoder, m.added_tokens)


def load_base(cfg: DictConfig, device: Device) -> Any:
    """The model that ``cfg.model`` names, without an adapter."""
    return loading.load_model(
        cfg.model.name, cfg.model.revision, cfg.model.attn_implementation, **loading_kwargs(cfg, device)
    )


def starting_policy(run: RunContext) -> Any:
    """The base model with the SFT adapter merged in, so that the reference is this network with its adapter off."""
    cfg, policy = run.cfg, run.inputs.get("policy")
    if policy is None:
        return load_base(cfg, run.device)
    if not (policy.model_dir / CONFIG).exists():
        return loading.load_model(str(policy.model_dir), attn_implementation=cfg.model.attn_implementation)
    return lora.load_adapter(load_base(cfg, run.device), policy.model_dir).merge_and_unload()  # type: ignore[operator]
