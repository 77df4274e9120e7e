"""One run, from top to bottom."""

import json
import logging
import math
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import torch
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from manners import hardware, lineage, preview, tracking
from manners.data import readers
from manners.data.batches import Batches, in_order, pack
from manners.data.encode import Example, encode
from manners.data.rows import Chat, digest
from manners.errors import MannersError
from manners.evaluation import figures, report
from manners.evaluation.measure import Measured, measure
from manners.methods.fit import Fitted, discard_checkpoints, fit
from manners.methods.sft import SFTModule
from manners.models import adapters, base

console = Console()


def run(cfg: DictConfig, splits: readers.Splits) -> float | None:
    """Train as ``cfg`` says and return the best validation loss; with ``preview=true`` only show the data."""
    quiet()
    tokenizer = base.load_tokenizer(cfg.model.name, cfg.model.revision, cfg.model.chat_template)
    check_length(cfg)
    train = encode(splits.train, tokenizer, cfg.dataset.train_on, cfg.method.max_length)
    if cfg.preview:
        preview.show(console, splits, train, tokenizer)
        return None
    device = hardware.resolve(cfg.hardware.accelerator, cfg.hardware.precision, cfg.hardware.num_threads)
    data_digest = digest(splits.train)
    with (
        lineage.claim(cfg, data_digest) as folder,
        tracking.open_run(cfg, folder, len(splits.train), data_digest) as tracker,
    ):
        announce(cfg, folder, device, splits, train)
        L.seed_everything(cfg.seed, verbose=False)
        model = load_model(cfg, device)
        before = once(folder, "before", lambda: evaluate(cfg, model, tokenizer, splits, device))
        tracker.log(before.metrics("before"), 0)
        fitted = train_sft(cfg, model, tokenizer, splits, train, device, folder.path, tracker)
        after = evaluate(cfg, model, tokenizer, splits, device)
        tracker.log(after.metrics("after"), fitted.steps)
        save(cfg, model, tokenizer, folder.path / "model")
        publish(folder, tracker, before, after, fitted)
        folder.remember(status="finished", best_step=fitted.best_step)
        discard_checkpoints(folder.path)
    say_where(cfg, folder)
    return fitted.best_loss


def check_length(cfg: DictConfig) -> None:
    longest = base.context_length(cfg.model.name, cfg.model.revision)
    if cfg.method.max_length > longest:
        raise MannersError(
            f"method.max_length={cfg.method.max_length} is longer than {cfg.model.name} can read: "
            f"method.max_length={longest} or less."
        )


def load_model(cfg: DictConfig, device: hardware.Device) -> Any:
    """The base model with its adapter, on its device. Weights are in 32 bits; 4-bit ones compute in ``device``'s."""
    four_bit = cfg.adapter.quantization != "none"
    model: Any = base.load(
        cfg.model.name,
        cfg.model.revision,
        cfg.model.attn_implementation,
        dtype=torch.bfloat16 if four_bit and device.precision == "bf16" else torch.float32,
        quantization=cfg.adapter.quantization,
        double_quantization=cfg.adapter.double_quantization,
    )
    a = cfg.adapter
    model = adapters.adapt(
        model, a.kind, a.r, a.lora_alpha, a.lora_dropout, a.target_modules, cfg.method.gradient_checkpointing
    )
    return model if four_bit else model.to(device.kind)


def train_sft(
    cfg: DictConfig,
    model: Any,
    tokenizer: Any,
    splits: readers.Splits,
    train: list[Example],
    device: hardware.Device,
    folder: Path,
    tracker: tracking.Tracker,
) -> Fitted:
    """Fine-tune ``model`` in place; it ends with the weights of the lowest validation loss."""
    m = cfg.method
    if m.packing:
        train = pack(train, m.max_length)
    accumulate = m.gradient_accumulation_steps
    per_epoch = len(train) / (m.per_device_train_batch_size * accumulate)
    steps = m.max_steps if m.max_steps > 0 else max(1, math.ceil(m.num_train_epochs * per_epoch))
    if 1 <= steps <= m.warmup_steps:
        console.print(
            f"[yellow]the warm-up of {m.warmup_steps:.0f} steps is longer than the run of {steps}: the learning rate "
            "never reaches its peak. For a share of the run: method.warmup_steps=0.1[/]"
        )
    held_out = encode(splits.validation or splits.test, tokenizer, cfg.dataset.train_on, m.max_length)
    pad = tokenizer.pad_token_id
    module = SFTModule(
        model,
        tracker.log,
        total_steps=steps,
        learning_rate=m.learning_rate,
        lr_scheduler_type=m.lr_scheduler_type,
        warmup_steps=m.warmup_steps,
        weight_decay=m.weight_decay,
        max_grad_norm=m.max_grad_norm,
        accumulate=accumulate,
        logging_steps=m.logging_steps,
    )
    return fit(
        module,
        Batches(train, m.per_device_train_batch_size, pad, steps, accumulate, cfg.seed, m.group_by_length),
        in_order(held_out, m.per_device_eval_batch_size, pad),
        folder,
        device,
        eval_steps=m.eval_steps,
        save_steps=m.save_steps,
        patience=m.early_stopping_patience,
    )


