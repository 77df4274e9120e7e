"""Train a model: ``python train.py --help`` explains every option."""

from omegaconf import DictConfig

from manners.cli import main


def train(cfg: DictConfig) -> float | None:
    from manners import pipeline  # imports torch: only once the config is known to be good

    return pipeline.run(cfg)


if __name__ == "__main__":
    main("train", train)
