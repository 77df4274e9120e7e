"""One training run, from its config to its report."""

import logging
import math
import shlex
import sys
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import torch
import transformers
from omegaconf import DictConfig, OmegaConf
from rich.text import Text

from manners.config import validate
from manners.config.compose import RunSpec
from manners.config.overrides import model_group, override_key, quoted_override
from manners.config.validate import needed_sample_type
from manners.data.loading import Splits
from manners.data.tokenize import tokenize
from manners.data.types import preference_pairs, scored_replies
from manners.errors import MannersError
from manners.methods.callbacks import discard_checkpoints
from manners.methods.distributed import ProcessGroup, init_distributed
from manners.methods.microbatching import report_out_of_memory, resolve_microbatch_size
from manners.models import loading
from manners.pipeline import dependencies, preview
from manners.pipeline.stages import ppo, preference, reward, sft
from manners.pipeline.stages.context import RunContext, StageResult, configured_tokenizer, console, device_of
from manners.runtime import launcher, run_dir
from manners.runtime.device import Device
from manners.runtime.model_files import source_line
from manners.runtime.paths import CONF, ROOT, existing_path
from manners.runtime.run_dir import RunArtifact, RunDir, RunState
from manners.tracking import cost, registry, store
from manners.tracking.logger import MLflowLogger, NullLogger, open_run
from manners.tracking.pruning import pruning_callback

STAGES = {
    "sft": sft.train_sft,
    "reward": reward.train_reward_model,
    "dpo": preference.train_preference,
    "kto": preference.train_preference,
    "ppo": ppo.train_online,
    "rloo": ppo.train_online,
}

NO_DROPOUT = {"adapter.lora_dropout"}  # random masks would make the policy differ from itself
UNUSED_BY_METHOD = {
    **dict.fromkeys(("ppo", "dpo", "kto"), NO_DROPOUT),
    "rloo": NO_DROPOUT | {"method.vf_coef", "method.cliprange_value"},  # it has no critic
}


def run(spec: RunSpec) -> float | None:
    """Train as ``spec.cfg`` says, and return the metric that a sweep optimizes."""
    state = run_dir.load_state(train(spec).model_dir.parent)
    return state.metric if state else None


def train(spec: RunSpec) -> RunArtifact:
    """The model of one run: device, dependencies, run directory and logger, stage, report.

    Raises MannersError for what cannot work; the run is then marked as failed, and the same command resumes it.
    """
    cfg = spec.cfg
    silence_libraries()

    # 1. Device: what "auto" means here, and whether the run can be done on it.
    device = device_of(cfg)
    for one in (spec, *spec.dependencies):
        if not one.explicit_source:
            check_before_training(one.cfg, device)
    if launcher.needs_launch(cfg.hardware.devices):
        return launch(spec)
    splits, contents = dependencies.usable_splits_of(cfg), dependencies.contents_of(cfg)

    # 2. Dependencies: PPO's SFT policy and reward model are found, or trained first.
    dependencies.check_reward_model(spec)
    inputs = {need.role: dependencies.find_or_train(need, train, console) for need in spec.dependencies}
    fingerprints = {role: artifact.fingerprint for role, artifact in inputs.items()}

    # 3. Processes: the first one reports for all, the others only train.
    processes = init_distributed(device.kind, cfg.method.name, cfg.hardware.devices)
    if processes.rank:
        return follow(cfg, splits, device, inputs, processes)

    # 4. Run directory and logger: a new run, or the one that this command left unfinished.
    with run_dir.acquire(cfg, contents, fingerprints) as directory, report_out_of_memory(cfg):
        digest, on_metrics = contents["data"], pruning_callback(cfg)
        with open_run(cfg, directory, splits, digest, inputs, spec.overrides, on_metrics) as logger:
            cost.start_clock(directory)
            command = [o for o in spec.overrides if override_key(o) != "tracking.uri"]  # it may hold a password
            directory.update_state(command=shlex.join(command))
            device = as_it_began(directory, device)
            print_run_header(spec, directory, device, inputs)
            print_rows(spec)
            warn_of_training_rows(spec, splits, inputs)
            if directory.state.microbatch_size is None:
                directory.update_state(microbatch_size=resolve_microbatch_size(cfg, device, splits))
            processes.broadcast(str(directory.path))

            # 5. Stage: evaluate, train, evaluate again, save, report.
            L.seed_everything(cfg.seed, verbose=False)
            context = RunContext(cfg, splits, device, directory, logger, inputs, processes)
            result = STAGES[cfg.method.name](context)

            # 6. Bookkeeping: what it cost, and which runs it came from.
            logger.log(cost.cost_metrics(directory, device.kind), 0)
            lineage = write_lineage(directory, logger, result, inputs)
        if cfg.register_model:  # only now does the store surely have the model
            registry.register_and_report(cfg, logger.client, logger.run_id, result.metric)
        mark_finished(directory, result, inputs)
    print_results(spec, directory, result, lineage if inputs else "")
    return run_dir.artifact_of(directory.path, directory.state)


