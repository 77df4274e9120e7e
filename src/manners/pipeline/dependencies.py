"""The runs that a run starts from: found among the finished ones, taken as given, or trained here and now."""

import hashlib
import json
import math
import os
import shlex
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cache, lru_cache

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

from manners.config import validate
from manners.config.compose import RunSpec, UserConfigDir
from manners.config.overrides import override_key
from manners.config.schema import DatasetConfig
from manners.data import sources
from manners.data.loading import Splits, build_prompts, eval_prompts, load_splits
from manners.data.mixture import mixture_paths, prompt_key
from manners.data.types import Conversation, data_digest
from manners.errors import MannersError, did_you_mean
from manners.models import adapter_config
from manners.models.templates import TEMPLATES
from manners.pipeline import model_ref
from manners.pipeline.style_judge import check_categories, check_style_judge
from manners.redact import redact_secrets
from manners.rewards.source import source_digest
from manners.runtime import run_dir
from manners.runtime.model_files import model_digest, model_folder
from manners.runtime.run_dir import RunArtifact, RunDir
from manners.tracking import store

# Packages whose versions change what is computed. A build for another device (torch's "+cpu") is the same version.
VERSIONS = ("manners", "torch", "transformers", "tokenizers", "peft", "lightning", "trl", "bitsandbytes")
# Role → methods that can fill it.
STARTING_METHODS = {"policy": ("sft", "ppo", "rloo", "dpo", "kto"), "reward": ("reward",)}


def splits_of(cfg: DictConfig) -> Splits:
    """The rows of a run's data, read once for all jobs and stages of a process that have the same data."""
    return read_splits(*data_key(cfg))


def check_rows(spec: RunSpec) -> None:
    """The rows of a run are those that its method needs, and enough of them. Raises MannersError."""
    try:
        validate.check_rows(spec.cfg, splits_of(spec.cfg))
        eval_prompts(spec.cfg.dataset)
        check_style_judge(spec.cfg)
        splits = splits_of(spec.cfg)
        if spec.cfg.method.name != "reward":
            check_categories(spec.cfg.dataset.style_judge, splits.test or splits.validation)
    except MannersError as error:
        if not spec.role:
            raise
        run, options = f"the {spec.role} run ({' '.join(spec.overrides)})", f"{spec.role}_run_overrides=[KEY=VALUE]"
        raise MannersError(f"{run}: {error} Its options are set by {options}.", error.key) from None


def check_target_modules(cfg: DictConfig) -> None:
    """The layers that a LoRA is for are layers of the model, as far as its files tell. Raises MannersError."""
    if cfg.adapter.kind in ("lora", "qlora"):
        folder = model_folder(cfg.model.name, cfg.model.revision)
        adapter_config.check_target_modules(cfg.adapter.target_modules, folder)


def usable_splits_of(cfg: DictConfig) -> Splits:
    """The rows that a run works with: those that its model's chat template can render. Imports torch.

    Raises MannersError for a row that it refuses; ``dataset.on_invalid_row=skip`` skips such rows.
    """
    m, splits = cfg.model, splits_of(cfg)
    if not m.decoder:
        return splits
    splits = read_renderable_splits(*data_key(cfg), m.name, m.revision, m.chat_template, tuple(m.added_tokens))
    if splits.unused and cfg.method.get("rewards"):
        from manners.rewards.combine import named_columns

        unused = splits.unused.keys() - named_columns(cfg.method.rewards)
        splits = replace(splits, unused={name: None for name in splits.unused if name in unused})
    return splits


def check_rewards(cfg: DictConfig) -> None:
    """Try each reward function on two prompts of the data before anything is trained. Raises MannersError."""
    functions = {name: entry for name, entry in cfg.method.get("rewards", {}).items() if "_target_" in entry}
    if functions:
        from manners.rewards.combine import build_components, try_components

        try_components(build_components(functions, None), build_prompts(cfg.dataset, splits_of(cfg).train))


