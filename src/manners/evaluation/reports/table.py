"""A table of a report, for the terminal and as Markdown."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import rich.table
from rich.box import HEAVY_HEAD
from rich.console import Console
from rich.table import Column
from rich.text import Text

CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f]")


@dataclass(frozen=True)
class Table:
    """Cells are plain text: neither rich's markup nor a bar of Markdown in a reply changes the table."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        """The table in Markdown, without a line break at its end."""
        lines = [self.header, ["---"] * len(self.header), *self.rows]
        return "\n".join(f"| {' | '.join(map(escape_cell, line))} |" for line in lines)

    def show(self, console: Console, title: str = "", ruled: bool = False) -> None:
        """Print the table; ``ruled`` draws lines between the rows, for cells of several lines."""
        table = rich.table.Table(
            *(Column(as_text(name)) for name in self.header),
            title=as_text(title) if title else None,
            title_justify="left",
            header_style="bold",
            show_lines=ruled,
            box=HEAVY_HEAD if ruled else None,
        )
        for row in self.rows:
            table.add_row(*map(as_text, row))
        console.print(table)


def escape_cell(text: str) -> str:
    """Text that stays within its cell of a Markdown table."""
    return CONTROLS.sub(" ", text).replace("|", "\\|").strip()


def as_text(text: str) -> Text:
    """Text as it is: in a string, rich would take brackets for markup."""
    return Text(CONTROLS.sub(lambda control: "\n" if control[0] == "\n" else " ", text))


def markdown_report(title: str, parts: Iterable[str | Table]) -> str:
    """A report with a heading: paragraphs and tables, with an empty line between them."""
    texts = [part if isinstance(part, str) else part.markdown() for part in parts]
    return "\n\n".join([f"# {title}", *texts]) + "\n"
