"""What every LightningModule of ours shares: AdamW, its schedule, clipping, and exact resuming."""

import math
import time
from collections.abc import Callable
from typing import Any

import lightning as L
import torch

from manners.errors import MannersError
from manners.methods.distributed import SINGLE_PROCESS, ProcessGroup, full_tensor, shard_with_fsdp
from manners.methods.optim import adamw
from manners.models.lora import trainable_parameters

LogFunction = Callable[[dict[str, float], int], None]


class TrainingModule(L.LightningModule):
    """Trains ``model`` by ``step``, which a method defines: a batch's summed loss, right guesses, and their number."""

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
        self.write = log
        self.total_steps, self.learning_rate = total_steps, learning_rate
        self.lr_scheduler_type, self.warmup_steps = lr_scheduler_type, warmup_steps
        self.weight_decay, self.max_grad_norm = weight_decay, max_grad_norm
        self.accumulate, self.logging_steps, self.optim = accumulate, logging_steps, optim
        self.strict_loading = False  # a checkpoint holds only what training changes
        self.window = MetricAccumulator()
        self.validated = MetricAccumulator()
        self.tokens_seen = 0  # items that carried loss, up to the last written metrics

    def step(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, int, int]:
        raise NotImplementedError

    def metrics(self, window: "MetricAccumulator", prefix: str) -> dict[str, float]:
        """What is written of a window, in the method's own words."""
        raise NotImplementedError

    def configure_model(self) -> None:
        shard_with_fsdp(self)

    def counted(self, batch: dict[str, torch.Tensor], window: "MetricAccumulator") -> torch.Tensor:
        """The batch's summed loss, and its figures in ``window``; an ``idle`` one has none (see ``batches.share``)."""
        loss, right, trained = self.step(batch)
        if "idle" in batch:
            loss, right, trained = loss * 0, 0, 0
        window.add(loss, right, trained, batch)
        return loss

    def training_step(self, batch: dict[str, torch.Tensor], _index: int) -> torch.Tensor:
        loss = self.counted(batch, self.window)
        # Lightning divides by the number of micro-batches, DDP and FSDP by that of devices; the mean is over the items
        # of the optimizer step, wherever they are.
        return loss / batch["step_num_targets"] * (self.accumulate * self.process_group.size)

    def validation_step(self, batch: dict[str, torch.Tensor], _index: int) -> None:
        self.counted(batch, self.validated)

    def on_validation_epoch_end(self) -> None:
        metrics = self.metrics(self.validated.over(self.process_group), "val")
        self.validated = MetricAccumulator()
        if not self.trainer.sanity_checking:
            self.write(metrics, self.global_step)
            self.log("val/loss", metrics["val/loss"], logger=False)

    def configure_gradient_clipping(self, optimizer: torch.optim.Optimizer, *_: Any, **__: Any) -> None:
        params = [p for group in optimizer.param_groups for p in group["params"]]
        norm = torch.nn.utils.clip_grad_norm_(params, self.max_grad_norm or math.inf)
        self.window.grad_norm = float(full_tensor(norm))
        if not math.isfinite(self.window.grad_norm):
            raise MannersError(
                f"the gradient is {self.window.grad_norm} at step {self.global_step}: try a lower "
                "method.learning_rate, or hardware.precision=32. The run resumes from its last checkpoint."
            )

    def report(self, step: int) -> None:
        """Write the metrics of the last optimizer steps, every ``logging_steps`` of them."""
        if step and step % self.logging_steps == 0 and step != self.window.written_at:
            rate, window = self.trainer.optimizers[0].param_groups[0]["lr"], self.window.over(self.process_group)
            self.tokens_seen += window.num_targets
            metrics = self.metrics(window, "train") | {
                "train/grad_norm": self.window.grad_norm,
                "train/learning_rate": rate,
                "train/tokens_seen": float(self.tokens_seen),
            }
            self.write(metrics, step)
            self.window = MetricAccumulator(written_at=step)

    def configure_optimizers(self) -> Any:
        params = trainable_parameters(self.model).values()
        groups = [
            {"params": [p for p in params if p.ndim >= 2], "weight_decay": self.weight_decay},
            {"params": [p for p in params if p.ndim < 2], "weight_decay": 0.0},
        ]
        optimizer = adamw([g for g in groups if g["params"]], self.optim, lr=self.learning_rate)
        warmup = self.warmup_steps if self.warmup_steps >= 1 else self.warmup_steps * self.total_steps
        shape = schedule(self.lr_scheduler_type, warmup, self.total_steps)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, shape)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        keep = {f"model.{name}" for name in trainable_parameters(self.model)}
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k in keep}
        # Each process has random numbers of its own; the figures are all processes' together.
        checkpoint["rng"] = self.process_group.gather([torch.get_rng_state()])
        checkpoint["cuda_rng"] = self.process_group.gather([torch.cuda.get_rng_state()]) if torch.cuda.is_available() else []
        checkpoint["tokens_seen"] = self.tokens_seen
        checkpoint["window"] = self.window.over(self.process_group).state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.rng = (checkpoint["rng"], checkpoint["cuda_rng"])
        self.tokens_seen = checkpoint["tokens_seen"]
        self.window = MetricAccumulator(**checkpoint["window"])
        if self.process_group.rank:  # the first process has the sums of all
            self.window = MetricAccumulator(grad_norm=self.window.grad_norm, written_at=self.window.written_at)

    def on_train_start(self) -> None:
        if hasattr(self, "rng"):  # after whatever drew random numbers on the way here
            torch.set_rng_state(self.rng[0][self.process_group.rank].cpu())
            if self.rng[1]:
                torch.cuda.set_rng_state(self.rng[1][self.process_group.rank].cpu())
        elif self.process_group.rank:  # adapters began alike everywhere; from now on each has a dropout of its own
            torch.manual_seed(torch.initial_seed() + self.process_group.rank)


