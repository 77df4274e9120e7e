"""Files and hub datasets → ``Splits`` of ``Conversation``s: start reading at ``load_splits``.

A malformed row stops the run with file, line and field; ``dataset.on_invalid_row=skip`` counts and reports it instead.
"""

import hashlib
import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from types import SimpleNamespace
from typing import Any

from omegaconf import DictConfig, OmegaConf

from manners.data import mixture, sources
from manners.data.files import file_rows
from manners.data.formats import detect_row_format, oasst, votes
from manners.data.formats.fields import InvalidRow, Row, is_empty
from manners.data.formats.rows import LABEL_FIELDS, parse_row, rename_columns, with_system_message
from manners.data.formats.turns import misread_texts, parse_turns, text_format
from manners.data.splits import SPLITS, assign_splits, split_named, split_of_row, splits_of_files
from manners.data.types import Conversation, Prompt, has_loss, labeled_replies, preference_pairs, prompts_of
from manners.errors import MannersError, did_you_mean, printable


@dataclass
class Splits:
    train: list[Conversation] = field(default_factory=list)
    validation: list[Conversation] = field(default_factory=list)
    test: list[Conversation] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)  # one sentence for each malformed row that was skipped
    fields: set[str] = field(default_factory=set)  # the names of the rows' fields
    notes: list[str] = field(default_factory=list)  # one for each kind of row, message or file that is left out
    warnings: list[str] = field(default_factory=list)  # one for each kind of text that is read otherwise than it looks
    mixture: list[str] = field(default_factory=list)  # of ``dataset.mix``: a line on the share of each dataset
    unused: dict[str, None] = field(default_factory=dict)  # the names of fields that nothing reads, in the file's order

    @property
    def left_out(self) -> list[str]:
        """A line on each kind of data that is not used."""
        lines = [f"left out: {note}" for note in self.notes]
        if self.unused:
            lines.append(f"fields not used: {', '.join(map(printable, self.unused))}")
        if self.skipped:
            skipped = f"{len(self.skipped)} rows, the first: {self.skipped[0]}"
            lines.append(f"left out (dataset.on_invalid_row=skip): {skipped}")
        return lines


def load_splits(cfg: DictConfig, sample_type: str = "") -> Splits:
    """Load all rows of ``cfg.path``, by split. Raises MannersError for data that cannot be used.

    Rows without a turn that carries loss are left out, unless ``sample_type`` is one of replies that are compared.
    """
    if cfg.get("mix"):
        return load_mixture(cfg, sample_type)
    splits, rows = Splits(), []
    for conversation in load_conversations(cfg, splits):
        try:
            split = split_of_row(conversation.metadata.get("split"))
        except InvalidRow as error:
            reject_row(conversation.source, error, cfg, splits)
        else:
            rows.append((split, with_conversation_eos(conversation, cfg.conversation_eos)))
    if not rows:
        reason = f"all {len(splits.skipped)} rows were malformed" if splits.skipped else "it has no training rows"
        first = f" The first: {splits.skipped[0]}." if splits.skipped else ""
        raise MannersError(f"dataset.path={cfg.path}: {reason}.{first}")
    check_columns(splits.fields, cfg)
    rows = without_other_labels(rows, cfg, splits)
    if sample_type not in ("scored", "preference", "unpaired_preference"):
        rows = leave_out_without_loss(rows, splits, cfg)
    splits.warnings += misread_texts(row for _, row in rows)
    for name, conversations in assign_splits(rows, cfg).items():
        setattr(splits, name, conversations[: cfg.max_rows] if cfg.max_rows else conversations)
    if any(split for split, _ in rows):  # else equal prompts are in one split
        splits.warnings += shared_prompts(splits)
    check_sample_types(splits, cfg.sample_types, cfg)
    if cfg.min_score_quantile is not None:
        apply_min_score_quantile(splits, cfg)
    if cfg.include_alternatives:
        splits.train, splits.validation = expand_alternatives(splits.train), expand_alternatives(splits.validation)
    return splits


