"""Combinations that cannot work, refused before anything heavy is imported."""

import os
import shutil
import sys
import sysconfig
from importlib.util import find_spec
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from manners import ranges, several
from manners.config import STARTS_FROM, is_schema, options
from manners.data import source
from manners.errors import MannersError, did_you_mean

COUNTABLE = 50_000_000  # bytes: a larger file is counted when it is read, not while the user waits


def check(cfg: DictConfig) -> None:
    """Raise MannersError for the first thing in ``cfg`` that makes no sense, with the override that mends it."""
    check_missing(cfg)
    check_choices(cfg)
    if "method" not in cfg:  # evaluate.py and chat.py open what was trained
        check_opened(cfg)
        return
    ranges.check(cfg)
    check_method(cfg)
    check_start(cfg)
    check_online(cfg)
    check_adapter(cfg)
    check_compile(cfg)
    several.check(cfg)
    check_data(cfg)


def check_opened(cfg: DictConfig) -> None:
    least = {"turns": 0, "chats": 1, "max_new_tokens": 1, "evaluation.max_new_tokens": 1, "evaluation.batch_size": 1}
    for key, minimum in least.items():
        value = OmegaConf.select(cfg, key)
        if value is not None and value < minimum:
            raise MannersError(f"{key}={value} must be at least {minimum}.", key)
    if cfg.hardware.devices != 1:
        raise MannersError(f"hardware.devices={cfg.hardware.devices}: here one process opens a model; leave it at 1.")
    if "strength" in cfg and not -1 <= cfg.strength <= 2:
        raise MannersError(f"strength={cfg.strength} must be from -1 to 2: 0 is the base, 1 the model as trained.")
    if "temperature" in cfg and cfg.do_sample and cfg.temperature <= 0:
        raise MannersError("temperature must be above 0 to sample; do_sample=false is greedy.")
    if "lm_eval" in cfg and cfg.lm_eval and find_spec("lm_eval") is None:
        install = ".venv/bin/pip install -c conf/constraints.txt -e '.[eval]'"
        raise MannersError(f"lm_eval: it is an extra, and not installed here: {install}")
    if cfg.get("dataset") and not OmegaConf.is_missing(cfg.dataset, "path"):
        source.local_path(cfg.dataset.path)  # a path to nothing is answered at once


def check_missing(cfg: DictConfig) -> None:
    for key in sorted(OmegaConf.missing_keys(cfg)):
        raise MannersError(f"{key} has no value, and there is no default: set {key}=VALUE.")


def check_choices(node: DictConfig, path: str = "") -> None:
    for name, field in options(OmegaConf.get_type(node)).items():
        value = node[name] if not OmegaConf.is_missing(node, name) else None
        choices = field.metadata.get("choices", ())
        if choices and value not in choices:
            raise MannersError(
                f"{path}{name}={value} is not a choice. {did_you_mean(str(value), choices)}", path + name
            )
        if isinstance(value, DictConfig) and is_schema(OmegaConf.get_type(value)):
            check_choices(value, f"{path}{name}.")


def check_method(cfg: DictConfig) -> None:
    view = "pairs" if cfg.method.get("loss") == "pairwise" else cfg.method.view
    if view not in cfg.dataset.views:
        having = ", ".join(source.datasets_with(view)) or "none yet"
        raise MannersError(
            f"method={cfg.method.name} needs '{view}' rows, and {cfg.dataset.path} offers "
            f"{', '.join(cfg.dataset.views)}. Datasets that have them: {having}."
        )
    if cfg.method.view != "scored" and not cfg.model.decoder:
        raise MannersError(
            f"{cfg.model.name} is an encoder and cannot write replies: method={cfg.method.name} needs a decoder, "
            "such as model=tiny or model=gpt2."
        )
    if cfg.method.view == "prompt" and cfg.dataset.train_on == "user":
        raise MannersError(
            f"method={cfg.method.name} answers as the assistant: dataset.train_on=user is for SFT.", "dataset.train_on"
        )
    if cfg.model.added_tokens and cfg.method.name != "sft":
        raise MannersError(
            f"model.added_tokens has embeddings that SFT trains, and method={cfg.method.name} does not keep: leave "
            "the marks as plain text, model.added_tokens=[].",
            "model.added_tokens",
        )
    if cfg.method.get("packing") and cfg.method.get("group_by_length"):
        raise MannersError(
            "packed rows are all of one length: with method.packing=true set method.group_by_length=false."
        )


def check_start(cfg: DictConfig) -> None:
    """A run is named only for what the method starts from, and the base is one that a policy can be merged into."""
    roles = STARTS_FROM.get(cfg.method.view, ())
    place = "a policy alone" if roles else "the base model, not from a run"
    for role in ("policy", "reward"):
        if role not in roles and cfg[role] not in ("auto", "none"):
            raise MannersError(f"{role}={cfg[role]}: method={cfg.method.name} starts from {place}.")
    if roles and cfg.adapter.kind == "qlora" and cfg.policy != "none":
        raise MannersError(
            "an SFT adapter merged into 4-bit weights is no longer the policy that SFT trained (peft#2321): "
            "adapter=lora, or policy=none to start from the base itself."
        )


