"""Rows held against a model's tokenizer and chat template, before anything is trained or evaluated on them."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from manners.data.loading import SPLITS, Splits
from manners.data.rendering import TemplateRefusal, with_special_tokens
from manners.data.tokenize import UNLIMITED, prompt_ids, tokenize
from manners.data.types import Conversation, Prompt
from manners.errors import MannersError, printable

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def renderable_rows(
    rows: Sequence[Conversation], tokenizer: "PreTrainedTokenizerBase", loss_roles: str, on_invalid_row: str
) -> tuple[list[Conversation], list[str]]:
    """The rows that the chat template renders as they are, and one sentence for each of the others.

    Raises MannersError at the first of the others, unless ``on_invalid_row`` is "skip".
    """
    try:
        tokenize(rows, tokenizer, loss_roles, UNLIMITED)  # all at once, which is several times faster
        return list(rows), []
    except MannersError:
        kept, refused = [], []
    for row in rows:
        try:
            tokenize([row], tokenizer, loss_roles, UNLIMITED)
            kept.append(row)
        except MannersError as error:
            sentence = printable(f"{row.source}: {str(error).removeprefix(f'{row.source}: ').removesuffix('.')}")
            if on_invalid_row != "skip":
                raise MannersError(
                    f"{sentence}. Fix the row, or skip such rows: dataset.on_invalid_row=skip."
                ) from None
            refused.append(sentence)
    return kept, refused


def check_eval_prompts(prompts: Sequence[Prompt], tokenizer: "PreTrainedTokenizerBase", file: str) -> None:
    """Raise MannersError for an evaluation prompt that the chat template refuses; none of them is ever skipped."""
    for number, prompt in enumerate(prompts, 1):
        try:
            prompt_ids(prompt.messages, tokenizer)
        except TemplateRefusal as error:
            raise MannersError(f"{file}, prompt {number}: {error}") from None


def renderable_splits(
    splits: Splits, tokenizer: "PreTrainedTokenizerBase", loss_roles: str, on_invalid_row: str
) -> Splits:
    """``splits`` without the rows that the chat template refuses, which are counted as skipped.

    Raises MannersError for such a row unless ``on_invalid_row`` is "skip", and where no training row is left.
    """
    checked = {name: renderable_rows(getattr(splits, name), tokenizer, loss_roles, on_invalid_row) for name in SPLITS}
    refused = [sentence for name in SPLITS for sentence in checked[name][1]]
    if not checked["train"][0]:
        raise MannersError(f"the chat template refuses all training rows. The first: {refused[0]}.")
    literal = with_special_tokens([row for name in SPLITS for row in checked[name][0]], tokenizer)
    warnings = list(splits.warnings)
    if literal:
        count, first = len(literal), literal[0]
        warnings.append(f"special tokens in the text of {count} rows are read as text, the first: {first}")
    return replace(
        splits,
        train=checked["train"][0],
        validation=checked["validation"][0],
        test=checked["test"][0],
        skipped=[*splits.skipped, *refused],
        warnings=warnings,
    )
