"""The conversion to GGUF: which converter is taken, what is refused first, and the file that the real one writes.

The last test needs llama.cpp's converter (LLAMA_CPP, or on the PATH) and its Python packages, and is skipped without.
"""

import importlib.util
import os
import subprocess
import sys

import pytest
import torch
from gguf import GGUFReader
from transformers import AutoModelForCausalLM

from manners.errors import MannersError
from manners.export import __main__ as command
from manners.export import gguf
from manners.models import loading
from manners.models.tokenizer import load_tokenizer
from manners.pipeline.stages.saving import save_language_model
from manners.runtime.packages import cached_files
from tests.configs import compose
from tests.export.go_templates import read_modelfile
from tests.exports import config, export, finished_run, load_plain, saved_base, sft_run
from tests.families import language_model

SMOLLM2 = "HuggingFaceTB/SmolLM2-135M-Instruct"  # whose tokenizer llama.cpp knows
try:
    REAL = [os.path.abspath(part) for part in gguf.find_converter()]  # before the fixture hides it
except MannersError:
    REAL = []

CONVERTER = """#!{python}
import argparse, pathlib
parser = argparse.ArgumentParser()
parser.add_argument("model"); parser.add_argument("--outfile"); parser.add_argument("--outtype")
args = parser.parse_args()
weights = pathlib.Path(args.model, "model.safetensors").stat().st_size
pathlib.Path(args.outfile).write_text("GGUF " + args.outtype + " " + str(weights))
"""
FAILS = """#!{python}
import pathlib, sys
pathlib.Path(sys.argv[3]).write_text("half a file")
raise NotImplementedError("BPE pre-tokenizer was not recognized")
"""


@pytest.fixture(autouse=True)
def no_converter(tmp_path, monkeypatch):
    """Where none is found, whatever this machine has."""
    monkeypatch.delenv("LLAMA_CPP", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.chdir(tmp_path)


def write_script(folder, text=CONVERTER, name=gguf.CONVERTER):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text.format(python=sys.executable))
    (folder / name).chmod(0o755)
    return folder / name


def own_python(folder):
    """The Python of a virtual environment in ``folder``."""
    python = folder / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    return python


def error_of(*arguments):
    with pytest.raises(SystemExit) as exit_info:
        command.main(list(arguments))
    return str(exit_info.value)


def test_gguf_and_modelfile_are_in_the_exported_folder(tmp_path, tokenizer, capsys):
    write_script(tmp_path / "bin")
    run, _ = sft_run(tmp_path, tokenizer)
    out = export(run, "--gguf", "q8_0")
    weights = (out / "model.safetensors").stat().st_size
    assert (out / "out-q8_0.gguf").read_text() == f"GGUF q8_0 {weights}"
    assert read_modelfile((out / "Modelfile").read_text())[0] == ("FROM", "./out-q8_0.gguf")
    assert not [p for p in out.iterdir() if p.name.startswith(".")]
    printed = capsys.readouterr().out
    assert f"ollama create out -f {out / 'Modelfile'}" in printed and "llama-server -m" in printed
    load_plain(out)  # the folder is still transformers' too


def test_export_without_gguf_writes_neither(tmp_path, tokenizer, capsys):
    run, _ = sft_run(tmp_path, tokenizer)
    out = export(run)
    assert not list(out.glob("*.gguf")) and not (out / "Modelfile").exists()
    assert f"make export RUN={run} GGUF=q8_0" in capsys.readouterr().out


def test_converter_is_looked_for_in_three_places(tmp_path, monkeypatch):
    here = write_script(tmp_path / "llama.cpp")
    own_python(here.parent)
    assert gguf.find_converter() == ["llama.cpp/.venv/bin/python", f"llama.cpp/{gguf.CONVERTER}"]
    on_path = write_script(tmp_path / "bin")
    assert gguf.find_converter() == [str(on_path)]
    named = write_script(tmp_path / "mine")
    python = own_python(named.parent)
    monkeypatch.setenv("LLAMA_CPP", str(named.parent))
    assert gguf.find_converter() == [str(python), str(named)]


def test_python_without_the_converters_packages_is_refused(tmp_path, monkeypatch):
    script = write_script(tmp_path / "mine")
    monkeypatch.setenv("LLAMA_CPP", str(script.parent))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name != "sentencepiece" or None)
    with pytest.raises(
        MannersError, match=r"Type: python3 -m venv \S*mine/\.venv && \S*pip install -r \S*mine/requirements"
    ):
        gguf.find_converter()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    assert gguf.find_converter() == [sys.executable, str(script)]