def evaluate(cfg: DictConfig, model: Any, tokenizer: Any, splits: readers.Splits, device: hardware.Device) -> Measured:
    """The model on the held-out rows: the same prompts, decoding and seed before and after training."""
    held_out: list[Chat] = splits.test or splits.validation
    if cfg.adapter.quantization == "none":
        model.to(device.kind)
    e = cfg.evaluation
    return measure(
        model,
        tokenizer,
        held_out,
        encode(held_out, tokenizer, cfg.dataset.train_on, cfg.method.max_length),
        readers.eval_prompts(cfg.dataset),
        judged=cfg.dataset.judge != "none",
        show=e.prompts,
        test_prompts=e.test_prompts,
        max_new_tokens=e.max_new_tokens,
        batch_size=e.batch_size,
        do_sample=e.do_sample,
        temperature=e.temperature,
        seed=cfg.seed,
    )


def once(folder: lineage.Folder, name: str, make: Any) -> Measured:
    """What was measured before a kill is not measured again."""
    if name not in folder.state:
        folder.remember(**{name: make().to_json()})
    return Measured.from_json(folder.state[name])


def save(cfg: DictConfig, model: Any, tokenizer: Any, out: Path) -> None:
    """Adapter or weights, tokenizer with its template, generation config: what transformers and peft load alone."""
    model.save_pretrained(out, safe_serialization=True)
    tokenizer.save_pretrained(out)
    own = model.generation_config
    own.eos_token_id, own.pad_token_id = base.stop_tokens(model, tokenizer), tokenizer.pad_token_id
    own.save_pretrained(out)
    (out / "manners.yaml").write_text(OmegaConf.to_yaml(cfg, resolve=True))


def publish(
    folder: lineage.Folder, tracker: tracking.Tracker, before: Measured, after: Measured, fitted: Fitted
) -> None:
    """Show what changed, and keep it: table, figures and model in the run folder and in MLflow."""
    report.show(console, before, after)
    text = report.markdown(folder.path.name, before, after)
    (folder.path / "before_after.md").write_text(text)
    (folder.path / "after.json").write_text(json.dumps(after.to_json(), indent=1, ensure_ascii=False))
    curve = figures.learning_curve(folder.path / "metrics.jsonl", fitted.best_step, folder.path / "learning_curve.png")
    tracker.artifact(curve, "figures")
    if before.fit:
        tracker.artifact(figures.manner(before, after, folder.path / "manner.png"), "figures")
    tracker.artifact(folder.path / "before_after.md")
    tracker.artifact(folder.path / "after.json")
    tracker.table(report.rows(before, after), "before_after.json")
    tracker.describe(text)
    tracker.artifact(folder.path / "model")
    tracker.tag(best_step=str(fitted.best_step))


def announce(
    cfg: DictConfig, folder: lineage.Folder, device: hardware.Device, splits: readers.Splits, train: list[Example]
) -> None:
    resumed = (folder.path / "last.ckpt").exists()
    console.print(
        f"[bold]{folder.path.name}[/]  {cfg.model.name}, {cfg.adapter.kind}, on {device.kind}, {device.number_format}"
    )
    for line in preview.counts(splits, train):
        console.print(line, highlight=False)
    if resumed:
        console.print("going on from the last checkpoint of an unfinished run (resume=false starts anew)")
    elif folder.again:
        console.print("this very run has finished before: running it once more, in a folder of its own")
    if not splits.validation and not splits.test:
        raise MannersError("no rows are held out: set dataset.validation_share above 0, or add rows.")


def say_where(cfg: DictConfig, folder: lineage.Folder) -> None:
    console.print(f"\nmodel, report and figures: {folder.path}", highlight=False)
    ui = "make ui" if cfg.output_dir == "outputs" else f".venv/bin/mlflow ui --backend-store-uri {cfg.tracking.uri}"
    console.print(f"compare runs: {ui}", highlight=False, soft_wrap=True)


def quiet() -> None:
    """Hush what libraries say about themselves; what they say about the run stays."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning|transformers")
    warnings.filterwarnings("ignore", message=".*lightning.*|.*dataloader.*|.*`tags`.*")
    warnings.filterwarnings("ignore", category=FutureWarning)
