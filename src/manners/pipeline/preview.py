"""``preview=true``: the first training examples, token by token, with the tokens that carry loss."""

from rich.console import Console
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from manners.data.loading import Splits
from manners.data.tokenize import IGNORE_INDEX, TokenizedExample
from manners.pipeline.stages.context import truncation_line

CONTEXT, WITH_LOSS, SPECIAL = "dim", "bold green", "bold white on red"


def show_examples(
    console: Console,
    splits: Splits,
    examples: list[TokenizedExample],
    tokenizer: PreTrainedTokenizerBase,
    option: str = "method.max_length",
    count: int = 4,
) -> None:
    """Print the first ``count`` examples, and the numbers of rows, tokens and rows cut to ``option``."""
    legend = Text.assemble(
        "tokens: ", ("context", CONTEXT), " ", ("⟦with loss⟧", WITH_LOSS), " ", ("special, with loss", SPECIAL)
    )
    console.print(legend, highlight=False)
    for conversation, example in list(zip(splits.train, examples, strict=True))[:count]:
        console.rule(conversation.source, align="left")
        console.print(highlight_loss(example, tokenizer), highlight=False)
        if example.num_truncated:
            console.print(f"… {example.num_truncated} tokens truncated", style="yellow")
    console.rule()
    for line in token_counts(splits, examples, option):
        console.print(line, highlight=False)


def highlight_loss(example: TokenizedExample, tokenizer: PreTrainedTokenizerBase) -> Text:
    """The text of an example. Tokens with loss are also in ⟦⟧, for terminals without colours."""
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    text, in_loss = Text(), False
    for token, label in zip(example.input_ids, example.labels, strict=True):
        if (label != IGNORE_INDEX) != in_loss:
            text.append("⟧" if in_loss else "⟦", WITH_LOSS)
            in_loss = not in_loss
        style = CONTEXT if label == IGNORE_INDEX else SPECIAL if token in special else WITH_LOSS
        text.append(str(tokenizer.decode([token])), style)
    return text.append("⟧" if in_loss else "", WITH_LOSS)


def token_counts(splits: Splits, examples: list[TokenizedExample], option: str = "method.max_length") -> list[str]:
    """Lines on rows, tokens, truncation to ``option``, and skipped rows."""
    num_tokens = sum(len(e.input_ids) for e in examples)
    num_targets = sum(e.num_targets for e in examples)
    lines = [
        f"rows: {len(splits.train)} train, {len(splits.validation)} validation, {len(splits.test)} test",
        f"training tokens: {num_tokens:,}, {num_targets:,} of them ({num_targets / num_tokens:.0%}) carry loss",
    ]
    if line := truncation_line([e.num_truncated for e in examples], option):
        lines.append(line)
    lines += splits.warnings
    if splits.skipped:
        first = splits.skipped[0]
        lines.append(f"left out (dataset.on_invalid_row=skip): {len(splits.skipped)} rows, the first: {first}")
    return lines
