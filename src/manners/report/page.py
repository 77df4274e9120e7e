"""Writes the report's files: a self-contained HTML page, and the tables in Markdown."""

import base64
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from manners.errors import MannersError
from manners.report import curves
from manners.report.sections import Study

PAGE, TABLES = "index.html", "tables.md"


def write_report_files(studies: Sequence[Study], uri: str, out: Path) -> list[Path]:
    """Write both files; ``uri`` is the store that the page names. Raises MannersError if ``out`` is unwritable."""
    files = {PAGE: render_html(studies, uri), TABLES: render_markdown(studies)}
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (out / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise MannersError(f"--out {out}: cannot be written ({error.strerror}). Name another folder.") from None
    return [out / name for name in files]


def render_html(studies: Sequence[Study], uri: str) -> str:
    """The page; text of runs is escaped, and the Markdown of their reports was rendered with raw HTML disabled."""
    environment = Environment(
        loader=PackageLoader("manners.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["base64"] = lambda data: base64.b64encode(data).decode()
    return environment.get_template("page.html.j2").render(studies=studies, uri=uri, size=curves)


def render_markdown(studies: Sequence[Study]) -> str:
    """All tables, to be pasted into a write-up."""
    lines = []
    for study in studies:
        lines += [f"# {study.name}", ""]
        for section in study.sections:
            for group in section.groups:
                title = f"sweep {section.sweep}: {group.method}" if section.sweep else group.method
                lines += [f"## {title}", "", group.table.markdown(), ""]
                for detail in group.details:
                    if detail.by_seed.rows:
                        lines += [f"### {title}: {detail.label}", "", detail.by_seed.markdown(), ""]
        if study.unfinished.rows:
            lines += ["## not finished", "", study.unfinished.markdown(), ""]
    return "\n".join([*lines, "Intervals are at 95 %, over seeds (Student's t). n is the number of seeds.", ""])
