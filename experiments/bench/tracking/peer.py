"""The peer's side of the tracking benchmark: Lightning's MLFlowLogger on a plain Trainer; same module, same metrics."""

import contextlib
import sys
import tempfile

import lightning as L
import task
from lightning.pytorch.loggers import MLFlowLogger
from torch.utils.data import DataLoader


class MetricsCallback(L.Callback):
    """Has the module log its metrics with Lightning's ``log_dict``, as a module without a logger of its own does."""

    def on_train_batch_end(self, trainer: L.Trainer, module: task.AlternatingTracking, *_: object) -> None:
        module.log_train_metrics(trainer.global_step)


def main() -> None:
    args = task.arguments("Lightning's training steps with MLflow and without.")
    sft_module = task.make_module(args.windows, args.seed, lambda metrics, step: sft_module.log_dict(metrics))
    with contextlib.redirect_stdout(sys.stderr), tempfile.TemporaryDirectory() as scratch:
        logger = MLFlowLogger("bench", tracking_uri=f"sqlite:///{scratch}/mlflow.db", artifact_location=scratch)
        trainer = L.Trainer(
            accelerator="cpu",
            max_epochs=1,
            logger=logger,
            log_every_n_steps=task.WINDOW,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[MetricsCallback()],
        )

        def switch_tracking(on: bool) -> None:
            trainer.loggers = [logger] if on else []

        sft_module.switch_tracking = switch_tracking
        trainer.fit(sft_module, DataLoader([task.batch(args.seed)] * task.steps(args.windows), batch_size=None))
        logged = logger.experiment.get_metric_history(logger.run_id, "train/loss")
        assert len(logged) == args.windows + 1, f"{len(logged)} windows were logged"  # and the one after the last
    task.print_result(sft_module)


if __name__ == "__main__":
    main()
