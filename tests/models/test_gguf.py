"""A GGUF file becomes an ordinary folder: the same logits, the tokens of the rule that it names."""

import shutil
from copy import deepcopy
from types import SimpleNamespace

import gguf
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GemmaTokenizer

from manners.errors import MannersError
from manners.models.gguf import LLAMA3, QWEN2, add_runs_of_spaces, convert, parsed_once, pre_tokenizer
from manners.models.loading import load_model
from manners.models.tokenizer import load_tokenizer
from manners.runtime import model_files
from manners.runtime.model_files import model_digest, model_folder, require_model, source_line
from tests.gguf_files import small_llama, write_gguf

TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"


@pytest.fixture
def file(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_gguf(tmp_path / "small.gguf", small_llama(len(tokenizer)), tokenizer, template=TEMPLATE)
    return tmp_path / "small.gguf"


def test_converted_model_gives_the_logits_of_the_one_written(file, tmp_path, tokenizer):
    (tmp_path / "out").mkdir()
    assert convert(file, tmp_path / "out") == "F32"
    converted = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        assert torch.allclose(converted(ids).logits, small_llama(len(tokenizer))(ids).logits, atol=1e-5)
    assert converted.config.architectures == ["LlamaForCausalLM"]
    loaded = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert loaded.chat_template == TEMPLATE and loaded.eos_token == tokenizer.eos_token
    assert loaded.get_vocab() == {k: v for k, v in tokenizer.get_vocab().items() if v < len(tokenizer)}


def test_header_is_parsed_once_and_gguf_left_as_it_was(file, tmp_path, monkeypatch):
    opened, reader, names = [], gguf.GGUFReader, gguf.get_tensor_name_map
    monkeypatch.setattr(gguf, "GGUFReader", counting := lambda path: opened.append(path) or reader(path))
    convert(file, tmp_path / "out")
    assert opened == [file]
    other = shutil.copy(file, tmp_path / "other.gguf")
    with parsed_once(file) as parsed:
        assert gguf.GGUFReader(str(file)) is parsed and gguf.GGUFReader(other) is not parsed
    (tmp_path / "broken.gguf").write_bytes(file.read_bytes()[:2000])
    with pytest.raises(MannersError, match="is it complete"):
        convert(tmp_path / "broken.gguf", tmp_path / "out")
    assert gguf.GGUFReader is counting and gguf.get_tensor_name_map is names


def test_file_is_a_base_by_name_and_converted_once(file, capsys):
    require_model(str(file))
    assert model_folder(str(file)) is None and model_digest(str(file)) == ""  # nothing is converted unasked
    model, tokenizer = load_model(str(file)), load_tokenizer(str(file))
    assert "small.gguf: converting" in capsys.readouterr().out
    folder = model_folder(str(file))
    assert folder and model.name_or_path == str(folder) and tokenizer.eos_token_id is not None
    assert (folder / "source.txt").read_text().startswith("dequantized from F32 (small.gguf, SHA-256 ")
    assert source_line(str(file)).startswith("base: dequantized from F32 (small.gguf") and source_line("tiny") == ""
    load_tokenizer(str(file.parent / "small.gguf"))
    assert "converting" not in capsys.readouterr().out
    before = model_digest(str(file))
    write_gguf(file, small_llama(model.config.vocab_size), tokenizer, template="{{ messages }}")
    load_tokenizer(str(file))
    assert model_digest(str(file)) != before  # another content is another base


def test_what_a_killed_conversion_left_is_removed(file):
    load_tokenizer(str(file))
    part = model_folder(str(file)).with_suffix(".part")
    shutil.rmtree(model_folder(str(file)))
    part.mkdir()
    (part / "half.safetensors").write_text("half")
    load_tokenizer(str(file))
    assert not part.exists() and not (model_folder(str(file)) / "half.safetensors").exists()


def test_file_is_converted_again_by_a_newer_conversion(file, monkeypatch, capsys):
    """A mended conversion must reach those who have converted the file before."""
    load_tokenizer(str(file))
    monkeypatch.setattr(model_files, "CONVERSION", model_files.CONVERSION + 1)
    assert model_folder(str(file)) is None
    load_tokenizer(str(file))
    assert capsys.readouterr().out.count("converting") == 2


def test_folder_of_several_gguf_files_is_refused(file):
    require_model(str(file.parent))
    (file.parent / "other.gguf").write_bytes(file.read_bytes())
    with pytest.raises(MannersError, match=r"there are 2 GGUF files: name one, model.name=.*other.gguf"):
        require_model(str(file.parent))


def test_cache_that_cannot_be_written_is_named(file, tmp_path, monkeypatch):
    (tmp_path / "taken").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "taken"))
    with pytest.raises(MannersError, match=r"the cache .*taken/manners/converted cannot be written .*XDG_CACHE_HOME"):
        load_tokenizer(str(file))


