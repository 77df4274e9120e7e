"""Train a model: ``python train.py --help`` explains every option."""

import sys

from omegaconf import DictConfig

from manners.cli import main
from manners.composing import needs


def train(cfg: DictConfig, overrides: list[str]) -> float | None:
    from manners import hub
    from manners.chain import Stage, show

    stage, inputs = Stage(cfg, overrides), needs(cfg, overrides)
    for one in (stage, *inputs):
        if not one.given:
            hub.require_model(one.cfg.model.name)
            one.splits  # noqa: B018  read now: bad data are answered at once
    if stage.cfg.lineage == "show":
        return show(stage, inputs)
    if "torch" not in sys.modules:  # a sweep's later jobs find it loaded
        print("loading torch and the model (some seconds)", flush=True)

    from manners import pipeline  # imports torch, which takes seconds: only once config and data are known to be good

    return pipeline.run(stage, inputs)


if __name__ == "__main__":
    main("train", train)
