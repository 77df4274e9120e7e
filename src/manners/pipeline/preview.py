"""``preview=true``: the first examples, token by token, as the model will see them."""

from rich.console import Console
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from manners.data.loading import Splits
from manners.data.tokenize import IGNORE_INDEX, TokenizedExample

CONTEXT, TRAINED, STOP = "dim", "bold green", "bold white on red"


def show_examples(
    console: Console,
    splits: Splits,
    examples: list[TokenizedExample],
    tokenizer: PreTrainedTokenizerBase,
    count: int = 4,
) -> None:
    """Print ``count`` examples, and what there is of rows, tokens and truncation."""
    legend = Text.assemble("tokens: ", ("context", CONTEXT), " ", ("⟦trained⟧", TRAINED), " ", ("stop", STOP))
    console.print(legend, highlight=False)
    for chat, example in list(zip(splits.train, examples, strict=True))[:count]:
        console.rule(chat.source, align="left")
        console.print(highlight_loss(example, tokenizer), highlight=False)
        if example.num_truncated:
            console.print(f"… {example.num_truncated} tokens cut", style="yellow")
    console.rule()
    for line in token_counts(splits, examples):
        console.print(line, highlight=False)


def highlight_loss(example: TokenizedExample, tokenizer: PreTrainedTokenizerBase) -> Text:
    """The example as text; what carries loss stands in ⟦⟧ too, for a terminal without colours."""
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    text, inside = Text(), False
    for token, label in zip(example.input_ids, example.labels, strict=True):
        if (label != IGNORE_INDEX) != inside:
            text.append("⟧" if inside else "⟦", TRAINED)
            inside = not inside
        style = CONTEXT if label == IGNORE_INDEX else STOP if token in special else TRAINED
        text.append(str(tokenizer.decode([token])), style)
    return text.append("⟧" if inside else "", TRAINED)


def token_counts(splits: Splits, examples: list[TokenizedExample]) -> list[str]:
    tokens = sum(len(e.input_ids) for e in examples)
    trained = sum(e.num_targets for e in examples)
    cut = [e for e in examples if e.num_truncated]
    lines = [
        f"rows: {len(splits.train)} train, {len(splits.validation)} validation, {len(splits.test)} test",
        f"training tokens: {tokens:,}, of which {trained:,} ({trained / tokens:.0%}) carry loss",
    ]
    if cut:
        lines.append(f"cut to method.max_length: {len(cut)} rows lose {sum(e.num_truncated for e in cut):,} tokens")
    if splits.skipped:
        lines.append(
            f"left out (dataset.on_invalid_row=skip): {len(splits.skipped)} rows, the first: {splits.skipped[0]}"
        )
    return lines
