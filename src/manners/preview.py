"""``preview=true``: the first examples, token by token, as the model will see them."""

from rich.console import Console
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from manners.data.encode import IGNORE, Example
from manners.data.readers import Splits

CONTEXT, TRAINED, STOP = "dim", "bold green", "bold white on red"


def show(
    console: Console, splits: Splits, examples: list[Example], tokenizer: PreTrainedTokenizerBase, count: int = 4
) -> None:
    """Print ``count`` examples, and what there is of rows, tokens and truncation."""
    legend = Text.assemble("tokens: ", ("context", CONTEXT), " ", ("⟦trained⟧", TRAINED), " ", ("stop", STOP))
    console.print(legend, highlight=False)
    for chat, example in list(zip(splits.train, examples, strict=True))[:count]:
        console.rule(chat.where, align="left")
        console.print(coloured(example, tokenizer), highlight=False)
        if example.cut:
            console.print(f"… {example.cut} tokens cut", style="yellow")
    console.rule()
    for line in counts(splits, examples):
        console.print(line, highlight=False)


def coloured(example: Example, tokenizer: PreTrainedTokenizerBase) -> Text:
    """The example as text; what carries loss stands in ⟦⟧ too, for a terminal without colours."""
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    text, inside = Text(), False
    for token, label in zip(example.input_ids, example.labels, strict=True):
        if (label != IGNORE) != inside:
            text.append("⟧" if inside else "⟦", TRAINED)
            inside = not inside
        style = CONTEXT if label == IGNORE else STOP if token in special else TRAINED
        text.append(str(tokenizer.decode([token])), style)
    return text.append("⟧" if inside else "", TRAINED)


def counts(splits: Splits, examples: list[Example]) -> list[str]:
    tokens = sum(len(e.input_ids) for e in examples)
    trained = sum(e.trained for e in examples)
    cut = [e for e in examples if e.cut]
    lines = [
        f"rows: {len(splits.train)} train, {len(splits.validation)} validation, {len(splits.test)} test",
        f"training tokens: {tokens:,}, of which {trained:,} ({trained / tokens:.0%}) carry loss",
    ]
    if cut:
        lines.append(f"cut to method.max_length: {len(cut)} rows lose {sum(e.cut for e in cut):,} tokens")
    if splits.skipped:
        lines.append(f"left out (dataset.on_error=skip): {len(splits.skipped)} rows, the first: {splits.skipped[0]}")
    return lines
