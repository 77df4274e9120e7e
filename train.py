"""Train a model: ``python train.py --help`` explains every option."""

import sys

from manners.cli.main import main
from manners.config.compose import RunSpec


def train(spec: RunSpec) -> float | None:
    from manners.pipeline import dependencies
    from manners.runtime import atomic_io, model_files
    from manners.tracking import store

    store.check_reachable(spec.cfg.tracking.uri)
    given = [one for one in spec.dependencies if one.explicit_source]
    trained = [one for one in (spec, *spec.dependencies) if not one.explicit_source]
    for one in given:  # mistakes in names and data are answered before torch is imported
        dependencies.resolve_explicit(one)
    for one in trained:
        model_files.require_model(one.cfg.model.name, download=not spec.cfg.plan)
        dependencies.check_target_modules(one.cfg)
        dependencies.check_rows(one)
    if spec.cfg.plan:
        return dependencies.print_plan(spec)
    for one in trained:  # after the plan, since a function may cost something to call
        dependencies.check_rewards(one.cfg)
    atomic_io.check_writable(str(spec.cfg.output_dir))
    if "torch" not in sys.modules:  # later jobs of a sweep find it loaded
        print("loading torch and the model (some seconds)", flush=True)
    for one in trained:  # rows that a chat template refuses, before anything is trained
        dependencies.usable_splits_of(one.cfg)
    if spec.cfg.estimate:
        from manners import estimate

        return estimate.report(spec)
    from manners.pipeline import run

    return run.show_preview(spec) if spec.cfg.preview else run.run(spec)


if __name__ == "__main__":
    main("train", train)
