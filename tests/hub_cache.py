"""The Hugging Face cache as downloads leave it: under their real names, tiny random checkpoints and small datasets."""

import shutil
from pathlib import Path

import pytest

from tests import hub_models, hub_rows

COMMIT = "0" * 40


def lay_out(home: Path, *names: str) -> None:
    """Fill the cache in ``home``, an HF_HOME, with these models and datasets of ``hub_models`` and ``hub_rows``."""
    for name in names:
        if name in hub_models.PUBLISHED:
            hub_models.write(name, place(home, name))
        else:
            prepare(home, name)


def place(home: Path, name: str, folder: Path | None = None) -> Path:
    """Where the hub's cache holds the files of the model ``name``; with ``folder``, its files are copied there."""
    repo = home / "hub" / f"models--{name.replace('/', '--')}"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(COMMIT)
    snapshot = repo / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    if folder:
        shutil.copytree(folder, snapshot, dirs_exist_ok=True)
    return snapshot


def prepare(home: Path, name: str) -> None:
    """A dataset as its first ``load_dataset`` leaves it: Arrow files, which are found again without the hub.

    What ``hf download --repo-type dataset`` leaves would not do: datasets 5.2 asks the hub which files a repository has
    before it looks for them in the hub's cache.
    """
    from datasets import Dataset, DatasetInfo, SplitDict, SplitInfo, Version
    from datasets.arrow_writer import ArrowWriter

    short, columns = name.split("/")[1], hub_rows.COLUMNS[name]
    folder = home / "datasets" / name.replace("/", "___") / "default" / "0.0.0" / COMMIT
    folder.mkdir(parents=True)
    splits = SplitDict(dataset_name=short)
    for split, rows in hub_rows.SPLITS[name].items():
        with ArrowWriter(features=columns, path=str(folder / f"{short}-{split}.arrow")) as writer:
            writer.write_table(Dataset.from_list(rows, features=columns).data.table)
            writer.finalize()
        splits.add(SplitInfo(split, num_examples=len(rows), dataset_name=short))
    info = DatasetInfo(
        features=columns, splits=splits, builder_name="parquet", dataset_name=short, config_name="default",
        version=Version("0.0.0"),
    )  # fmt: skip
    info.write_to_directory(str(folder))


def point_at(home: Path, patch: pytest.MonkeyPatch) -> None:
    """Have this process, and those it starts, look for models and datasets in ``home``.

    The libraries settle where their caches are when they are imported, which another test may have caused before.
    """
    import datasets
    import huggingface_hub.constants

    patch.setenv("HF_HOME", str(home))
    for name in ("HF_HUB_CACHE", "HF_DATASETS_CACHE"):
        patch.delenv(name, raising=False)
    patch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(home / "hub"))
    patch.setattr(datasets.config, "HF_DATASETS_CACHE", home / "datasets")
