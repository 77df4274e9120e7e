"""Ranges of all options, and combinations that cannot work, refused before anything heavy is imported."""

import json
import math
import os
import posixpath
import re
import shutil
import sys
import sysconfig
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args

from omegaconf import DictConfig, ListConfig, OmegaConf

from manners.config import mixture
from manners.config.schema import STARTS_FROM, DatasetConfig, is_schema, options
from manners.data import sources
from manners.data.formats.rows import COLUMNS
from manners.data.loading import Splits, check_sample_types
from manners.data.mixture import dataset_configs, mixture_paths
from manners.data.types import has_loss, labeled_replies
from manners.errors import MannersError, did_you_mean
from manners.runtime.paths import existing_path

FLAGS = ("deleted", "synthetic", "unreviewed")  # OpenAssistant's messages that are left out by default
MIN_PROMPT_SHARE = 1 / 8  # of the context, which new tokens must leave to prompts
INITS = ("true", "gaussian", "orthogonal", "pissa", "olora")  # of PEFT's, those that need neither data nor files
MAX_NAME = 120  # characters; file systems take 255 bytes, and the folder of a run says more than its name
REPORT_TO = ("mlflow", "tensorboard", "wandb")
SFT_OPTIONS = ("conversation_eos", "min_score_quantile", "include_alternatives")  # of a dataset
TABLE_COLUMNS = ("prompt", "reply", "kl", "tokens", "has_eos")  # of PPO's tables of replies, beside the rewards


def validate_config(cfg: DictConfig) -> None:
    """Raises MannersError for the first thing in ``cfg`` that cannot work, with the override that corrects it."""
    for key in sorted(OmegaConf.missing_keys(cfg)):
        raise MannersError(f"{key} has no value, and there is no default: set {key}=VALUE.")
    check_values(cfg)
    if "method" not in cfg:  # evaluate.py and chat.py open what was trained
        check_saved_model_config(cfg)
        return
    for key in ("run_name", "experiment_name"):
        if len(cfg[key] or "") > MAX_NAME:
            raise MannersError(f"{key} has {len(cfg[key])} characters: it names folders, {MAX_NAME} at most.", key)
    asked = [name for name in ("plan", "preview", "estimate") if cfg[name]]
    if len(asked) > 1:
        raise MannersError(f"{' and '.join(f'{name}=true' for name in asked)}: ask for one at a time.")
    check_report_to(list(cfg.report_to))
    check_method(cfg)
    check_steps(cfg)
    check_start(cfg)
    check_online_rl(cfg)
    check_adapter(cfg)
    check_hardware(cfg)
    check_local_context(cfg)
    check_data(cfg)


def check_values(node: DictConfig, path: str = "") -> None:
    """Check every value against the choices and the range of its option. Raises MannersError."""
    for name, field in options(OmegaConf.get_type(node)).items():
        key, value = path + name, node[name]
        if isinstance(value, DictConfig) and is_schema(OmegaConf.get_type(value)):
            check_values(value, f"{key}.")
        choices = field.metadata.get("choices", ())
        for choice in value if isinstance(value, ListConfig) else [value]:
            if choices and choice not in choices and (choice is not None or type(None) not in get_args(field.type)):
                raise MannersError(f"{key}={value} is not a choice. {did_you_mean(str(choice), choices)}", key)
        if isinstance(value, int | float) and (limits := range_of(field)) and not in_range(value, field):
            limits = limits if math.isfinite(value) else "a finite number"
            raise MannersError(f"{key}={value} must be {limits}. The option: {field.metadata['help']}.", key)
        if value == "" and type(None) not in get_args(field.type):
            raise MannersError(f"{key}= is empty: give it a value, or leave it out to keep its default.", key)
        if value == "None":
            nothing = "null" if type(None) in get_args(field.type) else "none"
            raise MannersError(f"{key}=None would be the text 'None': write {key}={nothing}.", key)