def check_online(cfg: DictConfig) -> None:
    """PPO and RLOO: batches that divide, and a critic that has where to sit."""
    m = cfg.method
    if m.view != "prompt":
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
    """An extra, for NVIDIA GPUs alone. Whether there is one here is seen when torch has been imported."""
    if cfg.method.generation != "vllm":
        return
    if cfg.hardware.accelerator in ("cpu", "mps"):
        raise MannersError(
            f"method.generation=vllm needs an NVIDIA GPU, and hardware.accelerator={cfg.hardware.accelerator}: "
            "hardware=cuda, or method.generation=auto."
        )
    if find_spec("vllm") is None or find_spec("trl") is None:
        raise MannersError(
            "method.generation=vllm: vLLM is not installed here. It wants other versions than conf/constraints.txt "
            "has, so give it an environment of its own: python3 -m venv outputs/vllm && outputs/vllm/bin/pip install "
            "--editable '.[vllm]'; then outputs/vllm/bin/python train.py ... Without it: method.generation=auto."
        )
    if cfg.adapter.quantization != "none":
        raise MannersError(
            "method.generation=vllm would merge the adapter into 4-bit weights, and sample from another policy than "
            "the one that trains (peft#2321): adapter=lora, or method.generation=auto."
        )


def check_rewards(cfg: DictConfig) -> None:
    """Each part of the reward must be one that can be made; whether its function exists is seen before training."""
    parts = cfg.method.rewards
    if not isinstance(parts, DictConfig) or not parts:
        raise MannersError(f"method.rewards={parts} names no part: +method.rewards.NAME={{_target_:MODULE.FUNCTION}}.")
    for name, part in ((str(name), part) for name, part in parts.items()):
        if not isinstance(part, DictConfig):
            raise MannersError(
                f"method.rewards.{name}={part}: a part of the reward is {{weight:1.0,_target_:MODULE.FUNCTION}}, and "
                f"~method.rewards.{name} takes it out."
            )
        if cfg.reward == "none" and "_target_" not in part:
            raise MannersError(
                f"reward=none, and method.rewards.{name} names no function: add a part of your own with "
                f"+method.rewards.NAME={{_target_:MODULE.FUNCTION}}, and take this one out with ~method.rewards.{name}."
            )


def check_adapter(cfg: DictConfig) -> None:
    kind, quantization = cfg.adapter.kind, cfg.adapter.quantization
    if quantization != "none" and kind == "none":
        raise MannersError(
            f"weights in {quantization} cannot be trained themselves: use adapter=qlora, or "
            "adapter.quantization=none for full fine-tuning."
        )
    if kind == "qlora" and quantization == "none":
        raise MannersError("adapter=qlora needs a quantized base: adapter.quantization=nf4, or use adapter=lora.")
    if kind == "lora" and quantization != "none":
        raise MannersError(f"a LoRA over a base in {quantization} is QLoRA: use adapter=qlora.")
    if cfg.hardware.optim != "adamw" and cfg.hardware.accelerator == "mps":
        raise MannersError("bitsandbytes has no 8-bit optimizer for Apple's GPU: hardware.optim=adamw.")
    if quantization != "none" and cfg.hardware.accelerator == "mps":
        raise MannersError("bitsandbytes has no 4-bit kernels for Apple's GPU: use adapter=lora with hardware=mps.")


def check_compile(cfg: DictConfig) -> None:
    """For what Lightning trains; and torch writes C++, which something here must be able to compile."""
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
        raise MannersError(f"hardware.compile=true needs a C++ compiler, and {compiler} is not here: install it.")
    header = Path(sysconfig.get_path("include"), "Python.h")
    if not header.exists():
        raise MannersError(f"hardware.compile=true needs {header}: install Python's headers (apt install python3-dev).")


def check_data(cfg: DictConfig) -> None:
    """A file must be there; and a batch larger than the data would never be filled."""
    file = source.local_path(cfg.dataset.path)
    if file is None or source.is_table(file):  # the hub's, which is counted when it is read
        return
    sizes = [f.stat().st_size for f in source.files_of(file)]
    if sum(sizes) > COUNTABLE:
        return
    rows = sum(source.count_rows(f) for f in source.files_of(file))
    rows = min(rows, cfg.dataset.max_rows or rows)
    if cfg.preview or "per_device_train_batch_size" not in cfg.method:
        return
    steps = cfg.method.gradient_accumulation_steps * cfg.hardware.devices
    batch = cfg.method.per_device_train_batch_size * steps
    if 0 < rows < batch:  # what has no rows is refused by its reader, which knows why
        size = rows // (2 * steps)
        smaller = f"{size}" if size else "1 method.gradient_accumulation_steps=1"
        raise MannersError(
            f"a batch of {batch} (method.per_device_train_batch_size × method.gradient_accumulation_steps) is larger "
            f"than the data: {Path(file).name} has {rows} rows. Try method.per_device_train_batch_size={smaller}."
        )
