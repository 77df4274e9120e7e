"""Make an ordinary model folder of a GGUF file: weights in float32, config, tokenizer and chat template.

transformers reads and dequantizes the file. What it does not keep is mended here, so that the tokens are llama.cpp's:
the rule by which text is split before byte-pair encoding, which a GGUF names (``tokenizer.ggml.pre``) instead of
spelling it out, and tokens of several spaces.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex
from tokenizers.pre_tokenizers import ByteLevel, Digits, PreTokenizer, Sequence, Split

from manners.errors import MannersError

QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3 = QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
PARSING = threading.Lock()  # of who replaces the reader of the package gguf
WHOLE_WORDS_FIRST = {"llama-bpe"}  # rules by which a word that is a token is not made of merges


def by_regex(pattern: str) -> PreTokenizer:
    """Each match of ``pattern`` is a word, of whose bytes the tokens are made."""
    return Sequence([Split(Regex(pattern), "isolated"), ByteLevel(add_prefix_space=False, use_regex=False)])


def pre_tokenizer(name: str) -> PreTokenizer | None:
    """The rule of the name that llama.cpp has for it, as the models' own tokenizer.json spells it; None if unknown."""
    gpt2 = ByteLevel(add_prefix_space=False)
    smollm = Sequence([Digits(individual_digits=True), gpt2])
    return {"gpt-2": gpt2, "smollm": smollm, "qwen2": by_regex(QWEN2), "llama-bpe": by_regex(LLAMA3)}.get(name)


def convert(file: Path, folder: Path) -> str:
    """Write the model in ``file`` into ``folder`` as transformers loads it, and return how its weights were stored.

    Raises MannersError for a file that transformers does not read, or whose tokenizer is of an unknown kind.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()
    try:
        with parsed_once(file) as reader:
            formats = number_formats(reader)
            kind, rule_name = (field_text(reader, f"tokenizer.ggml.{name}") for name in ("model", "pre"))
            source = {"gguf_file": file.name, "trust_remote_code": False}
            tokenizer = AutoTokenizer.from_pretrained(file.parent, **source)
            model: Any = AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.float32, **source)
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise MannersError(f"{file}: transformers cannot read this GGUF file; is it complete? ({reason})") from error
    if kind == "gpt2":
        rule = pre_tokenizer(rule_name)
        if rule is None:
            raise MannersError(f"{file}: how tokenizer.ggml.pre={rule_name} splits text is not known here.")
        tokenizer.backend_tokenizer.pre_tokenizer = rule
        tokenizer.backend_tokenizer.model.ignore_merges = rule_name in WHOLE_WORDS_FIRST
    if kind == "llama":
        add_runs_of_spaces(tokenizer, reader)
    if broken := next((name for name, p in model.named_parameters() if not p.isfinite().all()), ""):
        raise MannersError(f"{file}: {broken} holds numbers that are not finite; download the file again.")
    model.hf_quantizer = None  # the weights are dequantized; transformers would refuse to save them
    del model.config.quantization_config
    model.config.architectures = [type(model).__name__]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return formats


@contextmanager
def parsed_once(file: Path) -> Iterator[Any]:
    """The reader of ``file``, which transformers gets, too, when it opens the file inside the context.

    It would parse the header three times, and make the names of all tensors once for each of the model's modules: more
    than a half of the time that a conversion takes.
    """
    import gguf

    with PARSING:  # a second thread would keep the first one's reader for ever
        reader, open_reader, tensor_names = gguf.GGUFReader(file), gguf.GGUFReader, gguf.get_tensor_name_map
        gguf.GGUFReader = lambda path, *mode: reader if Path(path) == file else open_reader(path, *mode)  # type: ignore[misc,assignment]
        gguf.get_tensor_name_map = cache(tensor_names)
        try:
            yield reader
        finally:
            gguf.GGUFReader, gguf.get_tensor_name_map = open_reader, tensor_names  # type: ignore[misc]


def add_runs_of_spaces(tokenizer: Any, reader: Any) -> None:
    """Have user-defined tokens of several spaces matched before any merge, the longest first, as SentencePiece does.

    Gemma has tokens of up to 31 spaces: 33 are 31 and 2. transformers leaves runs to the merges, which make them 16 and
    17, since it looks for the tokens as the file spells them, and they are spelled with "▁" in the vocabulary.
    """
    from gguf import TokenType

    if "tokenizer.ggml.token_type" not in reader.fields:
        return
    tokens, types = (reader.fields[f"tokenizer.ggml.{name}"].contents() for name in ("tokens", "token_type"))
    defined = [token for token, kind in zip(tokens, types, strict=True) if kind == TokenType.USER_DEFINED]
    runs = ["▁" * len(token) for token in defined if set(token) == {" "}]
    known = tokenizer.get_vocab()
    tokenizer.add_tokens([AddedToken(run, normalized=True) for run in runs if run in known])


def field_text(reader: Any, name: str) -> str:
    """A field of the file's header; "" where it is missing."""
    return str(reader.fields[name].contents()) if name in reader.fields else ""


def number_formats(reader: Any) -> str:
    """The formats that the weights of the file are stored in, such as "Q4_1, Q8_0": the most used first."""
    sizes: dict[str, int] = {}
    for tensor in reader.tensors:
        name = tensor.tensor_type.name
        sizes[name] = sizes.get(name, 0) + int(tensor.n_elements)
    used = [name for name in sizes if sizes[name] > 0.01 * sum(sizes.values())]
    return ", ".join(sorted(used, key=lambda name: -sizes[name]))
