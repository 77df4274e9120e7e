"""Several datasets in one training (``dataset.mix``): rows drawn by weights, each dataset reported alone."""

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import zip_longest
from typing import Any

from omegaconf import DictConfig, OmegaConf

from manners.data.types import Conversation
from manners.errors import MannersError

# The field of a row's metadata that holds the name of its dataset in the mixture. A file may have a column "dataset".
DATASET = "dataset.mix"
MAX_PASSES = 10_000  # of a dataset in an epoch: the list of rows is in memory
OF_ENTRY = ("name", "weight")  # of an entry of ``dataset.mix``; the others are options of its dataset


def dataset_configs(cfg: DictConfig) -> dict[str, tuple[float | None, DictConfig]]:
    """The weight (None for an entry without one) and the config of each dataset of ``cfg.mix``, by its unique name.

    The options of ``cfg`` are the defaults of all.
    """
    outer: Any = OmegaConf.to_container(cfg, resolve=True)
    return {
        entry["name"]: (
            entry.get("weight"),
            OmegaConf.create(outer | {"mix": None, "sample_types": []} | without(entry, OF_ENTRY)),
        )
        for entry in outer["mix"] or []
    }


def without(values: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in names}


def mix_rows(rows: Mapping[str, list[Conversation]], weights: Mapping[str, float | None]) -> list[Conversation]:
    """One epoch of the mixture: every training row at least once, each dataset's share of rows by its weight.

    So the rows of the dataset that has the most of them for its weight come once, and those of the others again and
    again; which of them come once more than the rest does not depend on the run. Without weights all rows come once. A
    weight of 0 trains on none: such a dataset is reported alone. Raises MannersError for weights so far apart that the
    rows of a dataset would come ``MAX_PASSES`` times.
    """
    counts = {name: len(of) for name, of in rows.items()}
    if not any(weight is None for weight in weights.values()):
        given = {name: float(weight or 0) for name, weight in weights.items() if counts[name]}
        epoch = max((counts[name] / weight for name, weight in given.items() if weight), default=0)
        counts |= {name: round(epoch * weight) for name, weight in given.items()}
        for name, of in rows.items():
            if counts[name] > MAX_PASSES * len(of):
                raise MannersError(
                    f"dataset.mix: by these weights an epoch has each of the {len(of)} training rows of {name} "
                    f"{counts[name] // len(of):,} times: bring the weights closer together.",
                    "dataset.mix",
                )
    return [row for name, of in rows.items() for row in repeated(of, counts[name])]


def repeated(rows: list[Conversation], count: int) -> list[Conversation]:
    """``count`` of ``rows``: all of them as often as fits, and a fixed sample for the rest."""
    if not rows:
        return []
    passes, rest = divmod(count, len(rows))
    return rows * passes + random.Random(0).sample(rows, rest)


def named_rows(rows: Sequence[Conversation], dataset: str) -> list[Conversation]:
    """The rows with the name of their dataset."""
    return [replace(row, metadata=row.metadata | {DATASET: dataset}) for row in rows]


def in_turn(datasets: Sequence[list[Conversation]]) -> list[Conversation]:
    """A row of each dataset in turn, so that the first rows of a mixture are not all of one."""
    return [row for rows in zip_longest(*datasets) for row in rows if row is not None]


def held_out_of_training(
    held_out: list[Conversation], training: Mapping[str, list[Conversation]]
) -> tuple[list[Conversation], int]:
    """The rows of a dataset that no other one trains on, by their messages before the last, and how many it does.

    ``training`` are the rows of the other datasets. A dataset keeps its own prompts in one split; it knows no others.
    """
    prompts = {prompt_key(row) for rows in training.values() for row in rows}
    kept = [row for row in held_out if prompt_key(row) not in prompts]
    return kept, len(held_out) - len(kept)


def prompt_key(row: Conversation) -> str:
    """What a row asks, whatever its case and spacing; of a plain text, the text."""
    asked = [(m["role"], " ".join(m["content"].casefold().split())) for m in row.messages[:-1] or row.messages]
    return json.dumps(asked)


def mixture_lines(rows: Mapping[str, list[Conversation]], mixed: Sequence[Conversation]) -> list[str]:
    """A line on each dataset: its training rows, how often they come, and its share of the training."""
    drawn = {name: sum(row.metadata[DATASET] == name for row in mixed) for name in rows}
    lines = []
    for name, of in rows.items():
        passes = f", {drawn[name] / len(of):,.1f} times each in an epoch" if of and drawn[name] != len(of) else ""
        share = 100 * drawn[name] / max(len(mixed), 1)
        used = f"{passes}: {share:.1f} % of the mixture" if drawn[name] or not of else ": none is trained on"
        lines.append(f"{name}: {len(of)} training rows{used}")
    return lines


def mixture_paths(cfg: DictConfig) -> list[str]:
    """The files, folders or hub names that a dataset's rows come from."""
    return [one.path for _, one in dataset_configs(cfg).values()] if cfg.mix else [cfg.path]
