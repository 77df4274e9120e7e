"""Train a model: ``python train.py --help`` explains every option."""

import sys

from manners.cli.main import main
from manners.config.compose import RunSpec


def train(spec: RunSpec) -> float | None:
    from manners.pipeline import dependencies
    from manners.runtime import hub

    for one in (spec, *spec.dependencies):  # mistakes in names and data are answered before torch is imported
        if not one.explicit_source:
            hub.require_model(one.cfg.model.name)
            dependencies.check_rows(one)
    if spec.cfg.plan:
        return dependencies.print_plan(spec)
    if "torch" not in sys.modules:  # later jobs of a sweep find it loaded
        print("loading torch and the model (some seconds)", flush=True)
    if spec.cfg.estimate:
        from manners import estimate

        return estimate.report(spec)
    from manners.pipeline import run

    return run.show_preview(spec) if spec.cfg.preview else run.run(spec)


if __name__ == "__main__":
    main("train", train)
