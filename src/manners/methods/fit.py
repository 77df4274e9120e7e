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

from manners import disk, stop
from manners.data.batches import Batch, Batches
from manners.hardware import Device
from manners.methods.devices import strategy, whole
from manners.methods.ppo.world import ALONE, World
from manners.models.adapters import trainable

LAST, BEST = "last.ckpt", "best.safetensors"


@dataclass
class Fitted:
    steps: int
    best_step: int
    best_loss: float
    resumed_from: int  # 0 for a run that was never interrupted


def fit(
    module: Any,
    train: Batches,
    validation: list[Batch],
    folder: Path,
    device: Device,
    eval_steps: int,
    save_steps: int,
    patience: int,
    world: World = ALONE,
    sharing: str = "ddp",
) -> Fitted:
    """Train on all of ``train``; ``module`` ends with the weights of the lowest validation loss.

    ``folder`` keeps the last checkpoint. Called again after a kill, it goes on from there: on a CPU to the very same
    weights, since the order of the data, the optimizer and the random numbers are all restored.

    Of several processes each calls it, with ``train`` and ``validation`` dealt out already. The first one writes; it
    alone ends with the best weights, and where they were shared out (``sharing="fsdp"``) only in the folder.
    """
    total_steps = len(train) // train.accumulate
    keeper = Keeper(folder, save_steps, eval_steps, patience, world)
    module.train()
    # Lightning would take a bare list for several loaders.
    held_out: Any = DataLoader(validation, batch_size=None)  # type: ignore[arg-type]
    trainer = L.Trainer(
        accelerator=device.kind if device.kind != "cuda" else "gpu",
        devices=world.size,
        strategy=strategy(sharing, world.size),
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
        plugins=[AtomicCheckpoints()],
        callbacks=[Reports(), keeper, Bar(total_steps, shown=world.rank == 0)],
    )
    last = folder / LAST
    resumed = torch.load(last, weights_only=True, map_location="cpu")["global_step"] if last.exists() else 0
    with stop.later():
        trainer.fit(module, train, held_out, ckpt_path=last if last.exists() else None, weights_only=True)
    if keeper.validated_at != trainer.global_step:  # the run may end between two validations
        trainer.validate(module, held_out, verbose=False)
        keeper.keep_if_best(module, float(trainer.callback_metrics["val/loss"]), trainer.global_step)
    if world.rank == 0 and not (world.size > 1 and sharing == "fsdp"):
        load_best(folder, module.model)
    return Fitted(trainer.global_step, keeper.best_step, keeper.best_loss, resumed)


def discard_checkpoints(folder: Path) -> None:
    """Once the model is saved, what a restart would have needed only takes room."""
    for name in (LAST, BEST):
        (folder / name).unlink(missing_ok=True)
    for checkpoint in folder.glob("checkpoint-*"):  # TRL's are folders; LAST is a link to one
        shutil.rmtree(checkpoint)


def save_best(folder: Path, model: Any, world: World = ALONE) -> None:
    """The weights that training changes, as a whole or not at all."""
    weights = {k: whole(v.detach()).cpu().contiguous() for k, v in trainable(model).items()}
    if world.rank == 0:
        with disk.whole(folder / BEST) as file:
            save_file(weights, file.name)


def load_best(folder: Path, model: Any) -> None:
    model.load_state_dict(load_file(folder / BEST), strict=False)


class Reports(Callback):
    """Has the module write its metrics. Comes before Keeper, so that a checkpoint never holds unwritten ones."""

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, *_: Any) -> None:
        module.report(trainer.global_step)


class Keeper(Callback):
    """Saves what a restart needs, keeps the best weights, and stops a run that no longer improves, or is told to."""

    def __init__(self, folder: Path, save_steps: int, eval_steps: int, patience: int, world: World):
        self.folder, self.save_steps, self.eval_steps, self.patience = folder, save_steps, eval_steps, patience
        self.world = world
        self.best_loss, self.best_step, self.validated_at, self.without_gain = float("inf"), 0, 0, 0

    def on_train_start(self, *_: Any) -> None:
        stop.hold()  # Lightning has put a handler of its own on SIGTERM, which ends the run without saving it

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
        told = self.world.sum(torch.tensor(float(stop.asked()))) > 0  # one process may have heard of it before others
        if trainer.global_step % self.save_steps == 0 or told:
            trainer.save_checkpoint(self.folder / LAST)
        if told:
            raise stop.Stopped(stop.noted[0] if stop.noted else signal.SIGTERM)

    def keep_if_best(self, module: Any, loss: float, step: int) -> None:
        self.validated_at = step
        self.without_gain += 1
        if loss < self.best_loss:
            self.best_loss, self.best_step, self.without_gain = loss, step, 0
            save_best(self.folder, module.model, self.world)

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("best_loss", "best_step", "validated_at", "without_gain")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vars(self).update(state)


class AtomicCheckpoints(TorchCheckpointIO):
    """A kill in the middle of writing leaves the checkpoint before, never half of one."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        with disk.whole(Path(path)) as file:
            torch.save(checkpoint, file)


def bar(what: str = "training", shown: bool = True) -> Progress:
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


class Bar(Callback):
    """Steps, loss, tokens a second, time left."""

    def __init__(self, total: int, shown: bool):
        self.total = total
        self.progress = bar(shown=shown)

    def on_train_start(self, trainer: L.Trainer, module: Any) -> None:
        self.task = self.progress.add_task("", total=self.total, completed=trainer.global_step, numbers="")
        self.progress.start()

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, *_: Any) -> None:
        if trainer.global_step % module.logging_steps == 1 and module.window.trained:
            numbers = f"loss {module.window.loss:.3f}  {module.window.tokens_per_second:,.0f} tokens/s"
            self.progress.update(self.task, numbers=numbers)
        self.progress.update(self.task, completed=trainer.global_step)

    def on_exception(self, *_: Any) -> None:
        self.progress.stop()

    def on_train_end(self, *_: Any) -> None:
        self.progress.stop()