def in_range(value: float, field: Any) -> bool:
    """Whether a number is finite and within the limits of its option; nan compares with nothing."""
    m = field.metadata
    above = value >= m["ge"] if m["ge"] is not None else m["gt"] is None or value > m["gt"]
    below = value <= m["le"] if m["le"] is not None else m["lt"] is None or value < m["lt"]
    return bool(above and below and value < math.inf)


def range_of(field: Any) -> str:
    """The limits of an option in words; empty where it has none."""
    m = field.metadata
    words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    return " and ".join(f"{word} {m[name]:.12g}" for name, word in words.items() if m.get(name) is not None)


def check_saved_model_config(cfg: DictConfig) -> None:
    """The options of evaluate.py and chat.py. Raises MannersError."""
    if "benchmarks" in cfg:
        check_benchmarks(cfg)
    if cfg.hardware.precision == "fp16":
        raise MannersError("hardware.precision=fp16 is for training: evaluate.py and chat.py take 32 or bf16.")
    if cfg.get("best_of", 1) > 1 and cfg.reward_from == "none":
        raise MannersError(f"best_of={cfg.best_of} needs a reward model to choose by: reward_from=auto.", "best_of")
    if cfg.get("dataset") and not OmegaConf.is_missing(cfg.dataset, "path"):
        for path in mixture_paths(cfg.dataset):
            sources.local_path(path)  # raises for a path that does not exist


def check_report_to(report_to: list[str]) -> None:
    """MLflow is among them, and the packages of the others are installed. Raises MannersError."""
    for name in report_to:
        if name not in REPORT_TO:
            raise MannersError(f"report_to={report_to}: no '{name}'. {did_you_mean(name, REPORT_TO)}", "report_to")
        if name != "mlflow" and find_spec(name) is None:
            install = f".venv/bin/pip install -c conf/constraints.txt -e '.[{name}]'"
            raise MannersError(f"report_to: {name} is an extra, and not installed here: {install}", "report_to")
    if "mlflow" not in report_to:
        raise MannersError(
            f"report_to={report_to} leaves out mlflow, which reports and later runs are read from: "
            f"report_to=[{','.join(['mlflow', *report_to])}]. It needs no server: tracking.uri=sqlite:///FILE.",
            "report_to",
        )


def check_benchmarks(cfg: DictConfig) -> None:
    """What ``benchmarks`` needs, except the tasks' data, is here. Raises MannersError."""
    folder = existing_path(cfg.include_path) if cfg.include_path else None
    if cfg.include_path and (folder is None or not folder.is_dir()):
        raise MannersError(
            f"include_path={cfg.include_path} is no folder: name the one that holds the yaml files of your tasks.",
            "include_path",
        )
    if cfg.include_path and not cfg.benchmarks:
        raise MannersError(
            f"include_path={cfg.include_path}: none of its tasks is asked for. Name some: 'benchmarks=[TASK]'.",
            "include_path",
        )
    if cfg.benchmarks and find_spec("lm_eval") is None:
        install = ".venv/bin/pip install -c conf/constraints.txt -e '.[eval]'"
        raise MannersError(
            f"benchmarks={list(cfg.benchmarks)} needs lm-eval, an extra that is not installed: {install}"
        )