def shared_prompts(splits: Splits) -> list[str]:
    """A warning for each held-out split that asks what the training rows ask: the splits of the data may be so."""
    asked = {mixture.prompt_key(row) for row in splits.train}
    warnings = []
    for name in ("validation", "test"):
        rows = getattr(splits, name)
        if shared := sum(mixture.prompt_key(row) in asked for row in rows):
            warnings.append(
                f"{shared} of {len(rows)} {name} rows have the prompt of a training row: what is measured on them says "
                "little of new prompts. The data's own splits have them so"
            )
    return warnings


def load_mixture(cfg: DictConfig, sample_type: str) -> Splits:
    """The rows of all datasets of ``cfg.mix``, each split by its own rules, the training rows drawn by weights.

    Raises MannersError, with the dataset's name, for one that cannot be used or has no samples of ``sample_type``.
    """
    configs, parts = mixture.dataset_configs(cfg), {}
    for name, (_, own) in configs.items():
        try:
            parts[name] = load_splits(own, sample_type)
            check_sample_types(parts[name], [sample_type], own)
        except MannersError as error:
            raise MannersError(f"dataset.mix, {name}: {error}", "dataset.mix") from None
    training = {name: mixture.named_rows(part.train, name) for name, part in parts.items()}
    mixed = Splits(train=mixture.mix_rows(training, {name: weight for name, (weight, _) in configs.items()}))
    mixed.mixture = mixture.mixture_lines(training, mixed.train)
    trained = {name: rows for name, rows in training.items() if configs[name][0] != 0}
    for split in ("validation", "test"):
        held_out = []
        for name, part in parts.items():
            others = {other: rows for other, rows in trained.items() if other != name}
            rows, dropped = mixture.held_out_of_training(getattr(part, split), others)
            held_out.append(mixture.named_rows(rows, name))
            mixed.notes += [f"{name}: {dropped} {split} rows: another dataset trains on their prompts"] * bool(dropped)
        setattr(mixed, split, mixture.in_turn(held_out))
    for name, part in parts.items():
        mixed.skipped += part.skipped
        mixed.fields |= part.fields
        mixed.notes += [f"{name}: {note}" for note in part.notes]
        mixed.warnings += [f"{name}: {warning}" for warning in part.warnings]
        mixed.unused |= part.unused
    return mixed


def load_conversations(cfg: DictConfig, splits: Splits) -> Iterator[Conversation]:
    """Yield the conversation of each row, or those of each OpenAssistant tree; note what is excluded in ``splits``.

    Raises MannersError at the first malformed row, unless ``cfg.on_invalid_row`` is "skip".
    """
    format, rows = detect_format(cfg, raw_rows(cfg, splits))
    if format == "oasst":
        trees = oasst.read_trees(rows, cfg.loss_roles, list(cfg.languages), list(cfg.keep_flagged))
        for source, error in trees.invalid:
            reject_row(source, error, cfg, splits)
        splits.notes += [printable(f"{count} messages: {why}") for why, count in trees.excluded.most_common()]
        splits.unused |= dict.fromkeys(trees.unused)
        yield from trees.conversations
        return
    if format == "votes":
        yield from voted_conversations(rows, cfg, splits)
        return
    options = SimpleNamespace(**OmegaConf.to_container(cfg, resolve=True))  # type: ignore[arg-type]  # fast to read
    for source, row in rows:
        try:
            if isinstance(row, InvalidRow):
                raise row
            row_format = format or detect_row_format(rename_columns(row, options.columns))
            if cfg.format == "auto" and format == "text" and (other := text_format(row.get("text"))) != "text":
                choice = f"dataset.format={other}, or dataset.format=text to train on all as it is"
                raise InvalidRow(f"field 'text' has turns, and the file begins with a plain text: {choice}")
            conversation, unused = parse_row(row, source, row_format, options)
        except InvalidRow as error:
            reject_row(source, error, cfg, splits)
            continue
        splits.fields |= row.keys() | conversation.metadata.keys()
        splits.unused |= dict.fromkeys(unused)
        yield conversation


