"""The peer's side of the tracking line: Lightning's MLFlowLogger on a plain Trainer; same module, same metrics."""

import contextlib
import sys
import tempfile

import lightning as L
import task
from lightning.pytorch.loggers import MLFlowLogger
from torch.utils.data import DataLoader


class Reports(L.Callback):
    """Has the module hand its metrics to Lightning's ``log_dict``, as a module does that knows of no tracker."""

    def on_train_batch_end(self, trainer: L.Trainer, module: task.Turns, *_: object) -> None:
        module.report(trainer.global_step)


def main() -> None:
    args = task.arguments("Lightning's training steps with MLflow and without.")
    made = task.module(args.windows, args.seed, lambda metrics, step: made.log_dict(metrics))
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
            callbacks=[Reports()],
        )

        def turn(on: bool) -> None:
            trainer.loggers = [logger] if on else []

        made.turn = turn
        trainer.fit(made, DataLoader([task.batch(args.seed)] * task.steps(args.windows), batch_size=None))
        written = logger.experiment.get_metric_history(logger.run_id, "train/loss")
        assert len(written) == args.windows + 1, f"{len(written)} windows were written"  # and the one after the last
    task.say(made)


if __name__ == "__main__":
    main()