def as_it_began(directory: RunDir, device: Device) -> Device:
    """The device, with the number format that the run began with: "auto" may mean another on another machine."""
    began = directory.state.device
    if began is None:
        directory.update_state(device=f"{device.kind} {device.precision}")
        return device
    kind, precision = began.split()
    if kind == device.kind:
        return replace(device, precision=precision)
    change = f"{kind} in {precision} and goes on on {device.kind} in {device.precision}"
    console.print(f"this run began on {change}: its weights may differ from those of one device", style="yellow")
    return device


def launch(spec: RunSpec) -> RunArtifact:
    """Run the command in a process for each device, which this one only waits for."""
    launcher.launch_processes([*spec.overrides, *sweep_overrides(spec.cfg)], spec.cfg.hardware.devices)
    found = run_dir.find_completed(spec.cfg.output_dir, dependencies.dependency_fingerprint(spec))
    assert found is not None, "a successful launch leaves a finished run"
    return found


def follow(
    cfg: DictConfig, splits: Splits, device: Device, inputs: dict[str, RunArtifact], processes: ProcessGroup
) -> RunArtifact:
    """Train as one of several processes but the first, which reports for all."""
    console.quiet = True
    path = Path(processes.receive())
    directory = RunDir(path, run_dir.load_state(path) or RunState())
    device = as_it_began(directory, device)
    L.seed_everything(cfg.seed, verbose=False)  # as the first process does: adapters begin at random
    STAGES[cfg.method.name](RunContext(cfg, splits, device, directory, NullLogger(), inputs, processes))
    return run_dir.artifact_of(directory.path, directory.state)


def check_before_training(cfg: DictConfig, device: Device) -> None:
    """What only torch or the model's config can tell. Raises MannersError."""
    m, longest = cfg.method, loading.context_length(cfg.model.name, cfg.model.revision)
    for key, length in (
        ("method.max_length", m.get("max_length", 0)),
        ("method.max_prompt_length + response_length", m.get("max_prompt_length", 0) + m.get("response_length", 0)),
    ):
        if length > longest:
            raise MannersError(f"{key}={length} is longer than {cfg.model.name} can read: {longest} tokens or less.")
    if m.sample_type == "prompt" and device.precision == "fp16":
        raise MannersError(f"method={m.name} does not scale its loss for fp16: hardware.precision=bf16 or 32.")
    validate.check_room_for_prompts(cfg, longest, cfg.model.name)
    available = {"cpu": math.inf, "mps": 1, "cuda": max(1, torch.cuda.device_count())}[device.kind]
    if cfg.hardware.devices > available:
        raise MannersError(f"hardware.devices={cfg.hardware.devices}: this machine has {available} ({device.kind}).")
    if m.get("generation_backend") == "vllm" and device.kind != "cuda":
        raise MannersError(
            "method.generation_backend=vllm needs an NVIDIA GPU; there is none here: method.generation_backend=auto."
        )


def show_preview(spec: RunSpec) -> None:
    """``preview=true``: print the first examples, token by token. Nothing is trained."""
    silence_libraries()
    cfg, splits, tokenizer = spec.cfg, dependencies.usable_splits_of(spec.cfg), configured_tokenizer(spec.cfg)
    m, sample_type = cfg.method, needed_sample_type(cfg)
    if sample_type in ("scored", "preference", "unpaired_preference"):
        preview.show_replies(console, splits, sample_type, tokenizer, m.max_length, cfg.model.decoder)
        for line in preference.label_lines(cfg, splits.train) if m.name == "kto" else ():
            console.print(line, highlight=False, soft_wrap=True)
    else:
        names = ("max_length",) if "max_length" in m else ("max_prompt_length", "response_length")
        length = sum(m[name] for name in names)
        examples = tokenize(splits.train, tokenizer, cfg.dataset.loss_roles, length)
        option = f"{' + '.join(f'method.{name}' for name in names)}={length}"
        preview.show_examples(console, splits, examples, tokenizer, option)
    for line in (*rows_without_samples(cfg, splits), *unrendered_fields(cfg, splits)):
        console.print(line, highlight=False)


