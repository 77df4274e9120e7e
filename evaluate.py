"""Put models side by side: ``python evaluate.py --help`` explains every option."""

from omegaconf import DictConfig

from manners.cli import main


def evaluate(cfg: DictConfig, _overrides: list[str]) -> None:
    print("loading torch and the models (some seconds)", flush=True)

    from manners import compare

    compare.run(cfg)


if __name__ == "__main__":
    main("evaluate", evaluate)