def voted_conversations(rows: Iterator[tuple[str, Any]], cfg: DictConfig, splits: Splits) -> list[Conversation]:
    """The conversations that people's votes give; note in ``splits`` what they do not. Raises MannersError."""
    read = votes.read_votes(rows)
    for source, error in read.invalid:
        reject_row(source, error, cfg, splits)
    conversations, excluded = votes.vote_conversations(read.votes)
    excluded["taken back"] += read.undone
    splits.notes += [f"{count} votes: {why}" for why, count in excluded.most_common() if count]
    return conversations


def detect_format(cfg: DictConfig, rows: Iterator[tuple[str, Any]]) -> tuple[str, Iterator[tuple[str, Any]]]:
    """The format, from the config or the first row that shows it ("" if none does), and all rows."""
    if cfg.format != "auto":
        return cfg.format, rows
    consumed = []
    for source, row in rows:
        consumed.append((source, row))
        try:
            if isinstance(row, dict):
                return detect_row_format(rename_columns(row, cfg.columns)), chain(consumed, rows)
        except InvalidRow:
            if cfg.on_invalid_row == "raise":
                break
    return "", chain(consumed, rows)


def reject_row(source: str, error: InvalidRow, cfg: DictConfig, splits: Splits) -> None:
    """Count a malformed row as skipped; raises MannersError unless the config says to skip it. Raises MannersError."""
    sentence = printable(f"{source}: {error}")
    if cfg.on_invalid_row == "skip":
        splits.skipped.append(sentence)
        return
    hint = "" if cfg.format == "auto" else f" If the file is not in the {cfg.format} format: dataset.format=auto."
    raise MannersError(
        f"{sentence.rstrip('.')}. Fix the row, or skip such rows: dataset.on_invalid_row=skip.{hint}"
    ) from None


def without_other_labels(
    rows: list[tuple[str | None, Conversation]], cfg: DictConfig, splits: Splits
) -> list[tuple[str | None, Conversation]]:
    """The rows but those whose label is neither true nor false, where that of another row is: such a row is malformed.

    Without any that is, a field of this name says something else, and is not read.
    """
    if not any(isinstance(row.metadata.get("label"), bool) for _, row in rows):
        return rows
    kept = []
    for split, row in rows:
        label = row.metadata.get("label")
        if is_empty(label) or isinstance(label, bool) or "rejected" in row.metadata:
            kept.append((split, row))
        else:
            why = f"field 'label' is {label!r}, and that of other rows is true or false"
            reject_row(row.source, InvalidRow(f"{why}: write one of them, or none"), cfg, splits)
    return kept


def leave_out_without_loss(
    rows: list[tuple[str | None, Conversation]], splits: Splits, cfg: DictConfig
) -> list[tuple[str | None, Conversation]]:
    """The rows with a turn that carries loss; the others are counted in ``splits``. Raises MannersError for none."""
    kept = [row for row in rows if has_loss(row[1], cfg.loss_roles)]
    dropped = [row for row in rows if not has_loss(row[1], cfg.loss_roles)]
    unwanted = sum(row[1].metadata.get("label") is False for row in dropped)
    label = next((name for name in LABEL_FIELDS if name in splits.fields), "label")
    keep_all = f"{label} is false ('dataset.columns={{{label}: null}}' keeps them)"
    for count, why in ((unwanted, keep_all), (len(dropped) - unwanted, "no turn carries loss")):
        splits.notes += [f"{count} rows: {why}"] if count else []
    if not kept:
        raise MannersError(f"dataset.path={cfg.path}: no row has a turn that carries loss ({'; '.join(splits.notes)}).")
    return kept


def with_conversation_eos(conversation: Conversation, marker: str | None) -> Conversation:
    """The conversation with ``marker`` as the user's turn after the last reply; unchanged without a marker."""
    if marker is None or conversation.messages[-1]["role"] != "assistant":
        return conversation
    return replace(
        conversation,
        messages=[*conversation.messages, {"role": "user", "content": marker}],
        metadata=conversation.metadata | {"conversation_eos_turn": len(conversation.messages)},
    )


