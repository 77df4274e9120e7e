"""A Hugging Face cache as downloads leave it, with tiny random checkpoints and small datasets under real names."""

import shutil
from pathlib import Path

import pytest

from tests import hub_models, hub_rows

COMMIT = "0" * 40


def create(home: Path, *names: str) -> None:
    """Fill the cache in ``home``, an HF_HOME, with these models and datasets of ``hub_models`` and ``hub_rows``."""
    for name in names:
        if name in hub_models.CHECKPOINTS:
            hub_models.save_checkpoint(name, create_snapshot(home, name))
        else:
            create_dataset(home, name)


def create_snapshot(home: Path, name: str, folder: Path | None = None) -> Path:
    """Create the folder in which the cache holds the model ``name``, with a copy of the files in ``folder``."""
    repo = home / "hub" / f"models--{name.replace('/', '--')}"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(COMMIT)
    snapshot = repo / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    if folder:
        shutil.copytree(folder, snapshot, dirs_exist_ok=True)
    return snapshot


def create_dataset(home: Path, name: str) -> None:
    """Create a dataset as its first ``load_dataset`` leaves it: as Arrow files, which load without the hub.

    The files of ``hf download --repo-type dataset`` would not do: datasets 5.2 asks the hub for the list of files
    before it looks for them in the hub's cache.
    """
    from datasets import Dataset, DatasetInfo, SplitDict, SplitInfo, Version
    from datasets.arrow_writer import ArrowWriter

    dataset_name, features = name.split("/")[1], hub_rows.COLUMNS[name]
    folder = home / "datasets" / name.replace("/", "___") / "default" / "0.0.0" / COMMIT
    folder.mkdir(parents=True)
    splits = SplitDict(dataset_name=dataset_name)
    for split, rows in hub_rows.SPLITS[name].items():
        with ArrowWriter(features=features, path=str(folder / f"{dataset_name}-{split}.arrow")) as writer:
            writer.write_table(Dataset.from_list(rows, features=features).data.table)
            writer.finalize()
        splits.add(SplitInfo(split, num_examples=len(rows), dataset_name=dataset_name))
    info = DatasetInfo(
        features=features, splits=splits, builder_name="parquet", dataset_name=dataset_name, config_name="default",
        version=Version("0.0.0"),
    )  # fmt: skip
    info.write_to_directory(str(folder))


def use(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make this process, and those that it starts, look for models and datasets in ``home``.

    The libraries read the environment when they are imported, which an earlier test may have done: patch them as well.
    """
    import datasets
    import huggingface_hub.constants

    monkeypatch.setenv("HF_HOME", str(home))
    for name in ("HF_HUB_CACHE", "HF_DATASETS_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(home / "hub"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", home / "datasets")
