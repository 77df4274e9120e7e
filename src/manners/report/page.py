"""The report as files: one page that needs nothing but itself, and the tables in Markdown."""

import base64
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from manners.errors import MannersError
from manners.report import curves
from manners.report.sections import Study

PAGE, TABLES = "index.html", "tables.md"


def write_report_files(studies: Sequence[Study], source: str, out: Path) -> list[Path]:
    """``source`` is the store, which the page names. Raises MannersError where ``out`` cannot be written."""
    files = {PAGE: render_html(studies, source), TABLES: render_markdown(studies)}
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (out / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise MannersError(f"--out {out}: it cannot be written ({error.strerror}). Name another folder.") from None
    return [out / name for name in files]


def render_html(studies: Sequence[Study], source: str) -> str:
    """Whatever comes from a run is escaped; what was rendered from Markdown comes without HTML of its own."""
    environment = Environment(
        loader=PackageLoader("manners.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["base64"] = lambda data: base64.b64encode(data).decode()
    return environment.get_template("page.html.j2").render(studies=studies, source=source, size=curves)


def render_markdown(studies: Sequence[Study]) -> str:
    """The tables as the write-ups have them."""
    lines = []
    for study in studies:
        lines += [f"# {study.name}", ""]
        for part in study.parts:
            for group in part.groups:
                title = f"sweep {part.sweep}: {group.method}" if part.sweep else group.method
                lines += [f"## {title}", "", group.table.markdown(), ""]
                for one in group.details:
                    if one.by_seed.rows:
                        lines += [f"### {title}: {one.label}", "", one.by_seed.markdown(), ""]
        if study.unfinished.rows:
            lines += ["## not finished", "", study.unfinished.markdown(), ""]
    return "\n".join([*lines, "Intervals are at 95 %, over seeds (Student's t). n is the number of seeds.", ""])
