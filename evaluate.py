"""Put models side by side: ``python evaluate.py --help`` explains every option."""

from manners.cli.main import main
from manners.config.compose import RunSpec


def evaluate(spec: RunSpec) -> None:
    print("loading torch and the models (some seconds)", flush=True)

    from manners.pipeline import evaluate

    evaluate.evaluate_models(spec.cfg)


if __name__ == "__main__":
    main("evaluate", evaluate)
