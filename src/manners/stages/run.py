"""What every stage is handed, and what it hands back."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from manners.data.batches import Batch, Batches, in_order
from manners.data.readers import Splits
from manners.data.rows import Chat, Prompt, prompts
from manners.hardware import Device
from manners.lineage import CONFIG, Folder, Input
from manners.methods.fit import Fitted, fit, load_best
from manners.methods.module import Module
from manners.methods.ppo.world import World
from manners.models import adapters, base
from manners.models.compiled import compiled
from manners.tracking import Silent, Tracker

console = Console(markup=False)  # what is said may hold words of the data or the user, and those may hold brackets


@dataclass(frozen=True)
class Run:
    """A run at work."""

    cfg: DictConfig
    splits: Splits
    device: Device
    folder: Folder
    tracker: Tracker | Silent
    inputs: dict[str, Input] = field(default_factory=dict)  # "policy" and "reward", where the method needs them
    world: World = field(default_factory=World)

    @property
    def path(self) -> Path:
        return self.folder.path

    def once(self, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What was measured before a kill is not measured again."""
        if name not in self.folder.state:
            self.folder.remember(**{name: make()})
        return dict(self.folder.state[name])


@dataclass(frozen=True)
class Outcome:
    """The number that a sweep optimises, the step whose weights were kept, and a line for the chain's summary."""

    metric: float | None
    best_step: int
    summary: str


def waiting(cfg: DictConfig, chats: list[Chat]) -> list[Prompt]:
    """What the rows give a model to answer: for a reply, as the user, or to continue."""
    d = cfg.dataset
    return prompts(chats, "user" if d.train_on == "user" else "assistant", d.prompt_words)


def steps_of(cfg: DictConfig, examples: int) -> int:
    """Optimizer steps of a run that Lightning trains; says so where the warm-up is longer than that."""
    m = cfg.method
    per_epoch = examples / (m.per_device_train_batch_size * m.gradient_accumulation_steps * cfg.hardware.devices)
    steps = m.max_steps if m.max_steps > 0 else max(1, math.ceil(m.num_train_epochs * per_epoch))
    if 1 <= steps <= m.warmup_steps:
        console.print(
            f"the warm-up of {m.warmup_steps:.0f} steps is longer than the run of {steps}: the learning rate "
            "never reaches its peak. For a share of the run: method.warmup_steps=0.1",
            style="yellow",
        )
    return int(steps)


def learn(
    run: Run, module: Callable[..., Module], examples: list[Any], held_out: list[Any], together: Callable[..., Batch]
) -> Fitted:
    """Train ``module`` on ``examples`` with Lightning. ``together`` makes a batch of some of them."""
    m, steps = run.cfg.method, steps_of(run.cfg, len(examples))
    among = (run.world.rank, run.world.size)
    shuffled = Batches(
        examples, m.per_device_train_batch_size, together, steps, m.gradient_accumulation_steps, run.cfg.seed,
        m.group_by_length, *among, run.cfg.hardware.parts,
    )  # fmt: skip
    learner = module(
        log=run.tracker.log,
        total_steps=steps,
        learning_rate=m.learning_rate,
        lr_scheduler_type=m.lr_scheduler_type,
        warmup_steps=m.warmup_steps,
        weight_decay=m.weight_decay,
        max_grad_norm=m.max_grad_norm,
        accumulate=shuffled.accumulate,
        logging_steps=m.logging_steps,
        optim=run.cfg.hardware.optim,
        world=run.world,
    )
    validation = in_order(held_out, m.per_device_eval_batch_size, together, *among)
    if run.cfg.hardware.compile:
        console.print("compiling the layers: the first steps take half a minute or more")
    with compiled(learner.model, run.cfg.hardware.compile):
        fitted = fit(
            learner, shuffled, validation, run.path, run.device, m.eval_steps, m.save_steps, m.early_stopping_patience,
            run.world, run.cfg.hardware.strategy,
        )  # fmt: skip
    if run.world.rank == 0:
        run.folder.remember(tokens=tokens_read(shuffled, fitted.steps))
    return fitted


def in_one(run: Run, model: Any, make: Callable[[], Any]) -> Any:
    """The trained model in one piece: of one that was shared out, another is made and given the best weights."""
    if run.cfg.hardware.strategy == "fsdp":
        model = make()
        load_best(run.path, model)
    return model


def tokens_read(batches: Batches, steps: int) -> int:
    """Tokens of the first ``steps`` optimizer steps, prompts and all, padding apart: what the run's cost is told in."""
    return sum(batches.examples[i].tokens for step in range(steps) for group in batches.step(step) for i in group)


def load_settings(cfg: DictConfig, device: Device) -> dict[str, Any]:
    """Weights are in 32 bits; 4-bit ones compute in the device's number format."""
    four_bit = cfg.adapter.quantization != "none"
    return {
        "dtype": torch.bfloat16 if four_bit and device.precision == "bf16" else torch.float32,
        "quantization": cfg.adapter.quantization,
        "double_quantization": cfg.adapter.double_quantization,
    }


def adapt(cfg: DictConfig, model: Any, device: Device, task_type: str = "CAUSAL_LM", tokens: Sequence[int] = ()) -> Any:
    """``model`` with the adapter that the config asks for, on its device; the embeddings of ``tokens`` train too."""
    a, checkpointing = cfg.adapter, cfg.method.gradient_checkpointing
    model = adapters.adapt(
        model, a.kind, a.r, a.lora_alpha, a.lora_dropout, a.target_modules, checkpointing, task_type, tokens
    )
    return model if a.quantization != "none" else model.to(device.kind)


def load_tokenizer(cfg: DictConfig) -> Any:
    m = cfg.model
    return base.load_tokenizer(m.name, m.revision, m.chat_template, m.decoder, m.added_tokens)


def load_base(cfg: DictConfig, device: Device) -> Any:
    """The model that ``cfg.model`` names, without an adapter."""
    return base.load(cfg.model.name, cfg.model.revision, cfg.model.attn_implementation, **load_settings(cfg, device))


def save_config(cfg: DictConfig, out: Path) -> None:
    (out / CONFIG).write_text(OmegaConf.to_yaml(cfg, resolve=True))


def save_language_model(cfg: DictConfig, model: Any, tokenizer: Any, out: Path) -> None:
    """Adapter or weights, tokenizer with its template, generation config: what transformers and peft load alone."""
    model.save_pretrained(out, safe_serialization=True, **only_policy(model))
    save_beside(cfg, model, tokenizer, out)


def only_policy(model: Any) -> dict[str, Any]:
    return {"selected_adapters": ["default"]} if hasattr(model, "peft_config") else {}


def save_beside(cfg: DictConfig, model: Any, tokenizer: Any, out: Path) -> None:
    """All that belongs to a language model's folder but its weights."""
    tokenizer.save_pretrained(out)
    own = model.generation_config
    own.eos_token_id, own.pad_token_id = base.stop_tokens(model, tokenizer), tokenizer.pad_token_id
    own.save_pretrained(out)
    save_config(cfg, out)