def digest_of(cfg: DictConfig) -> str:
    """A hash of all that a run reads of its data: the rows of every split, and the prompts of its reports."""
    return read_digest(*data_key(cfg))


def data_key(cfg: DictConfig) -> tuple[str, str, tuple[int, ...]]:
    """What the rows depend on: the config, the samples that the method needs, and when the files were last written."""
    paths = [("path", path) for path in mixture_paths(cfg.dataset)]
    paths.append(("eval_prompts_file", cfg.dataset.eval_prompts_file))
    places = [sources.local_path(path, f"dataset.{key}") for key, path in paths if path]
    written = tuple(f.stat().st_mtime_ns for place in filter(None, places) for f in sources.data_files(place))
    return json.dumps(OmegaConf.to_container(cfg.dataset, resolve=True)), validate.needed_sample_type(cfg), written


@lru_cache(maxsize=4)
def read_splits(dataset: str, sample_type: str, written: tuple[int, ...]) -> Splits:
    return load_splits(OmegaConf.create(json.loads(dataset)), sample_type)


@lru_cache(maxsize=4)
def read_renderable_splits(
    dataset: str, sample_type: str, written: tuple[int, ...], name: str, revision: str | None, template: str,
    tokens: tuple[str, ...],
) -> Splits:  # fmt: skip
    from manners.data.template_check import check_eval_prompts, renderable_splits
    from manners.models.tokenizer import load_tokenizer

    cfg, tokenizer = json.loads(dataset), load_tokenizer(name, revision, template, added_tokens=tokens)
    splits = read_splits(dataset, sample_type, written)
    check_eval_prompts(eval_prompts(OmegaConf.create(cfg)), tokenizer, cfg["eval_prompts_file"])
    return renderable_splits(splits, tokenizer, cfg["loss_roles"], cfg["on_invalid_row"])


@lru_cache(maxsize=4)
def read_digest(dataset: str, sample_type: str, written: tuple[int, ...]) -> str:
    splits = read_splits(dataset, sample_type, written)
    prompts = [Conversation(p.messages) for p in eval_prompts(OmegaConf.create(json.loads(dataset)))]
    digests = [data_digest(rows) for rows in (splits.train, splits.validation, splits.test, prompts)]
    return hashlib.sha256(" ".join(digests).encode()).hexdigest()[:16]


def training_rows_line(
    name: str, made_by: DictConfig | None, dataset: DictConfig, rows: Sequence[Conversation], local: bool = False
) -> str:
    """A line on the held-out ``rows`` of ``dataset`` with a prompt that the model of another dataset was trained on.

    "" where there are none, as far as the data of that model are here; with ``local`` those of the hub are not read.
    """
    if made_by is None or OmegaConf.to_container(made_by.dataset) == OmegaConf.to_container(dataset):
        return ""
    with suppress(MannersError, OSError, OmegaConfBaseException):  # its data are gone, or older than an option
        if local and not data_key(made_by)[2]:
            return ""
        own = OmegaConf.merge(OmegaConf.structured(DatasetConfig), made_by.dataset)
        trained = {prompt_key(row) for row in load_splits(own).train}  # type: ignore[arg-type]
        if seen := sum(prompt_key(row) in trained for row in rows):
            of = f"{seen} of the {len(rows)} held-out rows"
            return f"{name} was trained on the prompts of {of}: its figures are not of new prompts"
    return ""


def contents_of(cfg: DictConfig) -> dict[str, str]:
    """What shapes a run beside its config, by content: an edit of any of it makes another run."""
    model, m = cfg.model, cfg.method
    # Before 1841eee pairs were trained on without them, under the same config.
    corrupted_pairs = {"pairs": "corrupted"} if m.get("loss") == "pairwise" and m.corruption_ratio else {}
    return corrupted_pairs | {
        "data": digest_of(cfg),
        "base": model_digest(model.name, model.revision, download=not cfg.plan),
        "template": TEMPLATES.get(model.chat_template, ""),
        "rewards": source_digest(cfg.method.get("rewards", {})),
        "versions": installed_versions(),
    }


