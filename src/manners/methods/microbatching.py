"""How many rows are in memory at once, and what to change where even that is too much.

The batch of an optimizer step belongs to the experiment; how much of it is in memory at once, to the machine. A batch
that is split into microbatches gives the same step, up to rounding.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from manners.data.loading import Splits
from manners.data.types import Conversation
from manners.errors import MannersError
from manners.models import loading, memory
from manners.models.memory import ModelShape, TrainingSetup
from manners.runtime.device import Device
from manners.runtime.progress import log_info, logger

OUT_OF_MEMORY = ("not enough memory", "out of memory", "can't allocate memory")  # torch's messages on a CPU and others
BYTES_PER_TOKEN, TOKENS_PER_TURN = 3, 8  # of text, and of what a chat template adds; on the safe side
SHORTEST, FEWEST_TOKENS = 64, 256  # tokens: the least max_length, and microbatch_tokens, that are suggested


def resolve_microbatch_size(cfg: Any, device: Device, splits: Splits) -> int:
    """The rows per device in memory at once: ``hardware.microbatch_size``, or as many as fit where it is "auto".

    "auto" halves the batch until the analytic count of a step on the longest row fits into the memory. Where even one
    row does not fit, and where the count fails, the batch is not split, with a warning.
    """
    batch_size = rows_per_device(cfg)
    if cfg.hardware.microbatch_size != "auto":
        return min(int(cfg.hardware.microbatch_size), batch_size)
    if cfg.method.sample_type == "prompt" or cfg.adapter.kind == "frozen":
        return batch_size  # PPO and RLOO split by method.microbatch_tokens, and a head needs next to nothing
    try:
        total, free = memory.device_memory(device)
        available = free if device.kind == "cuda" else total
        length, targets = longest_row(cfg, splits)
        sizes = {rows: step_memory(cfg, device, rows, length, targets) for rows in split_sizes(batch_size, cfg)}
    except Exception as error:  # noqa: BLE001  an estimate must not end a run
        logger.warning("hardware.microbatch_size=auto: the memory could not be estimated (%s): no split", error)
        return batch_size
    rows = next((rows for rows, size in sizes.items() if size <= available), None)
    if rows is None:
        needed, there = f"{min(sizes.values()) / 1e9:.2f} GB", f"{available / 1e9:.2f} GB"
        logger.warning("the run may not fit: about %s needed, %s there. See estimate=true", needed, there)
        return batch_size
    if rows < batch_size:
        log_info(f"batches of {batch_size} rows are split into microbatches of {rows} to fit into the memory")
    return rows


def rows_per_device(cfg: Any) -> int:
    """Rows of a batch on each device, as the config has it: replies for PPO and RLOO."""
    return int(cfg.method.get("per_device_train_batch_size") or cfg.method.batch_size)


def split_sizes(batch_size: int, cfg: Any) -> list[int]:
    """The microbatch sizes to choose from: the batch, a half, a quarter, ... down to one row.

    TRL takes the mean over microbatches, so for DPO they must be of one size. A batch of KTO, over which it estimates
    the KL, is not split.
    """
    if cfg.method.name == "kto":
        return [batch_size]
    sizes = list(dict.fromkeys(-(-batch_size // 2**i) for i in range(batch_size.bit_length() + 1)))
    if cfg.method.name == "dpo":
        sizes = list(dict.fromkeys(largest_divisor(batch_size, size) for size in sizes))
    return sizes


def largest_divisor(number: int, limit: int) -> int:
    """The largest divisor of ``number`` that is not above ``limit``."""
    return next(d for d in range(min(number, limit), 0, -1) if number % d == 0)


def longest_row(cfg: Any, splits: Splits) -> tuple[int, int]:
    """Tokens of the longest training row, and of the most that carry loss in one, guessed from their text."""
    limit, packing = cfg.method.max_length, cfg.method.get("packing", False)
    roles = cfg.dataset.loss_roles
    rows = [row_tokens(chat, cfg.method.name, roles, limit) for chat in splits.train]
    lengths, targets = (max(column, default=limit) for column in zip(*rows, strict=True))
    return (limit if packing else lengths), (limit if packing else targets)


def row_tokens(chat: Conversation, method: str, roles: str, limit: int) -> tuple[int, int]:
    """Tokens of the row that is made of a conversation, and of those that carry loss, guessed from its text."""
    length = text_tokens(m["content"] for m in chat.messages)
    trained = text_tokens(m["content"] for m in chat.messages if roles == "all" or m["role"] in (roles, "text"))
    if method == "sft":
        return min(length, limit), min(trained, limit)
    # A reward model reads all replies to a prompt in one row; DPO reads two rows, with the logits of both; KTO one.
    others = [o["content"] for o in chat.metadata.get("mismatched", [])]
    others += [chat.metadata["rejected"]] if "rejected" in chat.metadata else []
    if method in ("dpo", "kto"):
        length = min(max([length, *(text_tokens([o]) for o in others)]), limit)
        length = 2 * length if method == "dpo" else length
        return length, length
    return min(length + text_tokens(others), limit * (1 + len(others))), 0


def text_tokens(texts: Iterable[str]) -> int:
    """Tokens of turns with these texts, about."""
    return sum(len(text.encode()) // BYTES_PER_TOKEN + TOKENS_PER_TURN for text in texts)


def step_memory(cfg: Any, device: Device, rows: int, length: int, targets: int) -> int:
    """Bytes at the fullest moment of an optimizer step on ``rows`` rows of ``length`` tokens, ``targets`` with loss."""
    setup = training_setup(cfg, device)
    parts = setup.training_step(rows, length, rows * targets)
    if cfg.method.name in ("dpo", "kto") and not setup.lora_rank:
        parts[memory.REFERENCE] = setup.weight_bytes
    return (parts + memory.runtime_parts(device, parts)).total()


def training_setup(cfg: Any, device: Device) -> TrainingSetup:
    """What the memory of a run depends on besides its batch."""
    a, m, h = cfg.adapter, cfg.method, cfg.hardware
    config = loading.load_config(cfg.model.name, cfg.model.revision)
    return TrainingSetup(
        ModelShape.from_config(config, has_lm_head=m.name != "reward"),
        device,
        lora_rank=a.r if a.kind in ("lora", "qlora") else 0,
        use_dora=a.use_dora and a.kind in ("lora", "qlora"),
        quantized=a.quantization != "none",
        gradient_checkpointing=m.gradient_checkpointing,
        optim=m.optim,
        shards=h.devices if h.strategy == "fsdp" else 1,
    )


def suggest_overrides(cfg: Any) -> Iterator[dict[str, str]]:
    """Overrides that need less memory, the cheapest first.

    First those with the same result up to rounding: smaller microbatches. Then those that cost time (gradient
    checkpointing), a little precision (8-bit states), and last those that make it another experiment: an adapter, or
    shorter rows.
    """
    m = cfg.method
    if m.sample_type == "prompt":
        yield from halved("method.microbatch_tokens", m.microbatch_tokens, FEWEST_TOKENS)
    else:
        size = cfg.hardware.microbatch_size
        batch_size = rows_per_device(cfg)
        smaller = [s for s in split_sizes(batch_size, cfg) if s < (batch_size if size == "auto" else int(size))]
        yield from ({"hardware.microbatch_size": str(rows)} for rows in smaller)
    for key in ("method.per_device_eval_batch_size", "evaluation.batch_size"):
        value = m.get("per_device_eval_batch_size", 1) if key.startswith("method") else cfg.evaluation.batch_size
        yield from halved(key, value, 1)
    if not m.gradient_checkpointing:
        yield {"method.gradient_checkpointing": "true"}
    if m.optim == "adamw_torch_fused" and cfg.hardware.accelerator != "mps":
        yield {"method.optim": "paged_adamw_8bit"}
    if cfg.adapter.kind == "none" and m.get("critic") != "adapter":
        yield {"adapter": "lora"}
    if cfg.adapter.kind != "qlora" and cfg.model.decoder and cfg.hardware.accelerator != "mps":
        yield {"adapter": "qlora"}
    for key in ("max_length", "max_prompt_length", "response_length"):
        yield from halved(f"method.{key}", m.get(key, 0), SHORTEST)


def halved(key: str, value: int, least: int) -> Iterator[dict[str, str]]:
    """Overrides of ``key`` with a half of ``value``, a quarter, ... down to ``least``."""
    while value // 2 >= least:
        value //= 2
        yield {key: str(value)}


def format_overrides(overrides: dict[str, str]) -> str:
    """Overrides as they are typed."""
    return " ".join(f"{key}={value}" for key, value in overrides.items())


@contextmanager
def report_out_of_memory(cfg: Any) -> Iterator[None]:
    """Turn an out-of-memory error into a list of overrides that need less. Raises MannersError."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if type(error) is RuntimeError and not any(text in str(error).lower() for text in OUT_OF_MEMORY):
            raise
        first: dict[str, str] = {}  # of each key
        for overrides in suggest_overrides(cfg):
            first.setdefault(next(iter(overrides)), format_overrides(overrides))
        raise MannersError(
            f"out of memory in method={cfg.method.name} of {cfg.model.name}. Add to the command, the cheapest first:\n"
            + "\n".join(f"  {line}" for line in first.values())
            + "\nestimate=true says which of them are enough, and trains nothing."
        ) from None
