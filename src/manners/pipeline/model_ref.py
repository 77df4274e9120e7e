"""Which model a name means: the latest run, a run by id or name, a folder, a registered model, a name on the hub."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from manners.data.types import Message
from manners.errors import MannersError, did_you_mean
from manners.models import adapter_config
from manners.models.pretrained import resolve_name
from manners.runtime import run_dir
from manners.runtime.model_files import model_digest
from manners.runtime.paths import existing_path
from manners.runtime.run_dir import RunArtifact
from manners.tracking import store

GENERATING_METHODS = ("sft", "dpo", "kto", "ppo", "rloo")  # whose models write replies; a reward model only scores


@dataclass(frozen=True)
class ModelRef:
    """What a name stands for, before anything is loaded."""

    name: str  # as reports call it
    path: str  # a folder, or a name on the hub
    run: RunArtifact | None = None  # None for a name on the hub

    @property
    def config(self) -> DictConfig | None:
        """What made it; None for a model that was not trained here."""
        return self.run.config if self.run else None

    def check_base(self) -> None:
        """Raises MannersError where the base model is no longer the one that the run was trained on."""
        if self.run:
            check_base(self.run, self.name)

    @property
    def reward_model(self) -> str | None:
        """The folder or run id of the reward model that its run was trained with."""
        state = run_dir.load_state(Path(self.path).parent) if self.run else None
        return state.dependencies.get("reward") if state else None


@dataclass
class LoadedModel:
    """A language model with its tokenizer, and the model that it was before its training."""

    ref: ModelRef
    model: Any
    tokenizer: Any
    is_adapter: bool

    @property
    def name(self) -> str:
        return self.ref.name

    @property
    def has_base(self) -> bool:
        """Whether there is a model before training to compare with."""
        return self.is_adapter or self.ref.config is not None

    @cached_property
    def full_base(self) -> Any:
        """The weights that a full fine-tuning started from. Raises MannersError where nobody knows them."""
        from manners.models import loading

        made_by = self.ref.config
        if made_by is None:
            raise MannersError(f"{self.name} was not trained here: there is no model before it to compare with.")
        self.ref.check_base()
        base: Any = loading.load_model(made_by.model.name, made_by.model.revision, made_by.model.attn_implementation)
        return base.to(self.model.device)

    @contextmanager
    def base_model(self) -> Iterator[Any]:
        """The model before its training: the adapter is disabled inside."""
        if not self.is_adapter:
            yield self.full_base
            return
        with self.model.disable_adapter():
            yield self.model


def base_of(ref: ModelRef) -> tuple[str, str | None]:
    """Name and revision of the model whose architecture it has: what it was trained from, or itself."""
    from manners.models import lora

    if ref.config:
        return ref.config.model.name, ref.config.model.revision
    is_adapter = (Path(ref.path) / adapter_config.CONFIG).exists()
    return (lora.base_model_name(Path(ref.path)) if is_adapter else ref.path), None


def tokenizer_of(ref: ModelRef) -> Any:
    """The tokenizer beside the weights; that of the base model for an adapter without one."""
    from manners.models import lora
    from manners.models.tokenizer import load_tokenizer

    folder = Path(resolve_name(ref.path))
    is_own = (folder / "tokenizer_config.json").exists() or not (folder / adapter_config.CONFIG).exists()
    return load_tokenizer(ref.path if is_own else lora.base_model_name(folder))


def load_model_ref(ref: ModelRef, device: str) -> LoadedModel:
    """The model in 32 bits (in 4 bits where it was trained so), on ``device``."""
    from manners.models import loading, lora

    made_by, folder = ref.config, Path(resolve_name(ref.path))
    is_adapter, tokenizer = (folder / adapter_config.CONFIG).exists(), tokenizer_of(ref)
    attention = made_by.model.attn_implementation if made_by else None
    if not is_adapter:
        model: Any = loading.load_model(ref.path, attn_implementation=attention)
        return LoadedModel(ref, model.to(device), tokenizer, is_adapter=False)
    name, revision = base_of(ref)
    quantization = made_by.adapter.quantization if made_by else "none"
    base: Any = loading.load_model(name, revision, attention, quantization=quantization)
    adapted = lora.load_adapter(base, folder, tokenizer)
    return LoadedModel(ref, adapted if quantization != "none" else adapted.to(device), tokenizer, is_adapter=True)


def load_scorer(ref: ModelRef, device: str) -> Callable[[Sequence[tuple[list[Message], str]]], list[float]]:
    """A reward model with its own tokenizer: (conversation, reply) pairs → scores in the units of its data."""
    from manners.methods.reward import predict_scores
    from manners.models import reward_model
    from manners.models.tokenizer import load_tokenizer

    made_by, folder = ref.config, Path(ref.path)
    network = load_reward_network(folder, made_by, device)
    tokenizer = load_tokenizer(str(folder), require_template=False)
    normalizer = reward_model.ScoreNormalizer.load(folder)
    max_length = made_by.method.max_length if made_by else 512
    return lambda replies: [
        normalizer.to_score(output) for output in predict_scores(network, tokenizer, max_length, replies)
    ]


def load_reward_network(folder: Path, made_by: DictConfig | None, device: str) -> Any:
    """The reward model in ``folder`` as its run ``made_by`` loaded it, in 4 bits where it was trained so."""
    from manners.models.reward_model import load_reward_model

    if made_by is None:
        return load_reward_model(folder).to(device)
    m, a = made_by.model, made_by.adapter
    bits = {"quantization": a.quantization, "double_quantization": a.double_quantization}
    network = load_reward_model(folder, m.revision, m.attn_implementation, **bits)
    return network if a.quantization != "none" else network.to(device)


def resolve_reward_model(cfg: DictConfig, refs: Sequence[ModelRef]) -> ModelRef | None:
    """The reward model that ``cfg.reward_from`` names; ``auto`` is that of the first of ``refs`` that has one.

    Raises MannersError where there is none.
    """
    if cfg.reward_from == "none":
        return None
    if cfg.reward_from != "auto":
        return resolve_model(cfg.reward_from, cfg, ("reward",), "reward_from")
    known = [ref.reward_model for ref in refs if ref.reward_model]
    if not known:
        raise MannersError(
            "reward_from=auto: none of these runs was trained with a reward model. Name one: reward_from=RUN.",
            "reward_from",
        )
    return resolve_model(known[0], cfg, ("reward",), "reward_from")


def resolve_model(
    name: str, cfg: DictConfig, methods: tuple[str, ...] = GENERATING_METHODS, key: str = "run"
) -> ModelRef:
    """What ``name`` means among the runs of ``cfg.output_dir``, the tracking store, the folders and the hub.

    ``latest`` is the newest finished run of one of ``methods``. Raises MannersError, for the option ``key``, where the
    name means nothing.
    """
    if name == "latest":
        return latest_run(cfg, methods, key)
    if name == "tiny":
        return ModelRef("tiny", "tiny")
    found = run_dir.find_by_name(name, cfg.output_dir) or store.fetch_run(cfg, name)
    if found and found.config and found.config.method.name not in methods:
        method = found.config.method.name
        raise MannersError(f"{key}={name} is a run of method={method}; one of {', '.join(methods)} is needed.", key)
    if found:
        return run_ref(found, f"{key}={name}")
    if name.lower().endswith(".gguf") and (file := existing_path(name)):
        return ModelRef(file.stem, str(file.absolute()))
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return ModelRef(name, name)
    names = run_dir.finished_names(cfg.output_dir)
    raise MannersError(
        f"{key}={name} is neither a finished run, nor a folder with a model, nor a GGUF file, nor a name on the hub. "
        + (did_you_mean(name, names) if names else "There are no runs here yet: python train.py"),
        key,
    )


def use_experiment_of(refs: Sequence[ModelRef], cfg: DictConfig) -> None:
    """Log to the MLflow experiment of the first run, unless the command names another."""
    if cfg.tracking.experiment is None:
        experiments = [str(ref.config.tracking.experiment) for ref in refs if ref.config]
        cfg.tracking.experiment = experiments[0] if experiments else "manners"


def run_ref(found: RunArtifact, named: str) -> ModelRef:
    """The model of a run. Raises MannersError for an adapter or a head whose base is not the one it was trained on."""
    if not (found.model_dir / "config.json").exists():
        check_base(found, named)
    return ModelRef(found.name, str(found.model_dir), found)


def check_base(found: RunArtifact, named: str) -> None:
    """Raises MannersError where the base of a run has other content than the one that the run was trained on."""
    made_by = found.config
    if made_by is None or not made_by.get("base_digest"):
        return
    base = str(made_by.model.name)
    if base.startswith(("/", ".", "~")) and existing_path(base) is None:
        raise MannersError(f"{named}: the model that it was trained on, {base}, is gone. Restore that folder.")
    now = model_digest(made_by.model.name, made_by.model.revision)
    if now and now != made_by.base_digest:  # a base of the hub that is missing is reported when it is loaded
        raise MannersError(
            f"{named} was trained on another model than {made_by.model.name} holds now (weights, config, tokenizer or "
            "template have changed): restore that model, or train the run again."
        )


def latest_run(cfg: DictConfig, methods: tuple[str, ...] = GENERATING_METHODS, key: str = "run") -> ModelRef:
    """The run that finished last. Raises MannersError where there is none."""
    finished = []
    for path, state in run_dir.all_runs(cfg.output_dir):
        artifact = run_dir.artifact_of(path, state)
        if state.status == "finished" and artifact.config and artifact.config.method.name in methods:
            finished.append(((path / run_dir.STATE_FILE).stat().st_mtime, path, state))
    if not finished:
        kind = "" if methods == GENERATING_METHODS else f" of method={' or '.join(methods)}"
        command = f"python train.py{f' method={methods[0]}' * bool(kind)}"
        raise MannersError(
            f"{key}=latest: {Path(cfg.output_dir).resolve()}/runs has no finished run{kind} yet. Train one: {command}. "
            "Runs of another folder: output_dir=FOLDER."
        )
    _, path, state = max(finished, key=lambda entry: entry[0])
    return run_ref(run_dir.finished_artifact(path, state), f"{key}=latest")
