"""Learning from preferences with TRL's trainers: DPO from pairs of replies, KTO from labeled ones.

DPO (Rafailov et al. 2023, arXiv 2305.18290), equation 7: the loss of a pair is
``−log σ(β[(log π(w) − log ref(w)) − (log π(l) − log ref(l))])``, with the chosen reply w and the rejected one l, whose
log-probabilities are sums over their tokens. It is log 2 where the policy equals the reference.

KTO (Ethayarajh et al. 2024, arXiv 2402.01306), equation 7: with r = log π(y) − log ref(y), the loss of a desirable
reply y is ``λ_D (1 − σ(β(r − z)))`` and that of an undesirable one ``λ_U (1 − σ(β(z − r)))``. z estimates the KL to the
reference: the mean of r over the batch's replies, each after the prompt of another, and at least 0. The loss is half of
λ where the policy equals the reference.
"""

import math
import os
import random
import shutil
import time
from pathlib import Path
from typing import Any, cast

from datasets import Dataset
from peft import PeftModel
from transformers import PrinterCallback, TrainerCallback, TrainerState
from transformers.integrations import rewrite_logs
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer

from manners.errors import MannersError
from manners.methods.callbacks import LAST, load_best_weights, save_best_weights
from manners.methods.lightning import LogFunction, TrainResult
from manners.runtime.device import Device
from manners.runtime.progress import progress

Rows = list[dict[str, Any]]  # as ``tokenize_pairs`` and ``tokenize_labeled_replies`` of ``data.tokenize`` give them
NOT_RESUMABLE = ("_runtime", "_per_second", "num_tokens")  # suffixes of metrics that a resumed run counts from 0


class OnTokenizedRows:
    """Makes one of TRL's trainers work on tokenized rows, without its telemetry and model card."""

    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        return dataset  # TRL would apply the chat template and truncate long rows in its own way

    def _send_telemetry(self) -> None: ...

    def create_model_card(self, *_: Any, **__: Any) -> None: ...


class ResumableDPOTrainer(OnTokenizedRows, DPOTrainer): ...


class ResumableKTOTrainer(OnTokenizedRows, KTOTrainer): ...


TRAINERS: dict[str, tuple[Any, Any, list[str]]] = {  # config, trainer, columns
    "dpo": (DPOConfig, ResumableDPOTrainer, ["prompt_ids", "chosen_ids", "rejected_ids"]),
    "kto": (KTOConfig, ResumableKTOTrainer, ["prompt_ids", "completion_ids", "KL_completion_ids", "label"]),
}


def make_preference_trainer(
    method: str, model: Any, reference: Any, tokenizer: Any, train: Rows, eval_rows: Rows, folder: Path, device: Device,
    seed: int, lr_scheduler_type: str, microbatch_size: int | None = None, **settings: Any,
) -> Any:  # fmt: skip
    """A trainer of ``model``, on tokenized pairs ("dpo") or labeled replies ("kto"); ``settings`` are its config's.

    ``microbatch_size`` splits each batch of DPO: it must divide it, since TRL takes the mean over microbatches.
    ``reference`` is a frozen copy of a fully trained ``model``; for a LoRA it is None, and the reference is the model
    with its adapter disabled.
    """
    rows = microbatch_size or settings["per_device_train_batch_size"]
    settings["gradient_accumulation_steps"] *= settings["per_device_train_batch_size"] // rows
    settings["per_device_train_batch_size"] = rows
    if method == "kto":
        train, eval_rows = (with_kl_completions(mixed_labels(r, seed), rows) for r in (train, eval_rows))
    config, trainer_class, columns = TRAINERS[method]
    args = config(
        output_dir=str(folder),
        seed=seed,
        use_cpu=device.kind == "cpu",
        bf16=device.precision == "bf16",
        fp16=device.precision == "fp16",
        per_device_eval_batch_size=rows,
        # our "constant" has a warm-up, as in the other methods
        lr_scheduler_type="constant_with_warmup" if lr_scheduler_type == "constant" else lr_scheduler_type,
        eval_strategy="steps",
        logging_nan_inf_filter=False,
        dataloader_pin_memory=device.kind == "cuda",
        disable_tqdm=True,
        report_to="none",
        **settings,
    )
    args._n_gpu = min(args.n_gpu, 1)  # one process and one GPU: else it takes every GPU that it sees, and then refuses
    datasets = [Dataset.from_list(rows).select_columns(columns) for rows in (train, eval_rows)]
    trainer = trainer_class(
        model, reference, args, train_dataset=datasets[0], eval_dataset=datasets[1], processing_class=tokenizer
    )
    trainer.remove_callback(PrinterCallback)
    if isinstance(model, PeftModel):
        model.delete_adapter("ref")  # TRL's copy of the fresh adapter, which adds nothing: disabling ours is cheaper
    return trainer


