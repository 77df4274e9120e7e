"""The points at which the scaling is measured: one in the middle, and on each axis one below it and one above.

Nothing is imported here, so that the benchmark's list of lines may read it.
"""

FOLDER = "outputs/bench/scaling"
WIDTHS = {128: 4, 256: 6, 512: 8}  # hidden size: layers
LENGTHS, BATCHES = (64, 128, 256), (4, 8, 16)  # tokens of a row, rows of a step
MIDDLE = (256, 128, 8)

AXES = {
    "model size": [(width, *MIDDLE[1:]) for width in WIDTHS],
    "sequence length": [(MIDDLE[0], length, MIDDLE[2]) for length in LENGTHS],
    "batch": [(*MIDDLE[:2], batch) for batch in BATCHES],
}
PROMPTS = (16, 48, 128)  # of a PPO iteration
POINTS = list(dict.fromkeys(point for axis in AXES.values() for point in axis))


def name(point: tuple[int, int, int]) -> str:
    width, length, batch = point
    return f"{WIDTHS[width]} layers of {width}, {batch} rows of {length}"


def prompts(count: int) -> str:
    return f"PPO, {count} prompts"


def options(point: tuple[int, int, int]) -> str:
    """What both sides are told, which are those of the sft line."""
    width, length, batch = point
    return f"--model {FOLDER}/{width} --rows {FOLDER}/{length}.jsonl --batch {batch} --steps 3"
