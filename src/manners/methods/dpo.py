"""Direct preference optimisation by TRL's DPOTrainer. Rafailov et al. 2023, arXiv 2305.18290.

Equation 7: a pair's loss is ``−log σ(β[(log π(w) − log ref(w)) − (log π(l) − log ref(l))])``, of the better reply w and
the worse one l, whose log-probabilities are sums over their tokens. So it is log 2 where the policy is the reference.
"""

import math
import os
import shutil
import time
from pathlib import Path
from typing import Any, cast

from datasets import Dataset
from peft import PeftModel
from rich.progress import Progress, TaskID
from safetensors.torch import load_file
from transformers import PrinterCallback, TrainerCallback, TrainerState
from trl import DPOConfig, DPOTrainer

from manners.errors import MannersError
from manners.methods.lightning import LogFunction
from manners.methods.lightning_fit import BEST, LAST, TrainResult, progress_bar, save_best_weights
from manners.runtime.device import Device

Pairs = list[dict[str, list[int]]]  # prompt_ids, chosen_ids, rejected_ids
OF_THE_CLOCK = ("_runtime", "_per_second", "num_tokens")  # a resumed run would count them from its restart


class ResumableDPOTrainer(DPOTrainer):
    """TRL's, on rows that have their tokens already; it tells the hub nothing and writes no model card."""

    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        return dataset  # it would apply the chat template, and cut long rows, in its own way

    def _send_telemetry(self) -> None: ...

    def create_model_card(self, *_: Any, **__: Any) -> None: ...


def make_dpo_trainer(
    model: Any, reference: Any, tokenizer: Any, train: Pairs, held_out: Pairs, folder: Path, device: Device,
    seed: int, lr_scheduler_type: str, **settings: Any,
) -> ResumableDPOTrainer:  # fmt: skip
    """``reference`` is a frozen copy of a ``model`` that is trained whole; of a LoRA it is None: the adapter is off.

    ``settings`` are DPOConfig's.
    """
    args = DPOConfig(
        output_dir=str(folder),
        seed=seed,
        use_cpu=device.kind == "cpu",
        bf16=device.precision == "bf16",
        fp16=device.precision == "fp16",
        max_length=None,  # the rows are cut already
        per_device_eval_batch_size=settings["per_device_train_batch_size"],
        # our "constant" rises first, as that of the other methods does
        lr_scheduler_type="constant_with_warmup" if lr_scheduler_type == "constant" else lr_scheduler_type,
        eval_strategy="steps",
        logging_nan_inf_filter=False,
        dataloader_pin_memory=device.kind == "cuda",
        disable_tqdm=True,
        report_to="none",
        **settings,
    )
    args._n_gpu = min(args.n_gpu, 1)  # one process and one GPU, like Lightning's; it would take all it sees, and refuse
    rows = [Dataset.from_list(pairs) for pairs in (train, held_out)]
    made = ResumableDPOTrainer(
        model, reference, args, train_dataset=rows[0], eval_dataset=rows[1], processing_class=tokenizer
    )
    made.remove_callback(PrinterCallback)
    if isinstance(model, PeftModel):
        model.delete_adapter("ref")  # TRL's copy of the new adapter, which adds nothing: to turn it off costs less
    return made


def fit_dpo(trainer: ResumableDPOTrainer, log: LogFunction) -> TrainResult:
    """Train to the end; the model ends with the weights of the lowest held-out loss.

    Called again after a kill, on a trainer made anew, it goes on from the last checkpoint: on a CPU to the very same
    weights.
    """
    folder, model = Path(str(trainer.args.output_dir)), cast(Any, trainer.model)
    last, progress = folder / LAST, progress_bar()
    state = TrainerState.load_from_json(str(last / "trainer_state.json")) if last.exists() else trainer.state
    resumed = state.global_step
    if resumed < trainer.args.max_steps:  # the Trainer would take one step more after the last
        trainer.add_callback(DPOCallback(model, folder, log, progress))
        with progress:
            trainer.train(resume_from_checkpoint=str(last.resolve()) if last.exists() else None)
        state = trainer.state
    trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)  # the forward pass is no longer cast
    model.load_state_dict(load_file(folder / BEST), strict=False)
    losses = held_out_losses(state)
    best = min(losses, key=losses.__getitem__)
    return TrainResult(state.global_step, best, losses[best], resumed)


def held_out_losses(state: TrainerState) -> dict[int, float]:
    """Held-out loss by step, all that a resumed run had before it too."""
    return {int(r["step"]): r["eval_loss"] for r in state.log_history if "eval_loss" in r}


class DPOCallback(TrainerCallback):
    """Writes the metrics, keeps the best weights, and shows how far the run is."""

    def __init__(self, model: Any, folder: Path, log: LogFunction, progress: Progress):
        self.model, self.folder, self.log, self.progress = model, folder, log, progress

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        self.began, self.began_at = time.perf_counter(), state.global_step
        self.task: TaskID = self.progress.add_task("", total=state.max_steps, completed=state.global_step, numbers="")

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        # A metric is a mean since the last log: logged with each checkpoint, a resumed run misses none of its steps.
        control.should_log |= control.should_save
        self.progress.update(self.task, completed=state.global_step)

    def on_log(self, args: Any, state: TrainerState, control: Any, logs: Any = None, **_: Any) -> None:
        if "train_runtime" in logs:  # the whole run in numbers, of which a resumed one knows the last part alone
            return
        if not all(math.isfinite(value) for value in logs.values()):
            raise MannersError(
                f"a metric is not finite at step {state.global_step}: try a lower method.learning_rate, or "
                "hardware.precision=32. The run resumes from its last checkpoint."
            )
        self.log({name: value for name, value in logs.items() if not name.endswith(OF_THE_CLOCK)}, state.global_step)
        if "loss" in logs:
            pairs = (state.global_step - self.began_at) * args.train_batch_size * args.gradient_accumulation_steps
            rate = pairs / (time.perf_counter() - self.began)
            numbers = f"loss {logs['loss']:.3f}  ordered {logs['rewards/accuracies']:.0%}  {rate:,.0f} pairs/s"
            self.progress.update(self.task, numbers=numbers)

    def on_evaluate(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        losses = held_out_losses(state)
        if min(losses, key=losses.__getitem__) == state.global_step:
            save_best_weights(self.folder, self.model)

    def on_save(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        """Only now is the checkpoint whole: a run that is killed while it is written goes on from the one before."""
        new = self.folder / f"checkpoint-{state.global_step}"
        part = self.folder / f"{LAST}.part"
        part.unlink(missing_ok=True)
        part.symlink_to(new.name)
        os.replace(part, self.folder / LAST)
        for old in self.folder.glob("checkpoint-*"):
            if old != new:
                shutil.rmtree(old)
