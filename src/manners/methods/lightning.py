"""Training with Lightning: what every method's LightningModule shares, and the loop that SFT and reward models run in.

AdamW on what is trainable, a learning-rate schedule, clipping, token-weighted gradient accumulation, exact resume, and
a smaller microbatch where the GPU runs out of memory.
"""

import gc
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping
from torch.utils.data import DataLoader

from manners.data.batching import Batch, ResumableBatches
from manners.errors import MannersError
from manners.methods.callbacks import (
    LAST,
    AtomicCheckpointIO,
    CheckpointCallback,
    MetricsCallback,
    ProgressBar,
    load_best_weights,
)
from manners.methods.distributed import (
    SINGLE_PROCESS,
    ProcessGroup,
    full_tensor,
    lightning_strategy,
    shard_with_fsdp,
)
from manners.methods.optim import adamw, learning_rate_factor
from manners.models.lora import trainable_parameters
from manners.runtime import signals
from manners.runtime.device import Device
from manners.runtime.progress import log_info

LogFunction = Callable[[dict[str, float], int], None]
RETRY_ON = ("cuda",)  # devices that raise OutOfMemoryError; elsewhere the system ends a process that asks for too much


class TrainingModule(L.LightningModule):
    """Trains ``model`` with the loss that a method computes in ``compute_loss``."""

    def __init__(
        self,
        model: Any,
        log: LogFunction,
        total_steps: int,
        learning_rate: float,
        lr_scheduler_type: str,
        warmup_steps: float,
        weight_decay: float,
        max_grad_norm: float,
        accumulate: int,
        logging_steps: int,
        optim: str = "adamw_torch_fused",
        process_group: ProcessGroup = SINGLE_PROCESS,
    ):
        super().__init__()
        self.model = model
        self.process_group = process_group
        self.log_metrics = log
        self.total_steps, self.learning_rate = total_steps, learning_rate
        self.lr_scheduler_type, self.warmup_steps = lr_scheduler_type, warmup_steps
        self.weight_decay, self.max_grad_norm = weight_decay, max_grad_norm
        self.accumulate, self.logging_steps, self.optim = accumulate, logging_steps, optim
        self.strict_loading = False  # a checkpoint holds the trainable weights only
        self.train_metrics = MetricAccumulator()
        self.eval_metrics = MetricAccumulator()
        self.last_train_metrics: dict[str, float] = {}
        self.tokens_seen = 0  # targets that carried loss, up to the last logged metrics

    def compute_loss(self, batch: Batch) -> tuple[torch.Tensor, int, int]:
        """The batch's summed loss (), its correct predictions and its targets. Raises unless overridden."""
        raise NotImplementedError

    def metrics(self, accumulator: "MetricAccumulator", prefix: str) -> dict[str, float]:
        """The method's metrics of what was accumulated, each as ``prefix``/name. Raises unless overridden."""
        raise NotImplementedError

    def configure_model(self) -> None:
        """Shard the weights, where the strategy is FSDP."""
        shard_with_fsdp(self)

    def measure(self, batch: Batch, accumulator: "MetricAccumulator") -> torch.Tensor:
        """The batch's summed loss (), with its metrics added to ``accumulator``; a filler counts for nothing."""
        loss, num_correct, num_targets = self.compute_loss(batch)
        if "is_filler" in batch:  # see ``local_batch``
            loss, num_correct, num_targets = loss * 0, 0, 0
        accumulator.add(loss, num_correct, num_targets, batch)
        return loss

    def training_step(self, batch: Batch, _index: int) -> torch.Tensor:
        """The microbatch's part of the mean loss () over all targets of the optimizer step, on all devices."""
        loss = self.measure(batch, self.train_metrics)
        # Lightning divides by the number of microbatches, DDP and FSDP by that of processes.
        return loss / batch["step_num_targets"] * (self.accumulate * self.process_group.size)

    def validation_step(self, batch: Batch, _index: int) -> None:
        """Count one batch of the validation."""
        self.measure(batch, self.eval_metrics)

    def on_validation_epoch_end(self) -> None:
        """Log the metrics of the validation."""
        metrics = self.metrics(self.eval_metrics.reduce(self.process_group), "eval")
        self.eval_metrics = MetricAccumulator()
        if not self.trainer.sanity_checking:
            self.log_metrics(metrics, self.global_step)
            self.log("eval/loss", metrics["eval/loss"], logger=False)

    def configure_gradient_clipping(self, optimizer: torch.optim.Optimizer, *_: Any, **__: Any) -> None:
        """Clip the gradient and keep its norm from before.

        In fp16 the gradient is scaled up, and where it overflows GradScaler skips the step and halves the scale. Raises
        MannersError where it is not finite for any other reason.
        """
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        if scaler is not None and getattr(optimizer, "_step_supports_amp_scaling", False):
            scaler.unscale_(optimizer)  # Lightning leaves it to the step of a fused optimizer, after the clipping
        params = [p for group in optimizer.param_groups for p in group["params"]]
        norm = float(full_tensor(torch.nn.utils.clip_grad_norm_(params, self.max_grad_norm or math.inf)))
        if math.isfinite(norm):
            self.train_metrics.grad_norm = norm
        elif scaler is None or scaler.get_scale() < 1:
            halved = " or hardware.precision=32" if "mixed" in str(self.trainer.precision) else ""
            raise MannersError(
                f"the gradient is {norm} at step {self.global_step}: try a lower method.learning_rate or "
                f"adapter.lora_alpha{halved}. The run resumes from its last checkpoint."
            )

    def log_train_metrics(self, step: int) -> None:
        """Log the metrics of the last ``logging_steps`` optimizer steps, where they are due."""
        if step and step % self.logging_steps == 0 and step != self.train_metrics.logged_at_step:
            accumulator = self.train_metrics.reduce(self.process_group)
            self.tokens_seen += accumulator.num_targets
            metrics = self.metrics(accumulator, "train") | {
                "train/grad_norm": self.train_metrics.grad_norm,
                "train/learning_rate": self.trainer.optimizers[0].param_groups[0]["lr"],
                "train/tokens_seen": float(self.tokens_seen),
            }
            self.log_metrics(metrics, step)
            self.last_train_metrics = metrics
            self.train_metrics = MetricAccumulator(logged_at_step=step)

    def configure_optimizers(self) -> Any:
        """AdamW with weight decay on matrices only, and the learning-rate schedule."""
        params = trainable_parameters(self.model).values()
        groups = [
            {"params": [p for p in params if p.ndim >= 2], "weight_decay": self.weight_decay},
            {"params": [p for p in params if p.ndim < 2], "weight_decay": 0.0},
        ]
        optimizer = adamw([g for g in groups if g["params"]], self.optim, lr=self.learning_rate)
        warmup = self.warmup_steps if self.warmup_steps >= 1 else self.warmup_steps * self.total_steps
        factor = partial(learning_rate_factor, self.lr_scheduler_type, warmup=warmup, total=self.total_steps)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the trainable weights only, and add what an exact resume needs."""
        trainable = {f"model.{name}" for name in trainable_parameters(self.model)}
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k in trainable}
        # Each process has its own random state; the metrics are those of all processes together.
        gather = self.process_group.gather
        checkpoint["rng"] = gather([torch.get_rng_state()])
        checkpoint["cuda_rng"] = gather([torch.cuda.get_rng_state()]) if torch.cuda.is_available() else []
        checkpoint["tokens_seen"] = self.tokens_seen
        checkpoint["train_metrics"] = self.train_metrics.reduce(self.process_group).state()
        checkpoint["accumulate"] = self.accumulate

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore what ``on_save_checkpoint`` added."""
        self.rng = (checkpoint["rng"], checkpoint["cuda_rng"])
        self.tokens_seen = checkpoint["tokens_seen"]
        self.train_metrics = MetricAccumulator(**checkpoint["train_metrics"])
        if self.process_group.rank:  # the first process has the sums of all
            last = self.train_metrics
            self.train_metrics = MetricAccumulator(grad_norm=last.grad_norm, logged_at_step=last.logged_at_step)
        rescale_batch_counters(checkpoint["loops"]["fit_loop"], self.accumulate, checkpoint["accumulate"])

    def on_train_start(self) -> None:
        """Restore the random state."""
        if hasattr(self, "rng"):  # restored last, after whatever drew random numbers since the start
            torch.set_rng_state(self.rng[0][self.process_group.rank].cpu())
            if self.rng[1]:
                torch.cuda.set_rng_state(self.rng[1][self.process_group.rank].cpu())
        elif self.process_group.rank:  # adapters were initialized alike; from here each process has its own dropout
            torch.manual_seed(torch.initial_seed() + self.process_group.rank)