def check_method(cfg: DictConfig) -> None:
    """The method, checked against the model and the data. Raises MannersError."""
    fixed: Any = OmegaConf.get_type(cfg.method)
    for name in ("name", "sample_type"):
        if cfg.method[name] != getattr(fixed, name):
            key = f"method.{name}"
            raise MannersError(f"{key}={cfg.method[name]} cannot be set: choose the method, method={fixed.name}.", key)
    needed = needed_sample_type(cfg)
    if cfg.dataset.sample_types and not sources.offers(cfg.dataset.sample_types, needed):
        offering = ", ".join(sources.datasets_offering(needed)) or "none yet"
        raise MannersError(
            f"method={cfg.method.name} needs '{needed}' samples, and {cfg.dataset.path} offers "
            f"{', '.join(cfg.dataset.sample_types)}. Datasets that have them: {offering}."
        )
    if cfg.method.sample_type != "scored" and not cfg.model.decoder:
        raise MannersError(
            f"{cfg.model.name} is an encoder and cannot write replies: method={cfg.method.name} needs a decoder, "
            "such as model=tiny or model=gpt2."
        )
    if cfg.method.sample_type not in ("conversation", "scored") and cfg.dataset.loss_roles == "user":
        raise MannersError(
            f"method={cfg.method.name} answers as the assistant: dataset.loss_roles=user is for SFT.",
            "dataset.loss_roles",
        )
    check_sft_options(cfg)
    if "" in cfg.model.added_tokens:
        raise MannersError("model.added_tokens has an empty text: a token is at least one character.")
    if cfg.model.added_tokens and cfg.method.name != "sft":
        raise MannersError(
            f"model.added_tokens has embeddings that SFT trains, and method={cfg.method.name} does not keep: leave "
            "the markers as plain text, model.added_tokens=[].",
            "model.added_tokens",
        )
    if cfg.method.get("packing") and cfg.method.get("group_by_length"):
        raise MannersError(
            "packed rows are all of one length: with method.packing=true set method.group_by_length=false."
        )


def check_sft_options(cfg: DictConfig) -> None:
    """What decides which rows and turns SFT trains on is set for SFT alone. Raises MannersError."""
    if cfg.method.name == "sft":
        return
    datasets = [own for _, own in dataset_configs(cfg.dataset).values()] if cfg.dataset.get("mix") else [cfg.dataset]
    for name in SFT_OPTIONS:
        if value := next((own[name] for own in datasets if own[name]), None):
            option = f"dataset.{name}={value}"
            own = cfg.policy_from == "auto" and "policy" in STARTS_FROM.get(cfg.method.sample_type, ())
            hint = f" For the SFT run alone: policy_run_overrides=['{option}']." * own
            raise MannersError(
                f"{option} is about what SFT trains on, and method={cfg.method.name} would take other rows or replies "
                f"for it, too: leave it out.{hint}",
                f"dataset.{name}",
            )


def needed_sample_type(cfg: DictConfig) -> str:
    """The kind of sample that the method trains on."""
    return "preference" if cfg.method.get("loss") == "pairwise" else str(cfg.method.sample_type)


def check_start(cfg: DictConfig) -> None:
    """A run is given only for what the method starts from, and its adapter can be merged. Raises MannersError."""
    roles = STARTS_FROM.get(cfg.method.sample_type, ())
    start = "a policy alone" if roles else "the base model, not from a run"
    for role in ("policy", "reward"):
        if role not in roles and cfg[f"{role}_from"] not in ("auto", "none"):
            raise MannersError(f"{role}_from={cfg[f'{role}_from']}: method={cfg.method.name} starts from {start}.")
    if roles and cfg.adapter.kind == "qlora" and cfg.policy_from != "none":
        raise MannersError(
            "an SFT adapter merged into 4-bit weights is no longer the policy that SFT trained (peft#2321): "
            "adapter=lora, or policy_from=none to start from the base itself."
        )


def check_online_rl(cfg: DictConfig) -> None:
    """PPO and RLOO: the reward, the sampler, batch sizes that divide, the critic. Raises MannersError."""
    m = cfg.method
    if m.sample_type != "prompt":
        return
    check_rewards(cfg)
    check_vllm(cfg)
    per_prompt = m.get("num_generations", 1)
    if m.batch_size % per_prompt:
        raise MannersError(f"method.batch_size={m.batch_size} must be a multiple of num_generations={per_prompt}.")
    if m.num_mini_batches > m.batch_size:
        raise MannersError(f"method.num_mini_batches={m.num_mini_batches} is more than batch_size={m.batch_size}.")
    if m.get("critic") == "adapter" and cfg.adapter.kind == "none":
        raise MannersError("method.critic=adapter needs a LoRA policy: adapter=lora, or method.critic=head.")