def print_run_header(spec: RunSpec, directory: RunDir, device: Device, inputs: dict[str, RunArtifact]) -> None:
    cfg = spec.cfg
    about = f"  {cfg.method.name}, {cfg.model.name}, {cfg.adapter.kind}, on {device.kind}, {device.number_format}"
    console.print(Text.assemble((directory.path.name, "bold"), about))
    console.print(settings_line(cfg, spec.overrides), highlight=False, soft_wrap=True)
    for line in unused_options(cfg, spec.overrides):
        console.print(line, highlight=False, soft_wrap=True)
    if source := source_line(cfg.model.name, cfg.model.revision):
        console.print(source, highlight=False, soft_wrap=True)
    for role, artifact in inputs.items():
        console.print(f"{role}: {artifact.name}", highlight=False)
    if (directory.path / "last.ckpt").exists():
        console.print("resuming from the last checkpoint of an unfinished run (resume=false starts anew)")
    elif directory.is_rerun:
        earlier = directory.path.with_name(directory.path.name.rpartition("-")[0])
        state = run_dir.load_state(earlier)
        before = f"{earlier} already ({state.status if state else 'lost'})"
        console.print(f"this very run is in {before}: repeating it in a directory of its own", soft_wrap=True)


def settings_line(cfg: DictConfig, overrides: Sequence[str]) -> str:
    """Learning rate, length and batch of the run, each with what set it."""
    m = cfg.method
    names = ["learning_rate", "max_steps" if m.get("max_steps", -1) > 0 else "num_train_epochs", "total_episodes"]
    names += ["per_device_train_batch_size", "batch_size"]
    group = model_group(cfg.model.name)
    choice = next((o.partition("=")[2] for o in overrides if override_key(o) == "tuned"), f"{group}/{m.name}")
    tuned = CONF / "tuned" / f"{choice}.yaml"
    values = OmegaConf.load(tuned).method if tuned.exists() else {}
    schema: Any = OmegaConf.get_type(m)
    chosen = " ".join(o for o in overrides if override_key(o) in ("experiment", "debug"))

    def source(name: str) -> str:
        if f"method.{name}" in map(override_key, overrides):
            return "command line"
        if float(values.get(name, "nan")) == m[name]:
            return str(tuned.relative_to(ROOT))
        return "default" if getattr(schema(), name) == m[name] else chosen or f"conf/method/{m.name}.yaml"

    return ", ".join(f"{name} {m[name]:g} ({source(name)})" for name in names if name in m)


def unused_options(cfg: DictConfig, overrides: Sequence[str]) -> list[str]:
    """A line on the options that a command sets and nothing reads, for each choice that makes them so."""
    m, local = cfg.method, not cfg.dataset.mix and existing_path(cfg.dataset.path) is not None
    of_lora = {f"adapter.{name}" for name in cfg.adapter} - {"adapter.kind", "adapter.quantization"}
    unused = {
        f"adapter={cfg.adapter.kind}": of_lora if cfg.adapter.kind in ("none", "frozen") else set(),
        f"method={m.name}": UNUSED_BY_METHOD.get(m.name, set()),
        "method.loss=pairwise": {"method.ranking_coef"} if m.get("loss") == "pairwise" else set(),
        "method.corruption_ratio=0": {"method.corruption_kinds"} if not m.get("corruption_ratio") else set(),
        "a local file": {"dataset.name", "dataset.splits"} if local else set(),
    }
    given = {why: [o for o in overrides if override_key(o) in keys] for why, keys in unused.items()}
    return [f"not used with {why}: {', '.join(options)}" for why, options in given.items() if options]


def print_rows(spec: RunSpec) -> None:
    """How many rows there are, and what is not used of the data."""
    splits = dependencies.usable_splits_of(spec.cfg)
    console.print(preview.row_counts(splits), highlight=False)
    for warning in splits.warnings:
        console.print(warning, style="yellow", highlight=False)
    for line in (*splits.left_out, *rows_without_samples(spec.cfg, splits), *unrendered_fields(spec.cfg, splits)):
        console.print(line, highlight=False, soft_wrap=True)
    for name in ("validation", "test"):
        if not getattr(splits, name):
            console.print(f"the last step is kept, without rows to choose a better one by: dataset.{name}_share=0.1")
            if spec.cfg.method.get("early_stopping_patience"):
                console.print("not used: method.early_stopping_patience, since the last step alone is evaluated")


def warn_of_training_rows(spec: RunSpec, splits: Splits, inputs: dict[str, RunArtifact]) -> None:
    """Say where a policy that the user named was trained on rows that are held out here."""
    if any(need.role == "policy" and need.explicit_source for need in spec.dependencies):
        policy, rows = inputs["policy"], splits.test or splits.validation
        # Data of the hub may take minutes to read, and this only informs.
        if line := dependencies.training_rows_line(policy.name, policy.config, spec.cfg.dataset, rows, local=True):
            console.print(line, style="yellow", highlight=False, soft_wrap=True)