def apply_min_score_quantile(splits: Splits, cfg: DictConfig) -> None:
    """Drop training and validation rows whose score is below the quantile ``min_score_quantile`` of training scores.

    Raises MannersError if no training row has a score.
    """
    scores = sorted(row.metadata["score"] for row in splits.train if "score" in row.metadata)
    if not scores:
        raise MannersError("dataset.min_score_quantile: no training row has a score.", "dataset.min_score_quantile")
    threshold = scores[min(math.ceil(cfg.min_score_quantile * len(scores)), len(scores) - 1)]
    for name in ("train", "validation"):
        rows = getattr(splits, name)
        kept = [row for row in rows if row.metadata.get("score", -math.inf) >= threshold]
        setattr(splits, name, kept)
        splits.notes.append(f"{len(rows) - len(kept)} of {len(rows)} {name} rows: score below {threshold:g}")


def expand_alternatives(rows: list[Conversation]) -> list[Conversation]:
    """Each row, and one more row for each of its ``mismatched`` replies, which replaces the row's own reply."""
    expanded = []
    for row in rows:
        metadata = {name: value for name, value in row.metadata.items() if name != "mismatched"}
        expanded.append(replace(row, metadata=metadata))
        for other in row.metadata.get("mismatched", []):
            messages = [*row.messages[:-1], {"role": "assistant", "content": other["content"]}]
            expanded.append(replace(row, messages=messages, metadata=metadata | {"score": other["score"]}))
    return expanded


def check_columns(fields: set[str], cfg: DictConfig) -> None:
    """Raise MannersError for a name in ``dataset.columns`` that no row has."""
    for theirs in (cfg.columns or {}).values():
        if theirs is not None and theirs not in fields:
            raise MannersError(f"dataset.columns: no row has the field '{theirs}'. {did_you_mean(theirs, fields)}")


def check_sample_types(splits: Splits, sample_types: Collection[str], cfg: DictConfig) -> None:
    """Raise MannersError if ``sample_types`` has 'scored' or a kind of preference and no row gives such a sample."""
    conversations = [*splits.train, *splits.validation, *splits.test]
    known = f"The rows have the fields {', '.join(sorted(map(str, splits.fields)))}"
    if "scored" in sample_types and not any("score" in c.metadata for c in conversations):
        hint = f"{known}: name the one that holds the score, dataset.score_field=FIELD."
        hint = "The rows are pairs: method.loss=pairwise." if {"chosen", "rejected"} <= splits.fields else hint
        raise MannersError(
            f"dataset.score_field={cfg.score_field}: no row of {cfg.path} has a score there. {hint}",
            "dataset.score_field",
        )
    if "preference" in sample_types and not any(preference_pairs([c]) for c in conversations):
        raise MannersError(
            f"dataset.path={cfg.path}: no row has a 'chosen' and a 'rejected' reply, or a score above that of one of "
            f"its 'mismatched' replies. {known}.",
            "dataset.path",
        )
    if "unpaired_preference" in sample_types and not labeled_replies(conversations):
        raise MannersError(
            f"dataset.path={cfg.path}: no row has a 'label' (true or false), or a pair of a better and a worse reply. "
            f"{known}: name the one that holds the label, 'dataset.columns={{kto_tag: FIELD}}'.",
            "dataset.path",
        )


def build_prompts(cfg: DictConfig, rows: list[Conversation]) -> list[Prompt]:
    """The prompts in ``rows`` of a dataset: for a reply by the assistant or the user, or a text to continue."""
    return prompts_of(rows, "user" if cfg.loss_roles == "user" else "assistant", cfg.prefix_words)