def check_vllm(cfg: DictConfig) -> None:
    """vLLM is an extra for NVIDIA GPUs. Whether there is one is checked once torch is imported. Raises MannersError."""
    if cfg.method.generation_backend != "vllm":
        return
    if cfg.hardware.accelerator in ("cpu", "mps"):
        raise MannersError(
            f"method.generation_backend=vllm needs an NVIDIA GPU, and hardware.accelerator={cfg.hardware.accelerator}: "
            "hardware=cuda, or method.generation_backend=auto."
        )
    if find_spec("vllm") is None or find_spec("trl") is None:
        raise MannersError(
            "method.generation_backend=vllm: vLLM is not installed here. It needs other versions than "
            "conf/constraints.txt has, so give it an environment of its own: python3 -m venv outputs/vllm && "
            "outputs/vllm/bin/pip install "
            "--editable '.[vllm]'; then outputs/vllm/bin/python train.py ... Without it: "
            "method.generation_backend=auto."
        )
    if cfg.adapter.quantization != "none":
        raise MannersError(
            "method.generation_backend=vllm would merge the adapter into 4-bit weights, and sample from "
            "another policy than the one that trains (peft#2321): adapter=lora, or method.generation_backend=auto."
        )


def check_rewards(cfg: DictConfig) -> None:
    """The components of the reward; whether their functions exist is checked before training. Raises MannersError."""
    components = cfg.method.rewards
    if not isinstance(components, DictConfig) or not components:
        raise MannersError(
            f"method.rewards={components} names no component: +method.rewards.NAME={{_target_:MODULE.FUNCTION}}."
        )
    for name, component in ((str(name), component) for name, component in components.items()):
        if name in TABLE_COLUMNS or not is_metric_name(name):
            why = "is a column of the tables of replies" if name in TABLE_COLUMNS else "cannot be logged in MLflow"
            raise MannersError(
                f"method.rewards: the name {name!r} {why}: choose another, of letters, digits and _ - . only."
            )
        if not isinstance(component, DictConfig):
            raise MannersError(
                f"method.rewards.{name}={component}: a component of the reward is "
                f"{{weight:1.0,_target_:MODULE.FUNCTION}}, and ~method.rewards.{name} removes it."
            )
        weight = component.get("weight", 1.0)
        if not isinstance(weight, int | float) or isinstance(weight, bool) or not math.isfinite(weight):
            raise MannersError(f"method.rewards.{name}.weight={weight} must be a finite number.")
        if "_target_" in component:
            check_target(f"method.rewards.{name}._target_", component["_target_"])
        elif unknown := [str(key) for key in component if key != "weight"]:
            hint = did_you_mean(unknown[0], ("weight", "_target_"))
            raise MannersError(f"method.rewards.{name}: the reward model has no option '{unknown[0]}'. {hint}")
        if cfg.reward_from == "none" and "_target_" not in component:
            raise MannersError(
                f"reward_from=none, and method.rewards.{name} names no function: add a component with "
                f"+method.rewards.NAME={{_target_:MODULE.FUNCTION}}, and remove this one with ~method.rewards.{name}."
            )


def check_target(key: str, target: Any) -> None:
    """Raise MannersError unless ``target`` is a dotted name, such as Python imports."""
    if not (isinstance(target, str) and re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)+", target)):
        raise MannersError(f"{key}={target} must be MODULE.FUNCTION, of a package or a file in the working directory.")


def is_metric_name(name: str) -> bool:
    """Whether MLflow takes ``reward/NAME`` as the name of a metric."""
    whole = f"reward/{name}"
    return re.fullmatch(r"[\w./ :-]{1,200}", whole) is not None and posixpath.normpath(whole) == whole