def rows_without_samples(cfg: DictConfig, splits: Splits) -> list[str]:
    """A line on the training rows that have nothing of what a reward model or DPO learns from; KTO has its own."""
    needed = needed_sample_type(cfg)
    if needed == "scored":
        count, what = sum(not scored_replies([row]) for row in splits.train), "score"
    elif needed == "preference":
        count, what = sum(not preference_pairs([row]) for row in splits.train), "better and worse reply"
    else:
        return []
    return [f"left out: {count} of {len(splits.train)} training rows: no {what}"] if count else []


def unrendered_fields(cfg: DictConfig, splits: Splits) -> list[str]:
    """A line on the fields of messages, such as reasoning, that the chat template, or a reward model, does not see."""
    reply_alone = needed_sample_type(cfg) in ("scored", "preference", "unpaired_preference")
    found = {
        (name, reply_alone and message is row.messages[-1])
        for row in splits.train
        for message in row.messages
        for name in message.keys() - {"role", "content"}
    }
    template = str(configured_tokenizer(cfg).chat_template) if found else ""
    names = sorted({name for name, of_reply in found if of_reply or name not in template})
    why = "replies, which are scored by their content" if reply_alone else "messages, which is not rendered"
    return [f"fields not used: {', '.join(names)} of {why}"] if names else []


def write_lineage(directory: RunDir, logger: MLflowLogger, result: StageResult, inputs: dict[str, RunArtifact]) -> str:
    """``lineage.md``: the run and those that it started from."""
    text = dependencies.lineage_text(directory, result.summary, inputs)
    (directory.path / "lineage.md").write_text(text)
    logger.artifact(directory.path / "lineage.md")
    logger.tag(best_step=str(result.best_step), summary=result.summary)
    return text


def mark_finished(directory: RunDir, result: StageResult, inputs: dict[str, RunArtifact]) -> None:
    """Only now does the run count as finished, everywhere; its checkpoints are no longer needed."""
    directory.update_state(
        status="finished",
        metric=result.metric,
        best_step=result.best_step,
        model_digest=run_dir.saved_digest(directory.path / run_dir.MODEL_DIR),
        summary=result.summary,
        dependencies={role: str(artifact.model_dir) for role, artifact in inputs.items()},
    )
    discard_checkpoints(directory.path)


def print_results(spec: RunSpec, directory: RunDir, result: StageResult, lineage: str) -> None:
    """Where everything is, and what to look at next."""
    cfg = spec.cfg
    if lineage:
        console.print(f"\n{lineage}", highlight=False)
    console.print(f"\nmodel, report and figures: {directory.path}", highlight=False, soft_wrap=True)
    if cfg.sweep.parent:
        console.print(result.summary, highlight=False)
    elif not spec.role:
        reports = (directory.path / name for name in ("before_after.md", "reward_report.md"))
        console.print(f"look next at: {next(p for p in reports if p.exists())}", highlight=False, soft_wrap=True)
        if cfg.method.name != "reward":
            console.print(f"talk with it: {chat_command(cfg.output_dir)}", highlight=False, soft_wrap=True)
        console.print(f"compare runs: {store.ui_command(cfg.tracking.uri)}", highlight=False, soft_wrap=True)


def chat_command(output_dir: str) -> str:
    """What chats with the latest run."""
    if output_dir == "outputs" and Path.cwd() == ROOT:
        return "make chat"
    return f"{shlex.quote(sys.executable)} {shlex.quote(str(ROOT / 'chat.py'))} output_dir={shlex.quote(output_dir)}"


def sweep_overrides(cfg: DictConfig) -> list[str]:
    """What a sweep set for its job, which is no part of the job's own command."""
    values = {key: cfg.sweep[key] for key in ("parent", "trial", "journal", "pruner")}
    return [quoted_override(f"sweep.{key}", value) for key, value in values.items() if value is not None]


def silence_libraries() -> None:
    """Hide what libraries say about themselves; what they say about the run stays."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    transformers.utils.logging.set_verbosity_error()  # "score.weight is newly initialized": as intended
    warnings.filterwarnings("ignore", module="lightning|transformers")
    warnings.filterwarnings("ignore", message=".*lightning.*|.*dataloader.*|.*`tags`.*")
    # peft looks for the base's config on the hub, whether it was resized; offline it saves the adapter all the same
    warnings.filterwarnings("ignore", message="Unable to fetch remote file|Could not find a config file")
    warnings.filterwarnings("ignore", message="Paged optimizers are not supported on CPU")  # they need no pages there
    warnings.filterwarnings("ignore", category=FutureWarning)
