"""Run a LightningModule to its end: checkpoints that survive a kill, the best weights, a progress bar."""

import shutil
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader

from manners.data.batching import Batch, ResumableBatches
from manners.methods.distributed import SINGLE_PROCESS, ProcessGroup, full_tensor, lightning_strategy
from manners.models.lora import trainable_parameters
from manners.runtime import atomic_io, signals
from manners.runtime.device import Device

LAST, BEST = "last.ckpt", "best.safetensors"


@dataclass
class TrainResult:
    steps: int
    best_step: int
    best_loss: float
    resumed_from: int  # 0 for a run that was never interrupted


def fit_with_lightning(
    module: Any,
    train: ResumableBatches,
    validation: list[Batch],
    folder: Path,
    device: Device,
    eval_steps: int,
    save_steps: int,
    patience: int,
    process_group: ProcessGroup = SINGLE_PROCESS,
    sharing: str = "ddp",
) -> TrainResult:
    """Train on all of ``train``; ``module`` ends with the weights of the lowest validation loss.

    ``folder`` keeps the last checkpoint. Called again after a kill, it goes on from there: on a CPU to the very same
    weights, since the order of the data, the optimizer and the random numbers are all restored.

    Of several processes each calls it, with ``train`` and ``validation`` dealt out already. The first one writes; it
    alone ends with the best weights, and where they were shared out (``sharing="fsdp"``) only in the folder.
    """
    total_steps = len(train) // train.accumulate
    keeper = CheckpointCallback(folder, save_steps, eval_steps, patience, process_group)
    module.train()
    # Lightning would take a bare list for several loaders.
    held_out: Any = DataLoader(validation, batch_size=None)  # type: ignore[arg-type]
    trainer = L.Trainer(
        accelerator=device.kind if device.kind != "cuda" else "gpu",
        devices=process_group.size,
        strategy=lightning_strategy(sharing, process_group.size),
        precision=device.lightning_precision,  # type: ignore[arg-type]
        max_epochs=1,  # of the one long list that `train` is
        accumulate_grad_batches=train.accumulate,
        val_check_interval=min(eval_steps, total_steps) * train.accumulate,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=folder,
        plugins=[AtomicCheckpointIO()],
        callbacks=[MetricsCallback(), keeper, ProgressBar(total_steps, shown=process_group.rank == 0)],
    )
    last = folder / LAST
    resumed = torch.load(last, weights_only=True, map_location="cpu")["global_step"] if last.exists() else 0
    with signals.defer_signals():
        trainer.fit(module, train, held_out, ckpt_path=last if last.exists() else None, weights_only=True)
    if keeper.validated_at != trainer.global_step:  # the run may end between two validations
        trainer.validate(module, held_out, verbose=False)
        keeper.keep_if_best(module, float(trainer.callback_metrics["val/loss"]), trainer.global_step)
    if process_group.rank == 0 and not (process_group.size > 1 and sharing == "fsdp"):
        load_best_weights(folder, module.model)
    return TrainResult(trainer.global_step, keeper.best_step, keeper.best_loss, resumed)


def discard_checkpoints(folder: Path) -> None:
    """Once the model is saved, what a restart would have needed only takes room."""
    for name in (LAST, BEST):
        (folder / name).unlink(missing_ok=True)
    for checkpoint in folder.glob("checkpoint-*"):  # TRL's are folders; LAST is a link to one
        shutil.rmtree(checkpoint)


def save_best_weights(folder: Path, model: Any, process_group: ProcessGroup = SINGLE_PROCESS) -> None:
    """The weights that training changes, as a whole or not at all."""
    weights = {k: full_tensor(v.detach()).cpu().contiguous() for k, v in trainable_parameters(model).items()}
    if process_group.rank == 0:
        with atomic_io.atomic_write(folder / BEST) as file:
            save_file(weights, file.name)


def load_best_weights(folder: Path, model: Any) -> None:
    model.load_state_dict(load_file(folder / BEST), strict=False)


class MetricsCallback(Callback):
    """Has the module write its metrics. Comes before Keeper, so that a checkpoint never holds unwritten ones."""

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, *_: Any) -> None:
        module.report(trainer.global_step)


class CheckpointCallback(Callback):
    """Saves what a restart needs, keeps the best weights, and stops a run that no longer improves, or is told to."""

    def __init__(self, folder: Path, save_steps: int, eval_steps: int, patience: int, process_group: ProcessGroup):
        self.folder, self.save_steps, self.eval_steps, self.patience = folder, save_steps, eval_steps, patience
        self.process_group = process_group
        self.best_loss, self.best_step, self.validated_at, self.without_gain = float("inf"), 0, 0, 0

    def on_train_start(self, *_: Any) -> None:
        signals.install_handlers()  # Lightning's own handler of SIGTERM ends the run without saving it

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, *_: Any) -> None:
        if trainer.global_step % self.eval_steps:  # else after the validation, whose result belongs to the state
            self.save_if_due(trainer)

    def on_validation_end(self, trainer: L.Trainer, module: Any) -> None:
        if trainer.state.fn == "fit":
            self.keep_if_best(module, float(trainer.callback_metrics["val/loss"]), trainer.global_step)
            if self.patience and self.without_gain >= self.patience:
                trainer.should_stop = True
            self.save_if_due(trainer)

    def save_if_due(self, trainer: L.Trainer) -> None:
        if trainer.fit_loop._should_accumulate():
            return  # in the middle of an optimizer step
        told = (
            self.process_group.sum(torch.tensor(float(signals.shutdown_requested()))) > 0
        )  # one process may have heard of it before others
        if trainer.global_step % self.save_steps == 0 or told:
            trainer.save_checkpoint(self.folder / LAST)
        if told:
            raise signals.ShutdownRequested(signals.pending_signals[0] if signals.pending_signals else signal.SIGTERM)

    def keep_if_best(self, module: Any, loss: float, step: int) -> None:
        self.validated_at = step
        self.without_gain += 1
        if loss < self.best_loss:
            self.best_loss, self.best_step, self.without_gain = loss, step, 0
            save_best_weights(self.folder, module.model, self.process_group)

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("best_loss", "best_step", "validated_at", "without_gain")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vars(self).update(state)


class AtomicCheckpointIO(TorchCheckpointIO):
    """A kill in the middle of writing leaves the checkpoint before, never half of one."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        with atomic_io.atomic_write(Path(path)) as file:
            torch.save(checkpoint, file)


def progress_bar(what: str = "training", shown: bool = True) -> Progress:
    """Steps, the field ``numbers``, time passed and time left."""
    return Progress(
        TextColumn(what),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[numbers]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        disable=not shown,
    )


class ProgressBar(Callback):
    """Steps, loss, tokens a second, time left."""

    def __init__(self, total: int, shown: bool):
        self.total = total
        self.progress = progress_bar(shown=shown)

    def on_train_start(self, trainer: L.Trainer, module: Any) -> None:
        self.task = self.progress.add_task("", total=self.total, completed=trainer.global_step, numbers="")
        self.progress.start()

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, *_: Any) -> None:
        if trainer.global_step % module.logging_steps == 1 and module.window.num_targets:
            numbers = f"loss {module.window.loss:.3f}  {module.window.tokens_per_second:,.0f} tokens/s"
            self.progress.update(self.task, numbers=numbers)
        self.progress.update(self.task, completed=trainer.global_step)

    def on_exception(self, *_: Any) -> None:
        self.progress.stop()

    def on_train_end(self, *_: Any) -> None:
        self.progress.stop()
