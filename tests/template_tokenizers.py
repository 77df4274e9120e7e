"""A tokenizer for any chat template: byte-level BPE in which what looks like a control token in the template is one."""

import re
from functools import cache
from pathlib import Path

import trl
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

TRL_TEMPLATES = {
    file.stem: file.read_text()
    for file in sorted((Path(trl.__file__).parent / "chat_templates").glob("*.jinja"))
    if not file.stem.endswith("_training")
}
TEXT = "Hi there\n\nYou\n\n\n are  welcome, User: and Assistant: <think>\n\n</think>\n\n"  # line breaks merge


@cache
def inner_tokenizer(control: tuple[str, ...], adds_bos: bool) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<bos>", "<eos>", *control]
    trainer = trainers.BpeTrainer(
        vocab_size=330 + len(special), special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([TEXT] * 5, trainer)
    if adds_bos:
        tokenizer.post_processor = processors.TemplateProcessing("<bos> $A", "<bos> $A $B", [("<bos>", 0)])
    return tokenizer


def template_tokenizer(template: str, adds_bos: bool = True) -> PreTrainedTokenizerFast:
    """A tokenizer with ``template``, which puts BOS before a text if ``adds_bos``."""
    names = set(re.findall(r"<\|[^'\"\s{}<>]+?\|>|<[A-Za-z_]+\|?>|<\|[a-z_]+>|<｜[^'\"\s<>]+?｜>|\[/?INST\]", template))
    control = sorted(n for n in names if not re.match("<(think|tool|func|param|IMPORTANT|arg|key|name|eos|bos)", n))
    inner = Tokenizer.from_str(inner_tokenizer(tuple(control), adds_bos).to_str())
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<bos>", eos_token="<eos>", pad_token="<eos>")
    tokenizer.add_tokens(["<think>", "</think>"])
    tokenizer.chat_template = template
    return tokenizer