@pytest.mark.parametrize("damage", ["empty", "truncated", "unknown rule"])
def test_file_that_cannot_be_read_is_refused_in_a_sentence(file, tmp_path, tokenizer, damage):
    if damage == "unknown rule":
        write_gguf(file, small_llama(len(tokenizer)), tokenizer, pre="other")
    else:
        file.write_bytes(file.read_bytes()[: 0 if damage == "empty" else 5000])
    if damage == "empty":
        with pytest.raises(MannersError, match=r"small.gguf is no GGUF file; download it again"):
            require_model(str(file))
    with pytest.raises(MannersError, match=r"small.gguf: (transformers cannot read|how tokenizer.ggml.pre=other)"):
        load_tokenizer(str(file))
    assert not list((tmp_path / "cache" / "manners" / "converted").glob("*[!k]"))  # locks alone


@pytest.mark.parametrize(
    ("name", "text", "pieces"),
    [
        ("gpt-2", "In 1987  it's", ["In", "Ġ1987", "Ġ", "Ġit", "'s"]),
        ("smollm", "In 1987  it's", ["In", "Ġ", "1", "9", "8", "7", "Ġ", "Ġit", "'s"]),
        ("smollm", "a  1", ["a", "ĠĠ", "1"]),
        ("qwen2", "In 1987  it's", ["In", "Ġ", "1", "9", "8", "7", "Ġ", "Ġit", "'s"]),
        ("llama-bpe", "In 1987  it's", ["In", "Ġ", "198", "7", "Ġ", "Ġit", "'s"]),
    ],
)
def test_rules_split_as_the_published_tokenizers(name, text, pieces):
    assert [piece for piece, _ in pre_tokenizer(name).pre_tokenize_str(text)] == pieces


@pytest.mark.parametrize("rule", ["smollm", "llama-bpe"])
def test_llama3_takes_a_whole_word_before_it_merges(rule, file, tmp_path, tokenizer):
    """As its published tokenizer.json says (ignore_merges); a GGUF only names the rule."""
    tokenizer = deepcopy(tokenizer)
    tokenizer.add_tokens(["Ġunmergeable"])  # in the file it is a token like others, but one without merges
    write_gguf(file, small_llama(len(tokenizer)), tokenizer, pre=rule)
    (tmp_path / "out").mkdir()
    convert(file, tmp_path / "out")
    tokens = AutoTokenizer.from_pretrained(tmp_path / "out").tokenize("an unmergeable")
    assert ("Ġunmergeable" in tokens) == (rule == "llama-bpe")


def test_longest_run_of_spaces_is_matched_first(tmp_path):
    """Gemma's 33 spaces are 31 and 2, as in the published tokenizer; transformers' reading makes them 16 and 17."""
    runs = {"▁" * n: 4 + n for n in range(1, 4)}
    vocab = {"<pad>": 0, "<eos>": 1, "<bos>": 2, "<unk>": 3, "<mask>": 4, **runs, "a": 8}
    tokenizer = GemmaTokenizer(vocab=vocab, merges=[("▁", "▁"), ("▁▁", "▁")])
    stored = {"tokens": [token.replace("▁", " ") for token in vocab], "token_type": [3] * 5 + [1, 4, 4, 1]}
    fields = {f"tokenizer.ggml.{name}": SimpleNamespace(contents=lambda v=values: v) for name, values in stored.items()}
    assert tokenizer.tokenize("    a") == ["▁▁", "▁▁", "a"]
    add_runs_of_spaces(tokenizer, SimpleNamespace(fields=fields))
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert len(loaded) == len(vocab)
    for spaces, tokens in {4: ["▁▁▁", "▁"], 5: ["▁▁▁", "▁▁"], 2: ["▁▁"]}.items():
        assert loaded.tokenize(" " * spaces + "a") == [*tokens, "a"]
        assert loaded.decode(loaded(" " * spaces + "a", add_special_tokens=False)["input_ids"]) == " " * spaces + "a"


def test_rules_differ_only_in_how_they_split_digits():
    assert LLAMA3 != QWEN2 and LLAMA3.replace("{1,3}", "") == QWEN2
    assert pre_tokenizer("unknown") is None