class MetricAccumulator:
    """Sums over the microbatches since the last logged metrics."""

    def __init__(
        self,
        loss_sum: float = 0.0,
        num_correct: int = 0,
        num_targets: int = 0,
        num_tokens: int = 0,
        num_padded_tokens: int = 0,
        grad_norm: float = 0.0,
        logged_at_step: int = 0,
    ):
        self.loss_sum, self.num_correct, self.num_targets = loss_sum, num_correct, num_targets
        self.num_tokens, self.num_padded_tokens = num_tokens, num_padded_tokens
        self.grad_norm, self.logged_at_step = grad_norm, logged_at_step
        self.started_at = time.perf_counter()

    def add(self, loss: torch.Tensor, num_correct: int, num_targets: int, batch: Batch) -> None:
        """Count one batch; ``loss`` is the scalar sum over its targets."""
        self.loss_sum += loss.item()
        self.num_correct += num_correct
        self.num_targets += num_targets
        self.num_tokens += int(batch["tokens"])
        # The head of a frozen base gets features, which have no padding.
        self.num_padded_tokens += batch["input_ids"].numel() if "input_ids" in batch else int(batch["tokens"])

    def reduce(self, process_group: ProcessGroup) -> "MetricAccumulator":
        """The sums over all processes. A collective operation: every process has to call it."""
        if process_group.size == 1:
            return self
        own = [self.loss_sum, self.num_correct, self.num_targets, self.num_tokens, self.num_padded_tokens]
        loss_sum, *counts = process_group.sum(torch.tensor(own).double()).tolist()
        correct, targets, tokens, padded = map(int, counts)
        total = MetricAccumulator(loss_sum, correct, targets, tokens, padded, self.grad_norm, self.logged_at_step)
        total.started_at = self.started_at
        return total

    @property
    def loss(self) -> float:
        """Mean loss per target."""
        return self.loss_sum / max(self.num_targets, 1)

    @property
    def accuracy(self) -> float:
        """Fraction of the targets that were predicted right."""
        return self.num_correct / max(self.num_targets, 1)

    @property
    def tokens_per_second(self) -> float:
        """Tokens per second of this process or, after ``reduce``, of all."""
        return self.num_tokens / (time.perf_counter() - self.started_at)

    def metrics(self, prefix: str) -> dict[str, float]:
        """What every method logs, each as ``prefix``/name."""
        return {
            f"{prefix}/loss": self.loss,
            f"{prefix}/non_padding_fraction": self.num_tokens / max(self.num_padded_tokens, 1),
            f"{prefix}/tokens_per_second": self.tokens_per_second,
        }

    def state(self) -> dict[str, Any]:
        """The sums, for a checkpoint."""
        return {k: v for k, v in vars(self).items() if k != "started_at"}