def check_adapter(cfg: DictConfig) -> None:
    """Adapter, quantization and optimizer go together. Raises MannersError."""
    kind, quantization, targets = cfg.adapter.kind, cfg.adapter.quantization, cfg.adapter.target_modules
    names = [targets] if isinstance(targets, str) else targets
    if not (isinstance(names, list | ListConfig) and names and all(isinstance(n, str) and n for n in names)):
        key = "adapter.target_modules"
        raise MannersError(f"{key}={targets} must be all-linear, or a list of names: {key}=[q_proj,v_proj].", key)
    if kind == "frozen":
        check_frozen(cfg)
    check_init(cfg)
    if quantization != "none" and kind == "none":
        raise MannersError(
            f"weights in {quantization} cannot be trained themselves: use adapter=qlora, or "
            "adapter.quantization=none for full fine-tuning."
        )
    if kind == "qlora" and quantization == "none":
        raise MannersError("adapter=qlora needs a quantized base: adapter.quantization=nf4, or use adapter=lora.")
    if kind == "lora" and quantization != "none":
        raise MannersError(f"a LoRA over a base in {quantization} is QLoRA: use adapter=qlora.")
    if cfg.method.optim != "adamw_torch_fused" and cfg.hardware.accelerator == "mps":
        raise MannersError("bitsandbytes has no 8-bit optimizer for Apple's GPU: method.optim=adamw_torch_fused.")
    if quantization != "none" and cfg.hardware.accelerator == "mps":
        raise MannersError("bitsandbytes has no 4-bit kernels for Apple's GPU: use adapter=lora with hardware=mps.")


def check_init(cfg: DictConfig) -> None:
    """PEFT's initialization of a LoRA suits the method, the base and the devices. Raises MannersError."""
    a, key = cfg.adapter, "adapter.init_lora_weights"
    init, named = a.init_lora_weights, f"{key}={a.init_lora_weights}"
    niter = isinstance(init, str) and re.fullmatch(r"pissa_niter_\d+", init)
    if not (init is True or niter or init in INITS[1:]):
        hint = did_you_mean(str(init).lower(), (*INITS, "pissa_niter_16"))
        raise MannersError(f"{named} is not a choice. {hint}", key)
    if init == "orthogonal" and a.r % 2:
        raise MannersError(f"{named} needs an even rank: adapter.r={a.r + 1}.", key)
    if a.kind == "qlora" and init not in (True, "gaussian"):
        raise MannersError(f"{named} needs a base that is not quantized: {key}=true, or adapter=lora.", key)
    if a.kind != "lora" or init in (True, "gaussian", "orthogonal"):
        return
    why = f"{named} moves a part of the base's weights into the adapter"  # and back when it is saved
    if cfg.method.name not in ("sft", "reward"):
        own = f" For the SFT run alone: policy_run_overrides=['{named}']." * (cfg.policy_from == "auto")
        raise MannersError(
            f"{why}: without its adapter the network would not be the reference of method={cfg.method.name}. Set "
            f"{key}=true.{own}",
            key,
        )
    if cfg.hardware.strategy == "fsdp":
        raise MannersError(f"{why}, which FSDP would have to shard: {key}=true, or hardware.strategy=ddp.", key)


def check_frozen(cfg: DictConfig) -> None:
    """What ``adapter=frozen`` is for: the head of a reward model on one device. Raises MannersError."""
    if cfg.method.name != "reward" or not cfg.model.decoder:
        raise MannersError(
            "adapter=frozen trains a head alone: for method=reward on a decoder. Elsewhere use adapter=lora.",
            "adapter.kind",
        )
    for key, value, needed in (
        ("hardware.devices", cfg.hardware.devices, 1),
        ("adapter.quantization", cfg.adapter.quantization, "none"),
        ("method.ranking_coef", 0 if cfg.method.loss == "pairwise" else cfg.method.ranking_coef, 0),
        ("estimate", cfg.estimate, False),
    ):
        if value != needed:
            raise MannersError(f"{key}={value} is not for adapter=frozen: {key}={str(needed).lower()}.", key)


