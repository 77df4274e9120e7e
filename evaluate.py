"""Put models side by side: ``python evaluate.py --help`` explains every option."""

from manners.cli.main import main
from manners.config.compose import RunSpec


def evaluate(spec: RunSpec) -> None:
    from manners.pipeline import benchmarks, model_ref
    from manners.tracking import store

    store.check_reachable(spec.cfg.tracking.uri)
    for name in [spec.cfg.run] if isinstance(spec.cfg.run, str) else spec.cfg.run:
        model_ref.resolve_model(name, spec.cfg)  # a mistake in a name is answered before torch is imported
    tasks = benchmarks.load(spec.cfg)  # and so is one in a task, or data that are not here
    print("loading torch and the models (some seconds)", flush=True)

    from manners.pipeline import evaluate

    evaluate.evaluate_models(spec.cfg, tasks)


if __name__ == "__main__":
    main("evaluate", evaluate)
