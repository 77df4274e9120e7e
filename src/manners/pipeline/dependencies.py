"""The runs that a run starts from: found among the finished ones, taken as given, or trained here and now."""

import json
import os
import shlex
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from manners.config.compose import RunSpec
from manners.data import sources
from manners.data.loading import Splits, load_splits
from manners.data.types import data_digest
from manners.errors import MannersError, did_you_mean
from manners.runtime import run_dir
from manners.runtime.run_dir import RunArtifact, RunDir
from manners.tracking import store

STARTING_METHODS = {"policy": ("sft", "ppo", "rloo", "dpo"), "reward": ("reward",)}  # role → methods that can fill it


def splits_of(cfg: DictConfig) -> Splits:
    """The rows of a run's data, read once for all jobs and stages of a process that have the same data."""
    return read_splits(*data_key(cfg.dataset))


def usable_splits_of(cfg: DictConfig) -> Splits:
    """The rows that a run works with: those that its model's chat template can render. Imports torch.

    Raises MannersError for a row that it refuses; ``dataset.on_invalid_row=skip`` skips such rows.
    """
    m, splits = cfg.model, splits_of(cfg)
    if not m.decoder:
        return splits
    return read_renderable_splits(*data_key(cfg.dataset), m.name, m.revision, m.chat_template, tuple(m.added_tokens))


def digest_of(cfg: DictConfig) -> str:
    """A hash of the training rows of a run."""
    return read_digest(*data_key(cfg.dataset))


def data_key(dataset: DictConfig) -> tuple[str, tuple[int, ...]]:
    """What the rows depend on: the config, and when its files were last written."""
    place = sources.local_path(dataset.path)
    written = tuple(f.stat().st_mtime_ns for f in sources.data_files(place)) if place else ()
    return json.dumps(OmegaConf.to_container(dataset, resolve=True)), written


@lru_cache(maxsize=4)
def read_splits(dataset: str, written: tuple[int, ...]) -> Splits:
    return load_splits(OmegaConf.create(json.loads(dataset)))


@lru_cache(maxsize=4)
def read_renderable_splits(
    dataset: str, written: tuple[int, ...], name: str, revision: str | None, template: str, tokens: tuple[str, ...]
) -> Splits:
    from manners.data.template_check import renderable_splits
    from manners.models.loading import load_tokenizer

    cfg, tokenizer = json.loads(dataset), load_tokenizer(name, revision, template, added_tokens=tokens)
    return renderable_splits(read_splits(dataset, written), tokenizer, cfg["loss_roles"], cfg["on_invalid_row"])


@lru_cache(maxsize=4)
def read_digest(dataset: str, written: tuple[int, ...]) -> str:
    return data_digest(read_splits(dataset, written).train)


def command_of(spec: RunSpec) -> str:
    return shlex.join(["python", "train.py", *spec.overrides])


def dependency_fingerprint(spec: RunSpec) -> str:
    """The weights fingerprint of the run that a dependency stands for: given, finished, or still to be trained."""
    if spec.explicit_source:
        return resolve_explicit(spec).fingerprint
    return run_dir.weights_fingerprint(spec.cfg, digest_of(spec.cfg))


def find_or_train(spec: RunSpec, train: Callable[[RunSpec], RunArtifact], console: Console) -> RunArtifact:
    """What a run starts from. Parallel jobs that need the same run wait until one of them has trained it.

    Raises MannersError where an explicit source is no run, or does not fit.
    """
    if spec.explicit_source:
        return resolve_explicit(spec)
    fingerprint = dependency_fingerprint(spec)
    if found := find_finished(spec.cfg, fingerprint):
        return found
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise MannersError(f"there is no {spec.role} run yet. Train it first, in one process: {command_of(spec)}")

    def report_waiting() -> None:
        console.print(f"another job is training the {spec.role}: waiting for it")

    with run_dir.stage_lock(spec.cfg.output_dir, fingerprint, report_waiting):
        if found := find_finished(spec.cfg, fingerprint):
            return found
        console.rule(spec.role, align="left")
        console.print(command_of(spec), highlight=False, soft_wrap=True)
        return train(spec)


def find_finished(cfg: DictConfig, fingerprint: str) -> RunArtifact | None:
    """The finished run with these weights, in the run directories or, failing that, in the tracking store."""
    return run_dir.find_completed(cfg.output_dir, fingerprint) or store.find_stage_run(cfg, fingerprint)


def resolve_explicit(spec: RunSpec) -> RunArtifact:
    """The run or folder that the config names. Raises MannersError where it is none, or does not fit."""
    cfg, source = spec.cfg, spec.explicit_source
    found = run_dir.find_by_name(source, cfg.output_dir) or store.fetch_run(cfg, source)
    if found is None:
        names = [p.name for p in (Path(cfg.output_dir) / "runs").glob("*")]
        raise MannersError(
            f"{spec.role}_from={source} is neither a folder with a model nor a finished run. "
            f"{did_you_mean(source, names) if names else ''}"
        )
    check_compatible(spec, found)
    return found


def check_compatible(spec: RunSpec, found: RunArtifact) -> None:
    """Refuse a run of another method, and a policy on another base or template. Raises MannersError."""
    made_by, named = found.config, f"{spec.role}_from={spec.explicit_source}"
    if made_by is None:
        return
    methods = STARTING_METHODS[spec.role]
    if made_by.method.name not in methods:
        raise MannersError(f"{named} is a run of method={made_by.method.name}: {' or '.join(methods)} is needed.")
    if spec.role == "reward":
        return  # it reads replies with a tokenizer of its own
    if made_by.model.added_tokens:
        raise MannersError(
            f"{named} was trained with model.added_tokens={list(made_by.model.added_tokens)}, whose embeddings "
            f"method={spec.cfg.method.name} does not keep: train SFT without them, or choose another run."
        )
    for key in ("name", "revision", "chat_template"):
        theirs, ours = made_by.model[key], spec.cfg.model[key]
        if theirs != ours:
            raise MannersError(
                f"{named} was made with model.{key}={theirs}, and this run has {ours}: a policy starts from its own "
                f"base and template. Set model.{key}={theirs}, or choose another run."
            )


def print_plan(spec: RunSpec) -> None:
    """``plan=true``: what would be reused and what trained; nothing is."""
    for need in spec.dependencies:
        found = (
            resolve_explicit(need) if need.explicit_source else find_finished(need.cfg, dependency_fingerprint(need))
        )
        print(f"{need.role:<8}{f'reuse {found.name}' if found else 'train'}  {command_of(need)}")
    print(f"{spec.cfg.method.name:<8}train  {command_of(spec)}")


def lineage_text(directory: RunDir, summary: str, dependencies: dict[str, RunArtifact]) -> str:
    """The run and, above it, those that it started from."""
    lines = []
    for role, artifact in dependencies.items():
        state = run_dir.load_state(artifact.model_dir.parent)
        note = f"  ({state.summary})" if state and state.summary else ""
        lines.append(f"{role:>8}  {artifact.name}{note}")
    arrow = "       └→ " if dependencies else ""
    return "\n".join([*lines, f"{arrow}{directory.path.name}" + (f"  ({summary})" if summary else "")]) + "\n"
