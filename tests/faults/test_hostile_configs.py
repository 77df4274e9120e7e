"""Recipes, overrides, names, run folders and models, damaged or made to harm: only sentences, and nothing outside."""

import json
import random
import shutil
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from hydra.core.plugins import Plugins

from manners.cli.main import validate_command_line
from manners.config import compose, schema
from manners.data import sources
from manners.errors import MannersError
from manners.pipeline import model_ref
from manners.runtime import hub, run_dir
from tests.configs import changed
from tests.faults import hostile
from tests.faults.test_hostile_data import check_printable

RECIPE = """\
# @package _global_
# a recipe
experiment_name: mine
seed: 3
run_name: first
method:
  learning_rate: 1e-4
  max_steps: 20
adapter:
  r: 8
dataset:
  max_rows: 50
  languages: [en, de]
evaluation:
  prompts: 4
"""
KEYS = [
    *("seed", "run_name", "experiment_name", "policy_from", "method.learning_rate", "method.max_steps", "dataset.path"),
    *("dataset.languages", "model.name", "adapter.r", "adapter.target_modules", "hardware.num_threads", "study"),
    *("tracking.uri", "dataset", "method", "+method.rewards", "policy_run_overrides", "dataset.max_rows", "debug", "model"),
]
NAMES = [*hostile.STRINGS, "..", "../..", "/", "\\..\\..", "~", "a/../../b", ".", "-rf", "x" * 300]
TYPED = [
    "=",
    "a",
    "a=",
    "+",
    "~",
    "~method",
    "a.b.c=1",
    "+a[0]=1",
    "seed=[",
    "seed={",
    "seed=${seed}",
    "@=1",
    "seed=1,2",
]


def composed(number, folder, patch):
    """A damaged recipe, or a strange override: composed and checked as the command line does it."""
    pick = random.Random(f"config/{number}")
    overrides = []
    if number % 2:
        value = pick.choice([*hostile.VALUES, "1e400", "-1", "null", "{a: 1}", "[1,[2]]", "${oc.env:HOME}"])
        value = value if isinstance(value, str) else json.dumps(value)
        overrides = [pick.choice(TYPED) if pick.random() < 0.2 else f"{pick.choice(KEYS)}={value}"]
    else:
        recipe = RECIPE.encode()
        if pick.random() < 0.5:
            damaged = hostile.damage_row(yaml.safe_load(recipe), pick)
            recipe = b"# @package _global_\n" + json.dumps(damaged).encode()
        else:
            recipe = hostile.damage_bytes(recipe, pick)
        (folder / "study").mkdir(exist_ok=True)
        (folder / "study" / "mine.yaml").write_bytes(recipe)
        patch.setattr(compose, "EXPERIMENTS", folder)
        patch.setattr(compose, "ROOT", Path("/"))  # of the names in messages
        overrides = ["study=mine"]
    schema.register_schemas()
    Plugins.instance().register(compose.UserConfigDir)
    validate_command_line("train", overrides, False)


def named(number, folder, patch):
    """Names that would lead elsewhere: the run's folder is in output_dir all the same."""
    pick = random.Random(f"name/{number}")
    out = folder / "out"
    before = {p for p in folder.rglob("*") if out not in (p, *p.parents)}
    cfg = changed(f"output_dir={out}")
    name = pick.choice(
        [*hostile.STRINGS, "..", "../..", "/", "\\..\\..", "~", "a/../../b", ".", "con", "-rf", "x" * 300]
    )
    cfg[pick.choice(["run_name", "experiment_name"])] = name
    if pick.random() < 0.5:
        cfg.model.name = name
    try:
        with run_dir.acquire(cfg, "digest") as found:
            assert found.path.resolve().parent == (out / "runs").resolve()
    finally:
        assert {p for p in folder.rglob("*") if out not in (p, *p.parents)} == before
    for key in ("", "x" * number):
        assert run_dir.find_by_name(name + key, str(out / "empty")) is None or Path(name).exists()
        for look in (sources.local_path, hub.require_model):
            with suppress(MannersError):
                look(name + key)


def opened(number, folder, patch):
    """A run's folder of which one file is damaged: its state, its config, or a file of its model."""
    pick = random.Random(f"run/{number}")
    out = folder / f"out{number}"
    run = out / "runs" / "mine"
    shutil.rmtree(out, ignore_errors=True)  # the short form may have been before the long one
    shutil.copytree(folder / "good", run)
    files = sorted(p for p in run.rglob("*") if p.is_file() and p.name != "tokenizer.json")
    file = pick.choice(files)
    if file.suffix == ".json" and pick.random() < 0.5:
        file.write_text(json.dumps(hostile.damage_row(json.loads(file.read_text()), pick)))
    else:
        file.write_bytes(hostile.damage_bytes(file.read_bytes(), pick))
    cfg = changed(f"output_dir={out}", f"tracking.uri=sqlite:///{out}/mlflow.db")
    try:
        model_ref.load_model_ref(model_ref.resolve_model(pick.choice(["mine", "latest"]), cfg), "cpu")
    except MannersError as error:
        raise MannersError(f"{file.name}: {error}") from error


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("hostile")


@pytest.fixture
def good(folder, small_qwen2, tokenizer):
    """A run that finished, with a model of its own."""
    if not (folder / "good").exists():
        model = folder / "good" / "model"
        small_qwen2.save_pretrained(model)
        tokenizer.save_pretrained(model)
        made_by = {
            "model": {"name": "tiny", "revision": None, "chat_template": "auto"},
            "adapter": {"kind": "none", "quantization": "none"},
            "method": {"name": "sft", "max_length": 64},
        }
        (model / run_dir.CONFIG_FILE).write_text(yaml.safe_dump(made_by))
        state = {"status": "finished", "stage_mark": "abc", "fingerprint": "def", "mlflow_run_id": "0" * 32}
        (folder / "good" / "run.json").write_text(json.dumps(state))


CASES = [(composed, 50, 6), (named, 28, 28), (opened, 22, 3)]


@pytest.mark.parametrize(
    ("what", "count"),
    [pytest.param(what, short, id=f"{what.__name__}-short") for what, _, short in CASES]
    + [pytest.param(what, full, marks=pytest.mark.long, id=f"{what.__name__}-long") for what, full, _ in CASES],
)
def test_it_works_or_is_refused_in_a_sentence(what, count, folder, good, monkeypatch):
    outcomes, lost = Counter(), {}
    for number in range(count):
        try:
            what(number, folder, monkeypatch)
            outcomes["taken"] += 1
        except MannersError as error:
            check_printable(error)
            outcomes["refused"] += 1
        except Exception as error:  # noqa: BLE001  all of them are listed
            lost[number] = f"{type(error).__name__}: {str(error)[:300]}"
    print(f"{what.__name__}: tried {count}, survived {sum(outcomes.values())} {dict(outcomes)}, lost {len(lost)}")
    assert lost == {}
