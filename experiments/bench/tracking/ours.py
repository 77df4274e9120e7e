"""Our side of the tracking benchmark: the package's training loop with train.py's logger and without."""

import contextlib
import sys
import tempfile
import time

import task

from manners.config.compose import compose, register
from manners.methods.lightning import fit_with_lightning
from manners.pipeline import dependencies
from manners.runtime import run_dir
from manners.runtime.device import Device
from manners.tracking import logger
from manners.tracking.logger import NullLogger


class RepeatedBatch(list):
    """The same batch at every step, with what ``fit_with_lightning`` needs."""

    accumulate = 1

    def state_dict(self) -> dict:
        return {}


def main() -> None:
    args = task.arguments("Our training steps with MLflow and without.")
    register()
    with contextlib.redirect_stdout(sys.stderr), tempfile.TemporaryDirectory() as scratch:
        cfg = compose("train", [f"output_dir={scratch}", "dataset.max_rows=40"])
        splits, digest = dependencies.splits_of(cfg), dependencies.digest_of(cfg)
        batches = RepeatedBatch([task.batch(args.seed)] * task.steps(args.windows))
        with (
            run_dir.acquire(cfg, {"data": digest}) as directory,
            logger.open_run(cfg, directory, splits, digest, {}, []) as mlflow_logger,
        ):
            module = task.make_module(args.windows, args.seed, NullLogger().log)
            writer, logged, sent = mlflow_logger.writer, [], []
            send_metrics = writer._send_metrics

            def send_and_count(records: list[dict]) -> None:
                send_metrics(records)
                sent.extend(records)

            def log_and_count(metrics: dict[str, float], step: int) -> None:
                mlflow_logger.log(metrics, step)
                logged.append(step)

            def switch_tracking(on: bool) -> None:
                while len(sent) < len(logged):
                    time.sleep(0.002)
                module.log_metrics = log_and_count if on else NullLogger().log

            writer._send_metrics, module.switch_tracking = send_and_count, switch_tracking
            fit_with_lightning(module, batches, batches[:1], directory.path, Device("cpu", "32"), 10**6, 10**6, 0)
    task.print_result(module)


if __name__ == "__main__":
    main()