@cache
def installed_versions() -> str:
    """The versions of ``VERSIONS``, of those that are installed."""
    from importlib import metadata  # takes a tenth of a second

    found = []
    for package in VERSIONS:
        with suppress(metadata.PackageNotFoundError):  # bitsandbytes is not for all systems
            found.append(f"{package} {metadata.version(package).partition('+')[0]}")
    return ", ".join(found)


def command_of(spec: RunSpec) -> str:
    """The command of a run, as a shell takes it; without the password of a tracking server."""
    questions = ("plan", "preview", "estimate")
    overrides = [o for o in spec.overrides if override_key(o) not in questions]
    own_recipes = ["--config-dir", str(UserConfigDir.folder)] if UserConfigDir.folder else []
    return redact_secrets(shlex.join(["python", "train.py", *own_recipes, *overrides]))


def dependency_fingerprint(spec: RunSpec) -> str:
    """The weights fingerprint of the run that a dependency stands for: given, finished, or still to be trained."""
    if spec.explicit_source:
        return resolve_explicit(spec).fingerprint
    return run_dir.weights_fingerprint(spec.cfg, contents_of(spec.cfg))


def find_or_train(spec: RunSpec, train: Callable[[RunSpec], RunArtifact], console: Console) -> RunArtifact:
    """What a run starts from. Parallel jobs that need the same run wait until one of them has trained it.

    Raises MannersError where an explicit source is no run, or does not fit.
    """
    if found := find_dependency(spec):
        return found
    fingerprint = dependency_fingerprint(spec)
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
    if source == "latest":
        found = model_ref.latest_run(cfg, STARTING_METHODS[spec.role], f"{spec.role}_from").run
    else:
        found = run_dir.find_by_name(source, cfg.output_dir) or store.fetch_run(cfg, source)
    if found is None:
        names = run_dir.finished_names(cfg.output_dir)
        raise MannersError(
            f"{spec.role}_from={source} is neither a folder with a model nor a finished run. "
            f"{did_you_mean(source, names) if names else ''}"
        )
    check_compatible(spec, found)
    if spec.role == "policy" and (found.model_dir / adapter_config.CONFIG).exists():
        adapter_config.check_plain_lora(found.model_dir, f"policy_from={source}", allow_dora=True)
    return found


def check_compatible(spec: RunSpec, found: RunArtifact) -> None:
    """Refuse a run of another method, and a policy on another base or template. Raises MannersError."""
    made_by, named = found.config, f"{spec.role}_from={spec.explicit_source}"
    if made_by is not None and made_by.method.name not in STARTING_METHODS[spec.role]:
        methods = " or ".join(STARTING_METHODS[spec.role])
        raise MannersError(f"{named} is a run of method={made_by.method.name}: {methods} is needed.")
    if spec.role == "reward":  # it reads replies with a base and a tokenizer of its own
        model_ref.run_ref(found, named)
        return
    if made_by is None:
        check_foreign_base(found, named, spec.cfg.model)
    else:
        check_same_base(found, named, spec.cfg)


def check_same_base(found: RunArtifact, named: str, cfg: DictConfig) -> None:
    """Refuse a policy on another base or template, or with tokens of its own. Raises MannersError."""
    made_by, model = found.config, cfg.model
    assert made_by is not None
    if made_by.model.added_tokens:
        raise MannersError(
            f"{named} was trained with model.added_tokens={list(made_by.model.added_tokens)}, whose embeddings "
            f"method={cfg.method.name} does not keep: train SFT without them, or choose another run."
        )
    digest = model_digest(model.name, model.revision)
    same_base = digest != "" and digest == made_by.get("base_digest")
    if not same_base:
        model_ref.check_base(found, named)
    for key in ("chat_template",) if same_base else ("name", "revision", "chat_template"):
        theirs, ours = made_by.model[key], model[key]
        if theirs != ours:
            raise MannersError(
                f"{named} was made with model.{key}={theirs}, and this run has {ours}: a policy starts from its own "
                f"base and template. Set model.{key}={theirs}, or choose another run."
            )