@dataclass
class TrainResult:
    steps: int
    best_step: int
    best_loss: float
    resumed_from: int  # 0 for a run that was never interrupted


def fit_with_lightning(
    module: TrainingModule,
    batches: ResumableBatches,
    eval_batches: list[Batch],
    folder: Path,
    device: Device,
    eval_steps: int,
    save_steps: int,
    patience: int,
    process_group: ProcessGroup = SINGLE_PROCESS,
    strategy: str = "ddp",
) -> TrainResult:
    """Train on all of ``batches``; ``module`` ends with the weights of the lowest validation loss.

    ``folder`` keeps the last checkpoint. Called again after a kill, it resumes from there: on a CPU to the very same
    weights, since the order of the data, the optimizer and the random numbers are all restored.

    Where a GPU runs out of memory, the microbatch is halved and training resumes from the last checkpoint; the
    optimizer steps stay the same. Only with one process: the others would wait for one that starts over.

    Every one of several processes calls it, with its own part of the batches. Only the first one writes files and ends
    with the best weights; where the weights were sharded (``strategy="fsdp"``), they are only in the folder. Raises
    OutOfMemoryError where not even one row fits.
    """
    train = partial(
        train_once, module, batches, eval_batches, folder, device, eval_steps, save_steps, patience, process_group,
        strategy,
    )  # fmt: skip
    while True:
        try:
            return train(can_retry=(can_retry := can_halve(batches, device, process_group)))
        except torch.OutOfMemoryError:
            if not (can_retry and (folder / LAST).exists()):
                raise
        # Only here, where the exception and its traceback are gone, can the activations be freed.
        module.zero_grad(set_to_none=True)
        module.eval_metrics = MetricAccumulator()
        gc.collect()
        torch.cuda.empty_cache()
        batches.set_microbatch_size(-(-batches.batch_size // (2 * batches.num_microbatches)))
        batches.position = 0
        log_info(
            f"out of memory: resuming from the last checkpoint with hardware.microbatch_size={batches.microbatch_size}"
        )


def can_halve(batches: ResumableBatches, device: Device, process_group: ProcessGroup) -> bool:
    """Whether a run that is out of memory can go on with a smaller microbatch."""
    return device.kind in RETRY_ON and process_group.size == 1 and batches.microbatch_size > 1


def train_once(
    module: TrainingModule,
    batches: ResumableBatches,
    eval_batches: list[Batch],
    folder: Path,
    device: Device,
    eval_steps: int,
    save_steps: int,
    patience: int,
    process_group: ProcessGroup,
    strategy: str,
    can_retry: bool,
) -> TrainResult:
    """Train from the last checkpoint in ``folder``, or from the start, to the end: see ``fit_with_lightning``."""
    last, total_steps = folder / LAST, len(batches) // batches.accumulate
    resumed_from = prepare_resume(batches, last) if last.exists() else 0
    module.accumulate = batches.accumulate
    checkpoints = CheckpointCallback(folder, save_steps, eval_steps, process_group, save_initial=can_retry)
    callbacks: list[Callback] = [MetricsCallback(), checkpoints, ProgressBar(total_steps, process_group.rank == 0)]
    if patience:  # before the checkpoint callback, so that a checkpoint holds its state after the validation
        callbacks.insert(0, EarlyStopping("eval/loss", patience=patience, check_finite=False))
    module.train()
    # Lightning would take a bare list for several dataloaders.
    eval_loader: Any = DataLoader(eval_batches, batch_size=None)  # type: ignore[arg-type]
    trainer = L.Trainer(
        accelerator=device.kind if device.kind != "cuda" else "gpu",
        devices=process_group.size,
        strategy=lightning_strategy(strategy, process_group.size),
        precision=device.lightning_precision,  # type: ignore[arg-type]
        max_epochs=1,  # of the one long sequence that `batches` is
        accumulate_grad_batches=batches.accumulate,
        val_check_interval=min(eval_steps, total_steps) * batches.accumulate,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=folder,
        plugins=[AtomicCheckpointIO()],
        callbacks=callbacks,
    )
    with signals.defer_signals():
        trainer.fit(module, batches, eval_loader, ckpt_path=last if last.exists() else None, weights_only=True)
    if checkpoints.validated_at != trainer.global_step:  # the run may end between two validations
        trainer.validate(module, eval_loader, verbose=False)
        checkpoints.keep_if_best(module, float(trainer.callback_metrics["eval/loss"]), trainer.global_step)
    if process_group.rank == 0 and not (process_group.size > 1 and strategy == "fsdp"):
        load_best_weights(folder, module.model)
    return TrainResult(trainer.global_step, checkpoints.best_step, checkpoints.best_loss, resumed_from)


def prepare_resume(batches: ResumableBatches, checkpoint: Path) -> int:
    """The optimizer step of ``checkpoint``. A run that once ran out of memory keeps its smaller microbatch."""
    saved = torch.load(checkpoint, weights_only=True, map_location="cpu")
    if saved["accumulate"] > batches.accumulate:
        batches.set_microbatch_size(-(-batches.batch_size * batches.accumulate_batches // saved["accumulate"]))
    return int(saved["global_step"])


def rescale_batch_counters(fit_loop: dict[str, Any], accumulate: int, saved_accumulate: int) -> None:
    """Lightning counts microbatches: make those of a checkpoint count ``accumulate`` of them in an optimizer step.

    Checkpoints are written between two optimizer steps, so that ``ready`` is a multiple. The last microbatch may not be
    ``completed`` yet, by which Lightning tells where in its loop the checkpoint was written.
    """
    progress = fit_loop["epoch_loop.batch_progress"]
    for counters in (progress["total"], progress["current"]):
        shift = counters["ready"] * accumulate // saved_accumulate - counters["ready"]
        counters.update({name: count + shift for name, count in counters.items()})
