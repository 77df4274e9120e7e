"""The points at which scaling is measured: one in the middle, and on each axis one below and one above it.

This module imports nothing, so that lines.py stays fast to import.
"""

FOLDER = "outputs/bench/scaling"
WIDTHS = {128: 4, 256: 6, 512: 8}  # hidden size: layers
LENGTHS, BATCHES = (64, 128, 256), (4, 8, 16)  # tokens per row, rows per step
MIDDLE = (256, 128, 8)

AXES = {
    "model size": [(width, *MIDDLE[1:]) for width in WIDTHS],
    "sequence length": [(MIDDLE[0], length, MIDDLE[2]) for length in LENGTHS],
    "batch": [(*MIDDLE[:2], batch) for batch in BATCHES],
}
PROMPT_COUNTS = (16, 48, 128)  # per PPO iteration
POINTS = list(dict.fromkeys(point for axis in AXES.values() for point in axis))


def case_name(point: tuple[int, int, int]) -> str:
    width, length, batch = point
    return f"{WIDTHS[width]} layers of {width}, {batch} rows of {length}"


def ppo_case_name(count: int) -> str:
    return f"PPO, {count} prompts"


def command_options(point: tuple[int, int, int]) -> str:
    """The options of both sides, which are those of the sft line."""
    width, length, batch = point
    return f"--model {FOLDER}/{width} --rows {FOLDER}/{length}.jsonl --batch {batch} --steps 3"
