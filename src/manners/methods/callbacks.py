"""What happens around Lightning's training steps: metrics, checkpoints that survive a kill, best weights, progress."""

import shutil
import signal
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback
from safetensors.torch import load_file, save_file

from manners.methods.distributed import SINGLE_PROCESS, ProcessGroup, full_tensor
from manners.models.lora import trainable_parameters
from manners.runtime import atomic_io, signals
from manners.runtime.progress import progress

LAST, BEST = "last.ckpt", "best.safetensors"


class MetricsCallback(Callback):
    """Logs the training metrics. It comes before CheckpointCallback: a checkpoint then never holds unlogged ones."""

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, *_: Any) -> None:
        module.log_train_metrics(trainer.global_step)


class CheckpointCallback(Callback):
    """Saves a checkpoint to resume from, keeps the best weights, and ends a run that got SIGTERM or SIGINT.

    Lightning's ModelCheckpoint is not used: at a step that is also validated it saves before the validation, whose
    result a resumed run would then lack, and its best checkpoint holds the optimizer's states too.
    """

    def __init__(
        self, folder: Path, save_steps: int, eval_steps: int, process_group: ProcessGroup, save_initial: bool = False
    ):
        self.folder, self.save_steps, self.eval_steps = folder, save_steps, eval_steps
        self.process_group, self.save_initial = process_group, save_initial
        self.best_loss, self.best_step, self.validated_at = float("inf"), 0, 0

    def on_train_start(self, trainer: L.Trainer, module: Any) -> None:
        signals.install_handlers()  # Lightning's own SIGTERM handler ends the run without a checkpoint
        if self.save_initial and not (self.folder / LAST).exists():
            trainer.save_checkpoint(self.folder / LAST)

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, *_: Any) -> None:
        if trainer.global_step % self.eval_steps:  # else after the validation, whose result belongs to the state
            self.save_if_due(trainer)

    def on_validation_end(self, trainer: L.Trainer, module: Any) -> None:
        if trainer.state.fn == "fit":
            self.keep_if_best(module, float(trainer.callback_metrics["eval/loss"]), trainer.global_step)
            self.save_if_due(trainer)

    def save_if_due(self, trainer: L.Trainer) -> None:
        """Save after every ``save_steps`` optimizer steps. Raises ShutdownRequested after a checkpoint."""
        if trainer.fit_loop._should_accumulate():
            return  # in the middle of an optimizer step
        # One process may get the signal before the others.
        shutdown = self.process_group.sum(torch.tensor(float(signals.shutdown_requested()))) > 0
        if trainer.global_step % self.save_steps == 0 or shutdown:
            trainer.save_checkpoint(self.folder / LAST)
        if shutdown:
            raise signals.ShutdownRequested(signals.pending_signals[0] if signals.pending_signals else signal.SIGTERM)

    def keep_if_best(self, module: Any, loss: float, step: int) -> None:
        """The best checkpoint: keep the weights where their validation loss is the lowest so far."""
        self.validated_at = step
        if loss < self.best_loss:
            self.best_loss, self.best_step = loss, step
            save_best_weights(self.folder, module.model, self.process_group)

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("best_loss", "best_step", "validated_at")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vars(self).update(state)


class ProgressBar(Callback):
    """Optimizer steps, loss, tokens per second, ETA.

    Lightning's RichProgressBar counts microbatches, begins at 0 in a resumed run, and shows nothing without a terminal.
    """

    def __init__(self, total_steps: int, enabled: bool):
        self.total_steps, self.enabled = total_steps, enabled

    def on_train_start(self, trainer: L.Trainer, module: Any) -> None:
        self.bar = progress(self.total_steps, "training", trainer.global_step, self.enabled)
        self.bar.__enter__()
        self.numbers: dict[str, float] = {}

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, *_: Any) -> None:
        if metrics := module.last_train_metrics:
            self.numbers = {name: metrics[f"train/{name}"] for name in ("loss", "tokens_per_second")}
            if not self.numbers["tokens_per_second"]:  # the head of a frozen base reads no tokens
                del self.numbers["tokens_per_second"]
        self.bar.update(trainer.global_step, **self.numbers)

    def on_validation_batch_end(
        self, trainer: L.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        if trainer.state.fn == "fit":
            self.bar.update_evaluation(batch_idx + 1, int(trainer.num_val_batches[0]))

    def on_exception(self, *_: Any) -> None:
        if hasattr(self, "bar"):
            self.bar.__exit__()

    def on_train_end(self, *_: Any) -> None:
        self.bar.__exit__()


class AtomicCheckpointIO(TorchCheckpointIO):
    """A kill in the middle of writing leaves the checkpoint before it, never half of one."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        with atomic_io.atomic_write(Path(path)) as file:
            torch.save(checkpoint, file)


def discard_checkpoints(folder: Path) -> None:
    """Delete what only a restart would need, once the model is saved."""
    for name in (LAST, BEST):
        (folder / name).unlink(missing_ok=True)
    for checkpoint in folder.glob("checkpoint-*"):  # TRL's are folders, and LAST is a link to one
        shutil.rmtree(checkpoint)


def save_best_weights(folder: Path, model: Any, process_group: ProcessGroup = SINGLE_PROCESS) -> None:
    """Write the trainable weights, in full or not at all. A collective operation where they are sharded."""
    weights = {k: full_tensor(v.detach()).cpu().contiguous() for k, v in trainable_parameters(model).items()}
    if process_group.rank == 0:
        with atomic_io.atomic_write(folder / BEST) as file:
            save_file(weights, file.name)


def load_best_weights(folder: Path, model: Any) -> None:
    """Give ``model`` the best weights that were kept in ``folder``."""
    model.load_state_dict(load_file(folder / BEST), strict=False)