def check_compile(cfg: DictConfig) -> None:
    """``hardware.compile`` is for what Lightning trains, and needs a C++ compiler. Raises MannersError."""
    if not cfg.hardware.compile:
        return
    if cfg.method.name not in ("sft", "reward"):
        raise MannersError(
            f"hardware.compile=true is for SFT and reward models: with method={cfg.method.name} leave it out."
        )
    if cfg.hardware.accelerator == "mps" or (cfg.hardware.accelerator == "auto" and sys.platform == "darwin"):
        raise MannersError("hardware.compile=true is for CPUs and NVIDIA GPUs: hardware=cpu, or leave it out.")
    compiler = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    if not shutil.which(compiler):
        raise MannersError(f"hardware.compile=true needs a C++ compiler, and {compiler} is not installed: install it.")
    header = Path(sysconfig.get_path("include"), "Python.h")
    if not header.exists():
        raise MannersError(f"hardware.compile=true needs {header}: install Python's headers (apt install python3-dev).")


def check_data(cfg: DictConfig) -> None:
    """The files exist and are of a kind that can be read, and their columns get known names. Raises MannersError."""
    if not cfg.dataset.mix:
        if cfg.dataset.path == "mix:":
            raise MannersError(f"dataset=mix: name the datasets, such as {mixture.EXAMPLE}", mixture.KEY)
        check_dataset(cfg.dataset)
    for name, (_, dataset) in dataset_configs(cfg.dataset).items():
        try:
            check_values(OmegaConf.merge(OmegaConf.structured(DatasetConfig), dataset), "dataset.")  # type: ignore[arg-type]
            check_dataset(dataset)
        except MannersError as error:
            raise MannersError(f"dataset.mix, {name}: {error}", "dataset.mix") from None


def check_dataset(dataset: DictConfig) -> None:
    """``check_data`` of one dataset. Raises MannersError."""
    file = sources.local_path(dataset.path)
    if file is not None:
        sources.data_files(file)
    columns, key = dataset.columns, "dataset.columns"
    if columns is None:
        return
    if not isinstance(columns, DictConfig) or not all(isinstance(name, str | None) for name in columns.values()):
        example = "'dataset.columns={prompt: question, completion: answer}'"
        raise MannersError(f"{key}={columns} is no list of our names with the file's own: {example}.", key)
    for name in map(str, columns):
        if name not in COLUMNS:
            raise MannersError(f"{key}: a row has no field '{name}' to be named. {did_you_mean(name, COLUMNS)}", key)
    taken = [column for column in columns.values() if column is not None]
    if twice := [column for column in taken if taken.count(column) > 1]:
        names = " and ".join(str(name) for name, column in columns.items() if column == twice[0])
        raise MannersError(f"{key}: the column '{twice[0]}' cannot be both {names}.", key)


