"""A text option keeps the text that was written: ``run_name=1e5`` is no number, the language ``no`` is not false.

Hydra and yaml read such words as numbers and booleans before they know that the option is a text. On the command line
they are quoted before Hydra reads them; of a file, the words are read once more.
"""

import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep
from omegaconf import DictConfig, ListConfig, OmegaConf

from manners.config import schema
from manners.data.formats.fields import number_if_numeric

METHODS = (
    *(schema.SFTConfig, schema.RewardConfig, schema.DPOConfig),
    *(schema.KTOConfig, schema.PPOConfig, schema.RLOOConfig),
)
ITEM = r"""'[^']*'|"[^"]*"|[^,\[\]]+"""  # of a list on the command line


def text_options(node: Any, path: str = "") -> Iterator[str]:
    """The dotted names of the options below a schema that are texts, or lists of texts."""
    for name, field in schema.options(node).items():
        if field.type is schema.MethodConfig:
            for method in METHODS:
                yield from text_options(method, f"{path}{name}.")
        elif nested := next(
            (t for t in (field.type, *getattr(field.type, "__args__", ())) if schema.is_schema(t)), None
        ):
            yield from text_options(nested, f"{path}{name}.")
        elif "str" in str(field.type):
            yield f"{path}{name}"


def quote_text(override: str, options: Collection[str]) -> str:
    """``override`` with its value in quotes, if it is a text that Hydra would read as a number or boolean."""
    key, _, written = override.partition("=")
    if key.lstrip("+") not in options:
        return override
    value = OverridesParser.create().parse_override(override).value()
    if is_misread(value):
        return f'{key}="{written.strip()}"'
    in_sweep = isinstance(value, ChoiceSweep) and value.simple_form  # a,b,c of -m
    values: Any = value.list if isinstance(value, ChoiceSweep) and in_sweep else value
    if isinstance(values, list) and any(map(is_misread, values)):
        items = (item.strip() for item in re.findall(ITEM, written))
        quoted = ",".join(f'"{item}"' if is_misread(v) else item for item, v in zip(items, values, strict=True))
        return f"{key}={quoted}" if in_sweep else f"{key}=[{quoted}]"
    return override


def texts_in_file(file: Path, package: str, options: Collection[str]) -> dict[str, Any]:
    """The values of text options in a config file: as they are written where yaml reads another type, else None."""
    typed = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
    written = yaml.load(file.read_text("utf-8"), yaml.BaseLoader)
    return dict(compare(typed, written, f"{package}." if package else "", options))


def compare(typed: Any, written: Any, path: str, options: Collection[str]) -> Iterator[tuple[str, Any]]:
    """Yield the dotted name of each text option, with its written text if it was read as another type."""
    for name, value in typed.items() if isinstance(typed, dict) else ():
        key, text = f"{path}{name}", written.get(str(name))
        if key in options and isinstance(value, list) and isinstance(text, list):
            items = [t if is_misread(v) else v for v, t in zip(value, text, strict=True)]
            yield key, items if items != value else None
        elif key in options:
            yield key, text if is_misread(value) else None
        elif isinstance(text, dict):
            yield from compare(value, text, f"{key}.", options)


def is_misread(value: Any) -> bool:
    """Whether the value of a text option is not the text that was written."""
    return isinstance(value, bool | int | float)


def has_misread_text(cfg: DictConfig, options: Collection[str]) -> bool:
    """Whether the value of a text option looks like a number or a boolean, which it may have been for yaml."""
    values = (OmegaConf.select(cfg, key) for key in options)
    texts = (str(text) for value in values for text in (value if isinstance(value, ListConfig) else [value]))
    return any(text in ("True", "False") or isinstance(number_if_numeric(text), float) for text in texts)


def restore_texts(
    cfg: DictConfig, options: Collection[str], files: list[tuple[Path, str]], overrides: Collection[str]
) -> None:
    """Set text options to what is written in ``files`` of (file, package), but for those that ``overrides`` set."""
    texts: dict[str, Any] = {}
    for file, package in files:
        texts |= texts_in_file(file, package, options)
    for key, text in texts.items():
        if text is not None and key not in overrides:
            OmegaConf.update(cfg, key, text)
