"""chat.py on the command line."""

import os
import random
import subprocess
import sys

import hydra
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from omegaconf import OmegaConf

import chat
from manners.chat import run_chat
from manners.config import compose as composing
from manners.config import schema
from manners.errors import MannersError
from manners.runtime import paths
from tests.chat import checkpoints

HARD = [
    "plain words",
    "a, b, c",
    "it's 'so' \"it\" is",
    "x=1, y==2",
    "{a: 1} [b] (c) }{",
    "two\nlines\n",
    "  space \t around  ",
    "${run} and $ {run} \\${run} \\\\${run} ${oc.env:HOME} }",
    "back\\slash \\' \\\\' end\\",
    "end'\\\\",
    "???",
    "???,",
    "null",
    "1.5",
    "true",
    "--help",
    "-p",
    "~x @y #z % & | * ; : < > ?!",
    "Schönbrunn 日本 🦔",
    "",
]


@pytest.fixture(scope="module")
def compose():
    schema.register_schemas()
    Plugins.instance().register(composing.UserConfigDir)
    with hydra.initialize_config_dir(str(paths.CONF), version_base="1.3"):
        yield lambda overrides: composing.compose("chat", overrides)


def test_prompt_flag_survives_hydra_and_omegaconf(compose):
    """Through the grammars of Hydra and OmegaConf, whatever characters the prompt contains."""
    rng = random.Random(0)
    random_texts = ["".join(rng.choices("ab '\"\\${}[](),=:?\n#~.%", k=rng.randrange(1, 14))) for _ in range(300)]
    for text in HARD + random_texts:
        (override_text,) = chat.expand_prompt_flag(["-p", text])
        override = OverridesParser.create().parse_override(override_text)
        cfg = OmegaConf.create({override.key_or_group: override.value()})
        assert cfg.prompt.strip() == text.strip(), override_text
    cfg = compose(chat.expand_prompt_flag(["seed=2", "-p", "".join(HARD), "turns=3"]))
    assert cfg.prompt == "".join(HARD)
    assert (cfg.seed, cfg.turns) == (2, 3)


def test_prompt_flag_requires_a_prompt():
    assert chat.expand_prompt_flag(["run=latest"]) == ["run=latest"]
    with pytest.raises(SystemExit, match="one -p at a time"):
        chat.expand_prompt_flag(["-p", "a", "-p", "b"])
    with pytest.raises(SystemExit, match=r"-p needs a prompt: -p \""):
        chat.expand_prompt_flag(["run=latest", "-p"])


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["run=nix"], "run=nix is neither a finished run"),
        ([], "has no finished run yet. Train one: python train.py"),
        (["self_chat=true", "user=tiny", "assistant=nix"], "assistant=nix is neither"),
        (["prompt=' '"], "prompt is empty: -p "),
    ],
)
def test_run_chat_rejects_options_before_loading_models(compose, tmp_path, monkeypatch, overrides, message):
    monkeypatch.setattr("manners.chat.model.load_chat_model", lambda *_: pytest.fail("a model was loaded"))
    with pytest.raises(MannersError) as error:
        run_chat(compose([f"output_dir={tmp_path}", *overrides]))
    assert message in str(error.value)


def test_run_chat_loads_a_model_in_both_roles_once(compose, tmp_path, monkeypatch):
    loaded, calls = [], []
    monkeypatch.setattr("manners.chat.model.load_chat_model", lambda ref, *_: loaded.append(ref.name) or object())
    monkeypatch.setattr("manners.chat.self_chat.run_self_chat", lambda _cfg, chat_models: calls.append(chat_models))
    run_chat(compose([f"output_dir={tmp_path}", "self_chat=true", "user=tiny", "assistant=tiny"]))
    assert loaded == ["tiny"]
    assert calls[0]["user"] is calls[0]["assistant"]


def test_chat_py_in_a_pipe_prints_plain_replies(tmp_path):
    """Each line is a turn; slow libraries that are not needed are not imported."""
    folder = checkpoints.adapter(checkpoints.base(tmp_path), tmp_path / "run")
    command = [
        sys.executable,
        "-X",
        "importtime",
        str(paths.ROOT / "chat.py"),
        f"run={folder}",
        f"output_dir={tmp_path}",
    ]
    done = subprocess.run(
        [*command, "max_new_tokens=6", "adapter_scale=0.5"],
        input="What is a rose?\n\nIt's a 'flower'.\n",
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    imported = [line.split("|")[-1].strip() for line in done.stderr.splitlines() if line.startswith("import time:")]
    messages = [line for line in done.stderr.splitlines() if not line.startswith("import time:")]
    assert done.returncode == 0, messages
    assert messages == []
    assert len(done.stdout.splitlines()) == 2
    assert all(line.strip() for line in done.stdout.splitlines())
    assert "\x1b" not in done.stdout
    assert "torch" in imported
    assert not {"peft", "lightning", "mlflow", "datasets", "trl", "matplotlib"} & set(imported)