def eval_prompts(cfg: DictConfig) -> list[Prompt]:
    """The dataset's fixed evaluation prompts, {"prompt": "..."} in a row, perhaps with ``system``; [] without a file.

    Raises MannersError for a missing file and for a row of another form.
    """
    if cfg.eval_prompts_file is None:
        return []
    path = sources.local_path(cfg.eval_prompts_file, "dataset.eval_prompts_file")
    if path is None:
        raise MannersError(f"dataset.eval_prompts_file={cfg.eval_prompts_file}: there is no such file.")
    prompts = []
    for source, row in file_rows(path, path.name, cfg.format, cfg.score_field):
        if isinstance(row, InvalidRow) or not isinstance(row, dict) or "prompt" not in row:
            raise MannersError(f'{source}: an evaluation prompt is a row {{"prompt": "..."}} of a .jsonl or .csv file.')
        try:
            prompts.append(Prompt(with_system_message(Row(row), parse_turns(row, "prompt", "user"))))
        except InvalidRow as error:
            raise MannersError(f'{source}: {error}. An evaluation prompt is a row {{"prompt": "..."}}.') from None
    return prompts


def raw_rows(cfg: DictConfig, splits: Splits) -> Iterator[tuple[str, Any]]:
    """Yield (source, row) for each row; a row that cannot even be parsed comes as the InvalidRow with the reason.

    The files of a folder that are no data are noted in ``splits``.
    """
    path = sources.local_path(cfg.path)
    if path is None:
        yield from hub_rows(cfg)
        return
    files = sources.data_files(path)
    left_out = [] if path.is_file() else [str(p.relative_to(path)) for p in sources.folder_files(path)[1]]
    if left_out:
        splits.notes.append(printable(f"files of the folder: {', '.join(left_out)}"))
    if sources.is_hub_folder(path):
        yield from hub_rows(cfg)
        return
    named = {} if path.is_file() else splits_of_files(files, path)
    seen: dict[str, Any] = {}
    for file in files:
        name = file.name if path.is_file() else str(file.relative_to(path))
        split = {"split": named[file]} if file in named else {}
        content = hashlib.sha256()
        for source, row in file_rows(file, name, cfg.format, cfg.score_field):
            content.update(repr(sorted(row.items()) if isinstance(row, dict) else row).encode(errors="replace"))
            yield source, split | without_nulls(row) if isinstance(row, dict) else row
        if (same := seen.setdefault(content.hexdigest(), file)) != file:
            raise MannersError(f"{path}: {same.name} and {file.name} hold the same rows: take one of them away.")


def hub_rows(cfg: DictConfig) -> Iterator[tuple[str, Any]]:
    """Yield (source, row) for each row of a hub dataset, with the hub's split in the field ``split``.

    Raises MannersError for an unknown split in ``dataset.splits``.
    """
    from manners.runtime import hub

    tables = hub.load_dataset(cfg.path, cfg.name)
    for split in cfg.splits:
        if split not in tables:
            raise MannersError(f"dataset.splits: {cfg.path} has no {split}. {did_you_mean(split, tables)}")
    selected = {split: table for split, table in tables.items() if not cfg.splits or split in cfg.splits}
    several = len(selected) > 1  # a single split, as in Dolly, is split like the rows of a file
    if unknown := [split for split in selected if several and not split_named(split)]:
        known = ",".join(split for split in selected if split_named(split))
        raise MannersError(
            f"{cfg.path} has the split '{unknown[0]}', which is none of {', '.join(SPLITS)}: name those to read, "
            f"dataset.splits=[{known}].",
            "dataset.splits",
        )
    for split, table in selected.items():
        named = {"split": split} if several else {}
        # Rows beyond max_rows are not even read where each row is independent and none can be skipped.
        limit = (
            cfg.max_rows if named and cfg.on_invalid_row == "raise" and cfg.format not in ("oasst", "votes") else None
        )
        for number, row in enumerate(islice(table, limit)):
            yield f"{cfg.path} {split}[{number}]", named | without_nulls(row)


def without_nulls(row: Any) -> Any:
    """A row without the fields that are null, as tables of several formats have them; anything else unchanged."""
    return {name: value for name, value in row.items() if value is not None} if isinstance(row, dict) else row
