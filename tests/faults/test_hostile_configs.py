"""Damaged or malicious recipes, overrides, names, run directories and models: one sentence, nothing written outside."""

import json
import random
import shutil
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest
import yaml

from manners.cli.main import check_command_line
from manners.config.compose import register
from manners.data import sources
from manners.errors import MannersError
from manners.pipeline import model_ref
from manners.runtime import model_files, run_dir
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
    *("dataset.languages", "model.name", "adapter.r", "adapter.target_modules", "hardware.num_threads", "experiment"),
    *("tracking.uri", "dataset", "method", "+method.rewards", "policy_run_overrides", "dataset.max_rows", "debug"),
    *("model", "sweep", "tuned", "debug_method"),
]
NAMES = [*hostile.STRINGS, "..", "../..", "/", "\\..\\..", "~", "a/../../b", ".", "con", "-rf", "x" * 300]
MALFORMED = [
    *("=", "a", "a=", "+", "~", "~method", "a.b.c=1", "+a[0]=1", "seed=[", "seed={", "seed=${seed}", "@=1", "seed=1,2"),
]


def compose_case(number, folder):
    """A damaged recipe or a strange override, composed and validated as the command line does it."""
    rng = random.Random(f"config/{number}")
    if number % 2:
        value = rng.choice([*hostile.VALUES, "1e400", "-1", "null", "{a: 1}", "[1,[2]]", "${oc.env:HOME}"])
        value = value if isinstance(value, str) else json.dumps(value)
        overrides = [rng.choice(MALFORMED) if rng.random() < 0.2 else f"{rng.choice(KEYS)}={value}"]
        register()
    else:
        recipe = RECIPE.encode()
        if rng.random() < 0.5:
            damaged = hostile.damage_row(yaml.safe_load(recipe), rng)
            recipe = b"# @package _global_\n" + json.dumps(damaged).encode()
        else:
            recipe = hostile.damage_bytes(recipe, rng)
        (folder / "experiment").mkdir(exist_ok=True)
        (folder / "experiment" / "mine.yaml").write_bytes(recipe)
        overrides = ["experiment=mine"]
        register(str(folder))
    try:
        check_command_line("train", overrides, multirun=False)
    finally:
        register()


def name_case(number, folder):
    """Names that would lead elsewhere: the run directory is in output_dir all the same."""
    rng = random.Random(f"name/{number}")
    out = folder / "out"
    before = {p for p in folder.rglob("*") if out not in (p, *p.parents)}
    cfg = changed(f"output_dir={out}")
    name = rng.choice(NAMES)
    cfg[rng.choice(["run_name", "experiment_name"])] = name
    if rng.random() < 0.5:
        cfg.model.name = name
    try:
        with run_dir.acquire(cfg, {"data": "digest"}) as directory:
            assert directory.path.resolve().parent == (out / "runs").resolve()
    finally:
        assert {p for p in folder.rglob("*") if out not in (p, *p.parents)} == before
    for suffix in ("", "x" * number):
        assert run_dir.find_by_name(name + suffix, str(out / "empty")) is None or Path(name).exists()
        for lookup in (sources.local_path, model_files.require_model):
            with suppress(MannersError):
                lookup(name + suffix)


def run_case(number, folder):
    """A run directory with one damaged file: its state, its config, or a file of its model."""
    rng = random.Random(f"run/{number}")
    out = folder / f"out{number}"
    run = out / "runs" / "mine"
    shutil.rmtree(out, ignore_errors=True)  # the short form may have run before the long one
    shutil.copytree(folder / "good", run)
    files = sorted(p for p in run.rglob("*") if p.is_file() and p.name != "tokenizer.json")
    file = rng.choice(files)
    if file.suffix == ".json" and rng.random() < 0.5:
        file.write_text(json.dumps(hostile.damage_row(json.loads(file.read_text()), rng)))
    else:
        file.write_bytes(hostile.damage_bytes(file.read_bytes(), rng))
    cfg = changed(f"output_dir={out}", f"tracking.uri=sqlite:///{out}/mlflow.db")
    try:
        model_ref.load_model_ref(model_ref.resolve_model(rng.choice(["mine", "latest"]), cfg), "cpu")
    except MannersError as error:
        raise MannersError(f"{file.name}: {error}") from error


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("hostile")


@pytest.fixture
def good_run(folder, small_qwen2, tokenizer):
    """A finished run with a model of its own."""
    if not (folder / "good").exists():
        model = folder / "good" / run_dir.MODEL_DIR
        small_qwen2.save_pretrained(model)
        tokenizer.save_pretrained(model)
        config = {
            "model": {"name": "tiny", "revision": None, "chat_template": "auto", "attn_implementation": "sdpa"},
            "adapter": {"kind": "none", "quantization": "none"},
            "method": {"name": "sft", "max_length": 64},
            "dataset": {"loss_roles": "assistant"},
        }
        (model / run_dir.CONFIG_FILE).write_text(yaml.safe_dump(config))
        state = {"status": "finished", "weights_fingerprint": "abc", "fingerprint": "def", "mlflow_run_id": "0" * 32}
        (folder / "good" / run_dir.STATE_FILE).write_text(json.dumps(state))


def test_undamaged_run_is_loaded(folder, good_run):
    """Otherwise a refusal of the damaged ones would mean nothing."""
    shutil.copytree(folder / "good", folder / "undamaged" / "runs" / "mine")
    cfg = changed(f"output_dir={folder / 'undamaged'}")
    assert model_ref.load_model_ref(model_ref.resolve_model("latest", cfg), "cpu").name == "mine"


CASES = [(compose_case, 50, 6), (name_case, 28, 28), (run_case, 22, 3)]


@pytest.mark.parametrize(
    ("case", "count"),
    [pytest.param(case, short, id=f"{case.__name__}-short") for case, _, short in CASES]
    + [pytest.param(case, full, marks=pytest.mark.long, id=f"{case.__name__}-long") for case, full, _ in CASES],
)
def test_hostile_input_works_or_is_refused_in_a_sentence(case, count, folder, good_run):
    outcomes, failures = Counter(), {}
    for number in range(count):
        try:
            case(number, folder)
            outcomes["accepted"] += 1
        except MannersError as error:
            check_printable(error)
            outcomes["refused"] += 1
        except Exception as error:  # noqa: BLE001  all of them are listed
            failures[number] = f"{type(error).__name__}: {str(error)[:300]}"
    print(f"{case.__name__}: {count} tried, {dict(outcomes)}, {len(failures)} failed")
    assert failures == {}
