"""Train a model: ``python train.py --help`` explains every option."""

from omegaconf import DictConfig

from manners.cli import main


def train(cfg: DictConfig) -> float | None:
    from manners import hub
    from manners.data import readers

    hub.require_model(cfg.model.name)
    splits = readers.read(cfg.dataset)
    print("loading torch and the model (some seconds)", flush=True)

    from manners import pipeline  # imports torch, which takes seconds: only once config and data are known to be good

    return pipeline.run(cfg, splits)


if __name__ == "__main__":
    main("train", train)