class MetricAccumulator:
    """Sums over the micro-batches since the last written metrics."""

    def __init__(
        self, loss_sum: float = 0.0, right: int = 0, trained: int = 0, real: int = 0, slots: int = 0,
        grad_norm: float = 0.0, written_at: int = 0,
    ):  # fmt: skip
        self.loss_sum, self.right, self.num_targets, self.real, self.slots = loss_sum, right, trained, real, slots
        self.grad_norm, self.written_at = grad_norm, written_at
        self.started = time.perf_counter()

    def add(self, loss: torch.Tensor, right: int, trained: int, batch: dict[str, torch.Tensor]) -> None:
        self.loss_sum += loss.item()
        self.right += right
        self.num_targets += trained
        self.real += int(batch["tokens"])
        self.slots += batch["input_ids"].numel()

    def over(self, process_group: ProcessGroup) -> "MetricAccumulator":
        """That of all processes together. Each of them has to ask for it."""
        if process_group.size == 1:
            return self
        sums = process_group.sum(torch.tensor([self.loss_sum, self.right, self.num_targets, self.real, self.slots]).double())
        loss_sum, right, trained, real, slots = sums.tolist()
        counts = int(right), int(trained), int(real), int(slots)
        both = MetricAccumulator(loss_sum, *counts, grad_norm=self.grad_norm, written_at=self.written_at)
        both.started = self.started
        return both

    @property
    def loss(self) -> float:
        return self.loss_sum / max(self.num_targets, 1)

    @property
    def accuracy(self) -> float:
        return self.right / max(self.num_targets, 1)

    @property
    def tokens_per_second(self) -> float:
        return self.real / (time.perf_counter() - self.started)

    def metrics(self, prefix: str) -> dict[str, float]:
        """``fill`` is the share of the batch that is not padding."""
        return {
            f"{prefix}/loss": self.loss,
            f"{prefix}/fill": self.real / max(self.slots, 1),
            f"{prefix}/tokens_per_second": self.tokens_per_second,
        }

    def state(self) -> dict[str, Any]:
        return {k: v for k, v in vars(self).items() if k != "started"}


def schedule(kind: str, warmup: float, total: int) -> Callable[[int], float]:
    """The learning rate's factor at an optimizer step: up over ``warmup`` steps, then down to 0 at ``total``."""

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        done = min((step - warmup) / max(total - warmup, 1), 1.0)
        return {"constant": 1.0, "linear": 1.0 - done, "cosine": 0.5 * (1.0 + math.cos(math.pi * done))}[kind]

    return factor
