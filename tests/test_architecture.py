"""The rules of the house: who may import whom, how long a file is, and that every option is explained."""

import ast
import inspect
import re
import subprocess
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest

from manners.config import schema as config

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "manners"
MODULES = sorted(PACKAGE.rglob("*.py"))

# Imports go down only: a part knows the layers under its own, and nothing beside it. So data and models do not know
# each other, methods know nothing of evaluation or tracking, and only the scripts know the pipeline.
LAYERS = [
    {"errors"},
    {"runtime"},
    {"data"},
    {"config", "models"},
    {"rewards", "tracking"},
    {"methods", "evaluation"},
    {"tiny_world", "pipeline"},
    {"sweep", "fits"},
    {"chat", "export", "report", "cli"},
]


def imports(source):
    """Every module that runs with ``source``, in functions too; what only a type checker sees is left out."""
    found = set()
    todo = [ast.parse(source)]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            todo += node.orelse
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        todo += ast.iter_child_nodes(node)
    return found


def part(module):
    """ "manners.data.types.Conversation" → "data"."""
    return module.split(".")[1]


def part_of(path):
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def layer(name):
    at = [i for i, names in enumerate(LAYERS) if name in names]
    assert at, f"'{name}' is new: give it its place in LAYERS"
    return at[0]


def tracked():
    """The project's files as git lists them, with those not yet added."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    if listed.returncode:
        pytest.skip("no git checkout")
    return [ROOT / name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]


def test_the_import_reader_sees_inner_imports_and_passes_over_those_for_types():
    source = """
import a.b, c
def inner():
    from manners import hub, errors
if TYPE_CHECKING:
    import never
else:
    import always
"""
    assert imports(source) == {"a.b", "c", "manners.runtime.hub", "manners.errors", "always"}


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_down_the_layers_only(path):
    if path == PACKAGE / "__init__.py":
        assert imports(path.read_text()) == set()
        return
    own = part_of(path)
    for module in imports(path.read_text()):
        if module.startswith("manners."):
            assert part(module) == own or layer(part(module)) < layer(own), f"{own} imports {module}"


def test_scripts_import_only_the_top():
    """And what finds a mistake in the data before torch is imported."""
    for script in ROOT.glob("*.py"):
        own = {part(m) for m in imports(script.read_text()) if m.startswith("manners.")}
        assert own <= {"cli", "composing", "chain", "pipeline", "hub", "compare", "chat"}, script.name


@pytest.mark.parametrize(
    "library, allowed",
    [
        ("mlflow", {"tracking", "store", "outbox"}),
        ("hydra", {"cli", "composing", "config", "sweep"}),
        ("lightning", {"methods", "pipeline"}),
        (
            "rich",
            {
                "help",
                "fits",
                "preview",
                "chain",
                "methods",
                "evaluation",
                "stages",
                "pipeline",
                "world",
                "compare",
                "chat",
                "export",
                "report",
                "sweep",
            },
        ),
    ],
)
def test_a_library_is_imported_only_where_it_belongs(library, allowed):
    users = {
        part_of(path)
        for path in MODULES
        if any(module.split(".")[0] == library for module in imports(path.read_text()))
    }
    assert users
    assert users <= allowed


def test_methods_models_and_evaluation_are_handed_values_not_configs():
    for path in MODULES:
        if part_of(path) in ("methods", "models", "evaluation"):
            assert not {m.split(".")[0] for m in imports(path.read_text())} & {"hydra", "omegaconf", "mlflow"}, path


def test_no_python_file_is_longer_than_300_lines():
    long = {p.name: n for p in tracked() if p.suffix == ".py" and (n := len(p.read_text().splitlines())) > 300}
    assert long == {}


def test_no_file_is_a_drawer_for_odds_and_ends():
    assert not [p for p in tracked() if p.stem in ("utils", "util", "helpers", "common", "misc")]


def test_the_top_level_holds_nothing_unforeseen():
    folders = {"conf", "src", "experiments", "outputs", "tests", ".ci"}
    files = {"Makefile", "pyproject.toml", "README.md", "LICENSE", ".gitignore", "train.py", "evaluate.py", "chat.py"}
    assert {p.relative_to(ROOT).parts[0] for p in tracked()} <= folders | files


def test_every_option_is_explained_and_its_default_is_one_of_its_choices():
    schemas = [s for _, s in inspect.getmembers(config, is_dataclass)]
    assert len(schemas) >= 8
    for schema in schemas:
        for field in fields(schema):
            if is_dataclass(field.type):
                continue  # a group: its own fields are explained
            assert field.metadata["help"].strip(), f"{schema.__name__}.{field.name}"
            choices = field.metadata["choices"]
            assert not choices or field.default in (*choices, config.MISSING), f"{schema.__name__}.{field.name}"


def test_every_choice_of_a_group_begins_with_a_comment_that_says_what_it_is():
    for file in [*ROOT.glob("conf/*/*.yaml"), *ROOT.glob("experiments/study/*.yaml")]:
        comments = [c for c in file.read_text().splitlines() if c.startswith("#") and "@package" not in c]
        assert comments, file


def test_no_file_names_a_place_of_one_machine_or_a_package_index():
    place = re.compile(r"(?<![\w.~$}/:<-])/(home|root|Users|work|tmp|mnt|private)/\w")
    host = re.compile(r"https?://([\w.-]+)")
    for path in tracked():
        if path.suffix in (".safetensors", ".png"):
            continue
        text = path.read_text("utf-8", errors="replace")
        assert not place.search(text), f"{path.name}: {place.search(text)}"
        assert set(host.findall(text)) <= {"127.0.0.1", "localhost", "huggingface.co"}, (
            f"{path.name}: {host.findall(text)}"
        )
