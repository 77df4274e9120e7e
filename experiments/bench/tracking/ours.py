"""Our side of the tracking line: the package's ``fit`` with its tracker, as train.py opens it, and without."""

import contextlib
import sys
import tempfile
import time

import hydra
import task

from manners.config import schema
from manners.config.compose import compose
from manners.methods.lightning import fit_with_lightning
from manners.runtime import run_dir
from manners.runtime.device import Device
from manners.runtime.paths import CONF
from manners.tracking import logger
from manners.tracking.logger import NullLogger


class Repeated(list):
    """The same batch at every step, as ``fit`` wants it."""

    accumulate = 1

    def state_dict(self) -> dict:
        return {}


def main() -> None:
    args = task.arguments("Our training steps with MLflow and without.")
    schema.register_schemas()
    with contextlib.redirect_stdout(sys.stderr), tempfile.TemporaryDirectory() as scratch:
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            cfg = compose("train", [f"output_dir={scratch}"])
        batches = Repeated([task.batch(args.seed)] * task.steps(args.windows))
        with run_dir.acquire(cfg, "", {}) as folder, logger.open_run(cfg, folder, 0, "", {}, []) as tracker:
            made, written, sent, send = (
                task.module(args.windows, args.seed, NullLogger().log),
                [],
                [],
                tracker.outbox._send_metrics,
            )

            def counted(records: list[dict]) -> None:
                send(records)
                sent.extend(records)

            def write(metrics: dict[str, float], step: int) -> None:
                tracker.log(metrics, step)
                written.append(step)

            def turn(on: bool) -> None:
                while len(sent) < len(written):
                    time.sleep(0.002)
                made.log_metrics = write if on else NullLogger().log

            tracker.outbox._send_metrics, made.turn = counted, turn
            fit_with_lightning(made, batches, batches[:1], folder.path, Device("cpu", "32"), 10**6, 10**6, 0)
    task.say(made)


if __name__ == "__main__":
    main()
