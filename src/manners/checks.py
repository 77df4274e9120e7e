"""Combinations that cannot work, refused before anything heavy is imported."""

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from manners.config import is_schema, options
from manners.data import source
from manners.errors import MannersError, did_you_mean

COUNTABLE = 50_000_000  # bytes: a larger file is counted when it is read, not while the user waits


def check(cfg: DictConfig) -> None:
    """Raise MannersError for the first thing in ``cfg`` that makes no sense, with the override that mends it."""
    check_missing(cfg)
    check_choices(cfg)
    check_ranges(cfg)
    check_method(cfg)
    check_adapter(cfg)
    check_data(cfg)


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


def check_ranges(cfg: DictConfig) -> None:
    m, a, d = cfg.method, cfg.adapter, cfg.dataset
    at_least = {
        "method.learning_rate": (m.learning_rate, 0),
        "method.warmup_steps": (m.warmup_steps, 0),
        "method.per_device_train_batch_size": (m.per_device_train_batch_size, 1),
        "method.per_device_eval_batch_size": (m.per_device_eval_batch_size, 1),
        "method.gradient_accumulation_steps": (m.gradient_accumulation_steps, 1),
        "method.max_length": (m.max_length, 8),
        "method.eval_steps": (m.eval_steps, 1),
        "method.save_steps": (m.save_steps, 1),
        "method.logging_steps": (m.logging_steps, 1),
        "method.weight_decay": (m.weight_decay, 0),
        "method.max_grad_norm": (m.max_grad_norm, 0),
        "method.early_stopping_patience": (m.early_stopping_patience, 0),
        "adapter.r": (a.r, 1),
        "evaluation.prompts": (cfg.evaluation.prompts, 0),
        "evaluation.test_prompts": (cfg.evaluation.test_prompts, 0),
        "evaluation.max_new_tokens": (cfg.evaluation.max_new_tokens, 1),
        "evaluation.batch_size": (cfg.evaluation.batch_size, 1),
    }
    for key, (value, least) in at_least.items():
        if not value >= least:  # so that nan, which compares with nothing, is refused too
            raise MannersError(f"{key}={value} must be at least {least}.", key)
    shares = {
        "adapter.lora_dropout": a.lora_dropout,
        "dataset.validation_share": d.validation_share,
        "dataset.test_share": d.test_share,
    }
    for key, value in shares.items():
        if not 0 <= value < 1:
            raise MannersError(f"{key}={value} must be from 0 up to, but not including, 1.", key)
    if d.validation_share + d.test_share >= 1:
        raise MannersError("dataset.validation_share and dataset.test_share leave nothing to train on.")
    if cfg.hardware.num_threads is not None and cfg.hardware.num_threads < 1:
        raise MannersError(f"hardware.num_threads={cfg.hardware.num_threads} must be at least 1, or null.")
    if d.max_rows is not None and d.max_rows < 1:
        raise MannersError(f"dataset.max_rows={d.max_rows} must be at least 1, or null for all rows.")
    if m.max_steps < -1:
        raise MannersError(f"method.max_steps={m.max_steps} must be above 0, or -1 to train for the epochs.")
    if m.max_steps == 0 or (m.max_steps < 0 and m.num_train_epochs <= 0):
        raise MannersError("there is nothing to train: set method.num_train_epochs or method.max_steps above 0.")
    if cfg.evaluation.do_sample and cfg.evaluation.temperature <= 0:
        raise MannersError("evaluation.temperature must be above 0 to sample; evaluation.do_sample=false is greedy.")


def check_method(cfg: DictConfig) -> None:
    if cfg.method.view not in cfg.dataset.views:
        having = ", ".join(source.datasets_with(cfg.method.view)) or "none yet"
        raise MannersError(
            f"method={cfg.method.name} needs '{cfg.method.view}' rows, and {cfg.dataset.path} offers "
            f"{', '.join(cfg.dataset.views)}. Datasets that have them: {having}."
        )
    if cfg.method.view == "chat" and not cfg.model.decoder:
        raise MannersError(
            f"{cfg.model.name} is an encoder and cannot write replies: method={cfg.method.name} needs a decoder, "
            "such as model=tiny or model=gpt2."
        )
    if cfg.method.get("packing") and cfg.method.get("group_by_length"):
        raise MannersError(
            "packed rows are all of one length: with method.packing=true set method.group_by_length=false."
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
    if quantization != "none" and cfg.hardware.accelerator == "mps":
        raise MannersError("bitsandbytes has no 4-bit kernels for Apple's GPU: use adapter=lora with hardware=mps.")


def check_data(cfg: DictConfig) -> None:
    """A file must be there; and a batch larger than the data would never be filled."""
    file = source.local_path(cfg.dataset.path)
    if file is None:  # a hub name
        return
    sizes = [f.stat().st_size for f in source.files_of(file)]
    if sum(sizes) > COUNTABLE:
        return
    rows = sum(source.count_rows(f) for f in source.files_of(file))
    rows = min(rows, cfg.dataset.max_rows or rows)
    batch = cfg.method.per_device_train_batch_size * cfg.method.gradient_accumulation_steps
    if 0 < rows < batch:  # what has no rows is refused by its reader, which knows why
        size = rows // (2 * cfg.method.gradient_accumulation_steps)
        smaller = f"{size}" if size else "1 method.gradient_accumulation_steps=1"
        raise MannersError(
            f"a batch of {batch} (method.per_device_train_batch_size × method.gradient_accumulation_steps) is larger "
            f"than the data: {Path(file).name} has {rows} rows. Try method.per_device_train_batch_size={smaller}."
        )