def check_rows(cfg: DictConfig, splits: Splits) -> None:
    """There are rows to train on and to hold out, of the kind that the method needs. Raises MannersError."""
    check_sample_types(splits, [needed_sample_type(cfg)], cfg.dataset)
    rows, name = len(splits.train), Path(cfg.dataset.path).name
    if not rows:
        held_out = [*splits.validation, *splits.test]
        why = " Rows that begin alike are held out together: give rows a field 'split', or set " if held_out else ""
        why += "dataset.validation_share=0 dataset.test_share=0." if held_out else ""
        if held_out and all(row.metadata.get("split") for row in held_out):
            why = " The field 'split' of its rows holds all of them out: give some 'split': 'train'."
        raise MannersError(f"dataset.path={cfg.dataset.path}: it has no training rows.{why}", "dataset.path")
    if cfg.preview:
        return
    if not splits.validation and not splits.test:
        shares = cfg.dataset.validation_share + cfg.dataset.test_share
        add = "add rows with other prompts" if shares else "set dataset.validation_share above 0"
        raise MannersError(f"no rows are held out, to measure on: {add}, or give some 'split': 'test'.")
    if cfg.method.name == "kto":
        check_labels(cfg, splits)
    if "per_device_train_batch_size" not in cfg.method or cfg.adapter.kind == "frozen":  # a head's batch is of replies
        return
    steps = cfg.method.gradient_accumulation_steps * cfg.hardware.devices
    batch = cfg.method.per_device_train_batch_size * steps
    if rows < batch:
        size = rows // (2 * steps)
        smaller = f"{size}" if size else "1 method.gradient_accumulation_steps=1"
        raise MannersError(
            f"a batch of {batch} (method.per_device_train_batch_size × method.gradient_accumulation_steps) is larger "
            f"than the data: {name} has {rows} training rows. Try method.per_device_train_batch_size={smaller}."
        )


def check_labels(cfg: DictConfig, splits: Splits) -> None:
    """Replies of both labels to train on, and a held-out row to report on. Raises MannersError."""
    labels = [reply.label for reply in labeled_replies(splits.train)]
    good, bad = labels.count(True), labels.count(False)
    if not good or not bad:
        add = "'label': true" if bad else "'label': false, or a 'rejected' reply"
        raise MannersError(
            f"dataset.path={cfg.dataset.path}: method=kto learns from desirable and undesirable replies, and the "
            f"training rows have {good} desirable and {bad} undesirable ones: add rows with {add}"
            + ("." if bad else ", or train on the desirable ones alone: method=sft."),
            "dataset.path",
        )
    if not any(has_loss(row, cfg.dataset.loss_roles) for row in splits.test or splits.validation):
        raise MannersError(
            f"dataset.path={cfg.dataset.path}: all held-out rows to report on have an undesirable reply: give other "
            "rows 'split': 'test', or set dataset.test_share higher.",
            "dataset.path",
        )


def check_steps(cfg: DictConfig) -> None:
    """Rows to train on, steps to train for, a temperature to sample at. Raises MannersError."""
    m, d = cfg.method, cfg.dataset
    for flag in d.keep_flagged:
        if flag not in FLAGS:
            key = "dataset.keep_flagged"
            raise MannersError(f"{key}={list(d.keep_flagged)}: {did_you_mean(flag, FLAGS)}", key)
    if d.conversation_eos is not None and d.loss_roles == "assistant":
        raise MannersError(
            "dataset.conversation_eos is a turn of the user, whose turns carry no loss: dataset.loss_roles=user.",
            "dataset.conversation_eos",
        )
    if d.validation_share + d.test_share >= 1:
        raise MannersError("dataset.validation_share and dataset.test_share leave nothing to train on.")
    if m.get("max_steps") == 0:
        raise MannersError("method.max_steps=0 trains nothing: -1 trains for method.num_train_epochs.")
    if m.get("max_steps") == -1 and m.num_train_epochs == 0:
        raise MannersError("there is nothing to train: set method.num_train_epochs or method.max_steps above 0.")


def check_local_context(cfg: DictConfig) -> None:
    """New tokens leave room for prompts, where the model's config is on this disk. Raises MannersError."""
    folder = Path(str(files("manners"))) / "models" / "tiny" if cfg.model.name == "tiny" else Path(cfg.model.name)
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):  # on the hub, or damaged: that is for the loader to say
        return
    if context := config.get("max_position_embeddings", config.get("n_positions")):
        check_room_for_prompts(cfg, context, cfg.model.name)