def test_missing_converter_is_reported_before_anything(tmp_path, tokenizer, monkeypatch):
    run, _ = sft_run(tmp_path, tokenizer)
    out = tmp_path / "out"
    assert "Get it: git clone" in error_of(str(run), "--out", str(out), "--gguf", "q8_0")
    monkeypatch.setenv("LLAMA_CPP", str(tmp_path / "empty"))
    assert f"empty has no {gguf.CONVERTER}" in error_of(str(run), "--out", str(out), "--gguf", "q8_0")
    assert not out.exists()


def test_torch_is_not_imported_to_ask_for_a_converter():
    code = "import sys, manners.export.__main__, manners.export.gguf; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_unknown_outtype_names_those_that_there_are(tmp_path, capsys):
    with pytest.raises(SystemExit):
        command.main(["latest", "--gguf", "q4_k_m"])
    assert "choose from f32, f16, bf16, q8_0" in capsys.readouterr().err.replace("'", "")


@pytest.mark.parametrize(
    "name, method, reason",
    [("base", "reward", "reward model, which writes no replies"), ("tiny", "sft", "tokenizer llama.cpp does not know")],
)
def test_models_that_llama_cpp_cannot_use_are_refused(tmp_path, tokenizer, name, method, reason):
    write_script(tmp_path / "bin")
    base = name if name == "tiny" else saved_base(tmp_path, tokenizer)
    cfg = compose(f"method={method}", f"model.name={base}", f"output_dir={tmp_path}")
    run = finished_run(tmp_path, cfg)
    save_language_model(cfg, language_model("qwen2", vocab_size=len(tokenizer)), tokenizer, run / "model")
    out = tmp_path / "out"
    assert reason in error_of(str(run), "--out", str(out), "--gguf", "f16")
    assert not out.exists()


def test_failed_conversion_leaves_the_export_and_says_why(tmp_path, tokenizer):
    script = write_script(tmp_path / "bin", FAILS)
    run, _ = sft_run(tmp_path, tokenizer)
    out = tmp_path / "out"
    said = error_of(str(run), "--out", str(out), "--gguf", "q8_0")
    assert f"{out} is written, but {script} could not convert it." in said
    assert said.endswith("NotImplementedError: BPE pre-tokenizer was not recognized")
    assert (out / "model.safetensors").exists()
    assert not [p for p in out.iterdir() if "gguf" in p.name or p.name == "Modelfile"]


def test_converter_that_cannot_run_is_named(tmp_path, tokenizer):
    script = write_script(tmp_path / "bin", "#!/nowhere/python\n")
    run, _ = sft_run(tmp_path, tokenizer)
    assert f"{script} cannot be run" in error_of(str(run), "--out", str(tmp_path / "out"), "--gguf", "q8_0")


@pytest.mark.skipif(not REAL, reason="needs llama.cpp's converter: LLAMA_CPP=FOLDER, and its Python packages")
@pytest.mark.parametrize("outtype, tolerance", [("f32", 0), ("f16", 2**-11), ("q8_0", 1 / 127)])
def test_real_converter_writes_the_exported_model(tmp_path, monkeypatch, outtype, tolerance):
    """Read back by transformers' own reader of GGUF files."""
    if not cached_files(SMOLLM2):
        pytest.skip(f"needs {SMOLLM2}, fetched before")
    tokenizer = load_tokenizer(SMOLLM2, chat_template="chatml")
    cfg = config(tmp_path, saved_base(tmp_path, tokenizer, "llama", hidden_size=64), "adapter.kind=none")
    run, model = finished_run(tmp_path, cfg), loading.load_model(cfg.model.name)
    save_language_model(cfg, model, tokenizer, run / "model")
    monkeypatch.setattr(gguf, "find_converter", lambda: REAL)
    out = export(run, "--gguf", outtype)
    read = AutoModelForCausalLM.from_pretrained(out, gguf_file=f"out-{outtype}.gguf", dtype=torch.float32).eval()
    weights = read.state_dict()
    for name, weight in model.state_dict().items():
        assert (weights[name] - weight).abs().max() <= tolerance * weight.abs().max(), name
    fields = GGUFReader(out / f"out-{outtype}.gguf").fields
    assert fields["tokenizer.chat_template"].contents() == tokenizer.chat_template
    assert fields["tokenizer.ggml.pre"].contents() == "smollm"
    assert fields["tokenizer.ggml.eos_token_id"].contents() == tokenizer.eos_token_id