def check_foreign_base(found: RunArtifact, named: str, model: DictConfig) -> None:
    """Refuse an adapter that was not trained here and names another base than the run has. Raises MannersError."""
    file = found.model_dir / adapter_config.CONFIG
    base = str(adapter_config.read_adapter_config(found.model_dir).get("base_model_name_or_path") or "")
    if base and base != model.name and model_digest(base) != model_digest(model.name, model.revision):
        raise MannersError(
            f"{named} is an adapter on {base}, and this run has model.name={model.name}, which is another model or a "
            f"copy that cannot be compared: set model.name={base}, or name the copy in {file}."
        )


def find_dependency(need: RunSpec) -> RunArtifact | None:
    """The run that ``need`` stands for, if it is there. Raises MannersError where an explicit one does not fit."""
    if need.explicit_source:
        return resolve_explicit(need)
    return find_finished(need.cfg, dependency_fingerprint(need))


def check_reward_model(spec: RunSpec) -> None:
    """Refuse a weak reward model that is there already, before a policy is trained for it. Raises MannersError."""
    for need in spec.dependencies:
        if need.role == "reward" and (found := find_dependency(need)):
            check_reward_sanity(found, spec.cfg.method.min_sanity_accuracy)


def check_reward_sanity(artifact: RunArtifact, minimum: float) -> None:
    """Refuse a reward model that prefers too many corrupted replies. Raises MannersError."""
    file = artifact.model_dir / "sanity.json"
    accuracy = OmegaConf.load(file).accuracy.value if file.exists() else 0.0
    if accuracy < minimum:
        result = f"has a sanity accuracy of {accuracy:.1%}" if file.exists() else "has no sanity.json"
        made_by = artifact.config
        ratio = max(0.2, 2 * made_by.method.corruption_ratio if made_by else 0.0)
        raise MannersError(
            f"the reward model {artifact.name} {result}, and method.min_sanity_accuracy={minimum}: PPO would exploit "
            f"it. Train it on more corrupted replies (method.corruption_ratio={ratio:.2g}), or accept it: "
            f"method.min_sanity_accuracy={math.floor(100 * accuracy) / 100:.2f}"
        )


def print_plan(spec: RunSpec) -> None:
    """``plan=true``: what would be reused and what trained; nothing is."""
    check_reward_model(spec)
    for need in spec.dependencies:
        found = find_dependency(need)
        print(f"{need.role:<8}{f'reuse {found.name}  {made_by(found)}' if found else f'train  {command_of(need)}'}")
    cfg, fingerprints = spec.cfg, {need.role: dependency_fingerprint(need) for need in spec.dependencies}
    ended = run_dir.find_ended(cfg.output_dir, run_dir.run_fingerprint(cfg, contents_of(cfg), fingerprints))
    action = f"train again (it has ended before: {ended[0].name})" if ended else "train"
    print(f"{cfg.method.name:<8}{action}  {command_of(spec)}")


def made_by(artifact: RunArtifact) -> str:
    """The command that made the model of an earlier run, or where it is if that is unknown."""
    state = run_dir.load_state(artifact.model_dir.parent)
    if state is None or state.command is None:
        return str(artifact.model_dir)
    return f"python train.py {state.command}".rstrip()


def lineage_text(directory: RunDir, summary: str, dependencies: dict[str, RunArtifact]) -> str:
    """The run and, above it, those that it started from."""
    lines = []
    for role, artifact in dependencies.items():
        state = run_dir.load_state(artifact.model_dir.parent)
        note = f"  ({state.summary})" if state and state.summary else ""
        lines.append(f"{role:>8}  {artifact.name}{note}")
    arrow = "       └→ " if dependencies else ""
    return "\n".join([*lines, f"{arrow}{directory.path.name}" + (f"  ({summary})" if summary else "")]) + "\n"