def mixed_labels(rows: Rows, seed: int) -> Rows:
    """The rows in a random order in which both labels are spread evenly: KTO reads them in this order in each epoch."""
    placed = []
    for label in (True, False):
        of_label = [row for row in rows if row["label"] == label]
        random.Random(f"{seed}/{label}").shuffle(of_label)
        placed += [((i + 0.5) / len(of_label), row) for i, row in enumerate(of_label)]
    return [row for _, row in sorted(placed, key=lambda pair: pair[0])]


def with_kl_completions(rows: Rows, batch_size: int) -> Rows:
    """The rows with the reply, ``KL_completion_ids``, that estimates the KL: of the row before in the batch, as in TRL.

    The first row of a batch takes that of the last; a batch of one row, that of the row before the batch.
    """
    mismatched = []
    for i, row in enumerate(rows):
        last = min(i - i % batch_size + batch_size, len(rows)) - 1  # of its batch
        other = last if i % batch_size == 0 and last > i else i - 1
        mismatched.append(row | {"KL_completion_ids": rows[other]["completion_ids"]})
    return mismatched


def fit_preference(trainer: Any, log: LogFunction) -> TrainResult:
    """Train to the end; the model ends with the weights of the lowest eval loss.

    Called again after a kill, with a new trainer, it resumes from the last checkpoint: on a CPU to the very same
    weights.
    """
    folder, model = Path(str(trainer.args.output_dir)), cast(Any, trainer.model)
    last = folder / LAST
    state = TrainerState.load_from_json(str(last / "trainer_state.json")) if last.exists() else trainer.state
    resumed_from = state.global_step
    if resumed_from < trainer.args.max_steps:  # at the last step the Trainer would take one more
        with progress(trainer.args.max_steps, "training", resumed_from) as bar:
            trainer.add_callback(PreferenceCallback(model, folder, log, bar))
            trainer.train(resume_from_checkpoint=str(last.resolve()) if last.exists() else None)
        state = trainer.state
    trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)  # the forward pass is no longer cast
    load_best_weights(folder, model)
    losses = eval_losses(state)
    best = min(losses, key=losses.__getitem__)
    return TrainResult(state.global_step, best, losses[best], resumed_from)


def eval_losses(state: TrainerState) -> dict[int, float]:
    """Eval loss by step, with those from before a restart."""
    return {int(r["step"]): r["eval_loss"] for r in state.log_history if "eval_loss" in r}


class PreferenceCallback(TrainerCallback):
    """Logs the metrics, keeps the best weights, and shows the progress."""

    def __init__(self, model: Any, folder: Path, log: LogFunction, bar: Any):
        self.model, self.folder, self.log, self.bar = model, folder, log, bar
        self.numbers: dict[str, float] = {}
        self.evaluated = 0  # batches

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        self.started_at, self.first_step = time.perf_counter(), state.global_step

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        # A metric is a mean since the last log: logged with each checkpoint, a resumed run lacks none of the steps.
        control.should_log |= control.should_save
        self.bar.update(state.global_step, **self.numbers)

    def on_log(self, args: Any, state: TrainerState, control: Any, logs: Any = None, **_: Any) -> None:
        """Log the metrics as train/… and eval/…. Raises MannersError where one is not finite."""
        if "train_runtime" in logs:  # a summary of the run, which in a resumed one covers the last part only
            return
        if not all(math.isfinite(value) for value in logs.values()):
            wider = ", or hardware.precision=32" if args.bf16 or args.fp16 else ""
            raise MannersError(
                f"a metric is not finite at step {state.global_step}: try a lower method.learning_rate{wider}. The run "
                "resumes from its last checkpoint."
            )
        metrics = {name: value for name, value in logs.items() if not name.endswith(NOT_RESUMABLE)}
        self.log(rewrite_logs(metrics), state.global_step)  # type: ignore[no-untyped-call]
        if "loss" in logs:
            count = (state.global_step - self.first_step) * args.train_batch_size * args.gradient_accumulation_steps
            rate = count / (time.perf_counter() - self.started_at)
            if "kl" in logs:  # of KTO
                self.numbers = {"loss": logs["loss"], "kl": logs["kl"], "replies_per_second": rate}
            else:
                self.numbers = {
                    "loss": logs["loss"],
                    "accuracy": logs["rewards/accuracies"],
                    "pairs_per_second": rate,
                }

    def on_prediction_step(self, args: Any, state: TrainerState, control: Any, **objects: Any) -> None:
        self.evaluated += 1
        self.bar.update_evaluation(self.evaluated, len(objects["eval_dataloader"]))

    def on_evaluate(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        self.evaluated = 0
        losses = eval_losses(state)
        if min(losses, key=losses.__getitem__) == state.global_step:
            save_best_weights(self.folder, self.model)

    def on_save(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        """Point to the checkpoint that is now complete: a run killed while it was written resumes from the previous."""
        new = self.folder / f"checkpoint-{state.global_step}"
        link = self.folder / f"{LAST}.part"
        link.unlink(missing_ok=True)
        link.symlink_to(new.name)
        os.replace(link, self.folder / LAST)
        for old in self.folder.glob("checkpoint-*"):
            if old != new:
                shutil.rmtree(old)