def check_room_for_prompts(cfg: DictConfig, context: int, model: str) -> None:
    """Raises MannersError where ``evaluation.max_new_tokens`` leaves prompts less than an eighth of the context."""
    if not ("method" in cfg and cfg.method.name == "reward"):
        check_new_tokens("evaluation.max_new_tokens", cfg.evaluation.max_new_tokens, context, model)


def check_new_tokens(key: str, asked: int, context: int, model: str) -> None:
    """Raises MannersError where the option ``key`` leaves prompts less than an eighth of the context."""
    most = context - math.ceil(context * MIN_PROMPT_SHARE)
    if asked > most:
        raise MannersError(
            f"{key}={asked} leaves no room for prompts in the {context} tokens that {model} can read: {key}={most} or "
            "less.",
            key,
        )


def check_hardware(cfg: DictConfig) -> None:
    """Devices, strategy, microbatches and compilation. Devices are counted later. Raises MannersError."""
    h, name = cfg.hardware, cfg.method.name
    size = h.microbatch_size
    if h.precision == "fp16" and h.accelerator in ("cpu", "mps"):
        raise MannersError(
            f"fp16 training on {h.accelerator} loses small gradients: use hardware.precision=32 or bf16.",
            "hardware.precision",
        )
    if size != "auto" and not (type(size) is int and size >= 1):
        raise MannersError(f"hardware.microbatch_size={size} must be auto, or a number of at least 1.")
    if size != "auto" and cfg.method.sample_type == "prompt":
        raise MannersError(
            f"hardware.microbatch_size is for supervised methods and DPO: method={name} splits its batches by "
            "method.microbatch_tokens.",
            "hardware.microbatch_size",
        )
    if size != "auto" and name == "dpo" and cfg.method.per_device_train_batch_size % size:
        batch = cfg.method.per_device_train_batch_size
        raise MannersError(
            f"hardware.microbatch_size={size} must divide method.per_device_train_batch_size={batch}: TRL takes the "
            "mean over microbatches, so they must be of one size."
        )
    if size != "auto" and name == "kto" and size < cfg.method.per_device_train_batch_size:
        raise MannersError(
            f"hardware.microbatch_size={size} would split the batch that KTO estimates its KL over: make it smaller by "
            f"method.per_device_train_batch_size={max(size, 2)}, with more method.gradient_accumulation_steps.",
            "hardware.microbatch_size",
        )
    if h.devices > 1 and cfg.method.sample_type == "prompt":
        raise MannersError(
            f"hardware.devices={h.devices} is for SFT and reward models. method={name} is started by a launcher: "
            f"torchrun --nproc-per-node {h.devices} train.py method={name} (on GPUs also accelerate launch), with "
            "hardware.devices=1."
        )
    if h.devices > 1 and name not in ("sft", "reward"):
        raise MannersError(f"method={name} trains in one process: hardware.devices=1.")
    if h.devices > 1 and cfg.sweep.pruner != "none":
        raise MannersError(
            "sweep.pruner ends jobs that train in one process: hardware.devices=1, or sweep.pruner=none."
        )
    if h.strategy == "fsdp":
        check_fsdp(cfg)
    check_compile(cfg)


def check_fsdp(cfg: DictConfig) -> None:
    """FSDP needs several devices, and a precision and optimizer that it supports. Raises MannersError."""
    h = cfg.hardware
    if h.devices == 1:
        raise MannersError("FSDP shards a model over devices: set hardware.devices to 2 or more, or hardware=auto.")
    if cfg.adapter.quantization != "none":
        raise MannersError(
            f"FSDP cannot shard weights in {cfg.adapter.quantization} (lightning#20855): hardware=ddp, which gives "
            "each device all of them, or adapter=lora."
        )
    if h.precision == "fp16":
        raise MannersError("FSDP does not scale its loss for fp16: hardware.precision=bf16 or 32.")
    if cfg.method.optim != "adamw_torch_fused":
        raise MannersError("bitsandbytes' optimizer cannot read the shards of FSDP: method.optim=adamw_torch_fused.")
