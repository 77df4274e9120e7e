"""``preview=true``: the first training examples, with the tokens that carry loss, or the replies' scores or labels."""

from itertools import groupby

from rich.console import Console
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from manners.data.loading import Splits
from manners.data.reward_examples import RewardExample, pair_examples, scored_examples
from manners.data.tokenize import IGNORE_INDEX, TokenizedExample
from manners.data.types import (
    LabeledReply,
    PreferencePair,
    ScoredReply,
    labeled_replies,
    preference_pairs,
    scored_replies,
)
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


def show_replies(
    console: Console,
    splits: Splits,
    sample_type: str,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    decoder: bool,
    count: int = 4,
) -> None:
    """Print what a reward model, DPO or KTO learns from: the first replies, with scores or labels, or pairs of them."""
    pairs = preference_pairs(splits.train) if sample_type == "preference" else []
    scored = scored_replies(splits.train) if sample_type == "scored" else []
    labeled = labeled_replies(splits.train) if sample_type == "unpaired_preference" else []
    examples = pair_examples(pairs[:count], tokenizer, max_length, decoder)
    examples += scored_examples(scored[:count], tokenizer, max_length, decoder, to_target=float)
    as_scored = [ScoredReply(r.messages, r.reply, r.label) for r in labeled[:count]]
    examples += scored_examples(as_scored, tokenizer, max_length, decoder, to_target=float)
    rows: list[ScoredReply | PreferencePair | LabeledReply] = [*pairs[:count], *scored[:count], *labeled[:count]]
    for row, example in zip(rows, examples, strict=True):
        console.rule(row.source, align="left")
        console.print(Text("\n".join(f"{m['role']}: {m['content']}" for m in row.messages), CONTEXT), highlight=False)
        for name, reply in replies_of(row, example):
            text = str(tokenizer.decode(reply.input_ids[reply.prompt_length :]))
            console.print(Text.assemble((f"{name}: ", WITH_LOSS), text), highlight=False)
    console.rule()
    total = f"training pairs: {len(pairs)}" if pairs else f"training replies with a score: {len(scored)}"
    total = f"training replies with a label: {len(labeled)}" if labeled else total
    for line in (row_counts(splits), total, *splits.left_out):
        console.print(line, highlight=False)


def replies_of(
    row: ScoredReply | PreferencePair | LabeledReply, example: RewardExample
) -> list[tuple[str, RewardExample]]:
    """The replies of a row by what they are to the loss: the scored or labeled one, or the chosen and rejected one."""
    if isinstance(row, LabeledReply):
        return [("desirable" if row.label else "undesirable", example)]
    if isinstance(row, ScoredReply) or example.rejected is None:
        return [(f"score {example.target:g}", example)]
    margin = f", better by {row.margin:g}" if row.margin else ""
    return [(f"chosen{margin}", example), ("rejected", example.rejected)]


def highlight_loss(example: TokenizedExample, tokenizer: PreTrainedTokenizerBase) -> Text:
    """The text of an example. Tokens with loss are also in ⟦⟧, for terminals without colours."""
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)

    def style(token: int, label: int) -> str:
        return CONTEXT if label == IGNORE_INDEX else SPECIAL if token in special else WITH_LOSS

    text, in_loss = Text(), False
    tokens = [(style(*pair), pair[0]) for pair in zip(example.input_ids, example.labels, strict=True)]
    for name, run in groupby(tokens, key=lambda token: token[0]):  # one character may be several tokens
        if (name != CONTEXT) != in_loss:
            text.append("⟧" if in_loss else "⟦", WITH_LOSS)
            in_loss = not in_loss
        text.append(str(tokenizer.decode([token for _, token in run])), name)
    return text.append("⟧" if in_loss else "", WITH_LOSS)


def row_counts(splits: Splits) -> str:
    """How many rows each split has, and each dataset of a mixture."""
    counts = f"rows: {len(splits.train)} train, {len(splits.validation)} validation, {len(splits.test)} test"
    return "\n".join([counts, *splits.mixture])


def token_counts(splits: Splits, examples: list[TokenizedExample], option: str = "method.max_length") -> list[str]:
    """Lines on rows, tokens, truncation to ``option``, and what is not used."""
    num_tokens = sum(len(e.input_ids) for e in examples)
    num_targets = sum(e.num_targets for e in examples)
    lines = [
        row_counts(splits),
        f"training tokens: {num_tokens:,}, {num_targets:,} of them ({num_targets / num_tokens:.0%}) carry loss",
    ]
    if line := truncation_line([e.num_truncated for e in examples], option):
        lines.append(line)
    return [*lines, *splits.warnings, *splits.left_out]
