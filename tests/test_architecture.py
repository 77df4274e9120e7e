"""Rules of the project: package layers, sizes of files, names, docstrings, and that every option has help."""

import ast
import inspect
import re
import subprocess
from collections import defaultdict
from dataclasses import fields, is_dataclass
from graphlib import TopologicalSorter
from pathlib import Path
from typing import get_args

import pytest

from manners.config import schema as config
from tests import docstrings

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "manners"
MODULES = sorted(PACKAGE.rglob("*.py"))

# From the lowest to the highest. A package imports only packages of lower layers, in functions too.
LAYERS = [
    {"redact"},
    {"errors"},
    {"runtime"},
    {"data"},
    {"config"},
    {"models"},
    {"tracking"},
    {"rewards"},
    {"methods"},
    {"evaluation"},
    {"tiny_world"},
    {"pipeline"},
    {"sweep", "estimate"},
    {"chat", "export", "report", "cli"},
    {"web", "distill"},
]
SHORT_MODULES = {  # one idea each, which no other module of the package holds
    "manners.data.clusters",
    *(
        "manners.errors",
        "manners.redact",
        "manners.runtime.paths",
        "manners.rewards.functions",
        "manners.methods.optim",
    ),
    *(
        "manners.models.logprobs",
        "manners.models.attention",
        "manners.evaluation.metrics.text_stats",
        "manners.models.reference_nll",
        "manners.evaluation.metrics.word_credit",
    ),
}
NOT_PACKAGES = {"faults", "gpu", "slurm"}  # directories of tests that are about no package of their own


def imports(source):
    """Every module that ``source`` imports, in functions too; imports for type checkers alone are left out."""
    modules = set()
    todo = [ast.parse(source)]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            todo += node.orelse
            continue
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            modules |= {f"{node.module}.{alias.name}" for alias in node.names}
        todo += ast.iter_child_nodes(node)
    return modules


def package_of(path):
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported_packages(path):
    """The other packages of ``manners`` that a module imports."""
    return {m.split(".")[1] for m in imports(path.read_text()) if m.startswith("manners.")} - {package_of(path)}


def layer_of(package):
    layers = [i for i, packages in enumerate(LAYERS) if package in packages]
    assert layers, f"'{package}' is new: add it to LAYERS"
    return layers[0]


def module_name(path):
    return ".".join(("manners", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")


def reachable_modules(start):
    """Every module of ``manners`` that is imported by ``start`` or by what it imports, packages included."""
    by_name = {module_name(path): path for path in MODULES}
    reached, todo = set(), [start]
    while todo:
        name = todo.pop()
        if name in reached or name not in by_name:
            continue
        reached.add(name)
        for module in imports(by_name[name].read_text()):
            todo += [module, module.rpartition(".")[0]]  # `from package import module`, or a symbol of a module
    return reached - {start}


def tracked_files():
    """The project's files as git lists them, with those not yet added."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    if listed.returncode:
        pytest.skip("no git checkout")
    return [ROOT / name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]


def line_count(path):
    return len(path.read_text().splitlines())


def test_imports_reads_inner_imports_and_skips_those_for_types():
    source = """
import a.b, c
def inner():
    from manners import hub, errors
if TYPE_CHECKING:
    import never
else:
    import always
"""
    assert imports(source) == {"a.b", "c", "manners.hub", "manners.errors", "always"}


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_modules_import_lower_layers_only(path):
    if path == PACKAGE / "__init__.py":
        assert imports(path.read_text()) == set()
        return
    if path.name == "__main__.py":  # a command, which no module imports
        return
    own = package_of(path)
    too_high = {package for package in imported_packages(path) if layer_of(package) >= layer_of(own)}
    assert not too_high, f"{own} imports {too_high}"


def test_no_import_circle_between_packages():
    graph = defaultdict(set)
    for path in MODULES:
        if path != PACKAGE / "__init__.py" and path.name != "__main__.py":
            graph[package_of(path)] |= imported_packages(path)
    TopologicalSorter(graph).prepare()  # raises CycleError


@pytest.mark.parametrize("module", ["sft", "lightning", "reward"])
def test_supervised_methods_do_not_import_ppo(module):
    reached = reachable_modules(f"manners.methods.{module}")
    assert "manners.errors" in reached
    assert not {name for name in reached if name.startswith("manners.methods.ppo")}


def test_scripts_import_only_the_top_layers():
    """And what finds mistakes in names, data and addresses before torch is imported."""
    for script in ROOT.glob("*.py"):
        packages = {m.split(".")[1] for m in imports(script.read_text()) if m.startswith("manners.")}
        assert packages <= {"cli", "config", "runtime", "tracking", "pipeline", "estimate", "chat"}, script.name


@pytest.mark.parametrize(
    "library, allowed",
    [
        ("mlflow", {"tracking"}),
        ("hydra", {"cli", "config", "rewards", "sweep"}),
        ("lightning", {"methods", "pipeline", "tracking"}),
        ("optuna", {"tracking", "sweep"}),
    ],
)
def test_library_is_imported_only_where_it_belongs(library, allowed):
    users = {package_of(path) for path in MODULES if library in {m.split(".")[0] for m in imports(path.read_text())}}
    assert users
    assert users <= allowed


@pytest.mark.parametrize("package", ["methods", "models", "evaluation"])
def test_package_knows_neither_configs_nor_mlflow(package):
    for path in (PACKAGE / package).rglob("*.py"):
        assert not {m.split(".")[0] for m in imports(path.read_text())} & {"hydra", "omegaconf", "mlflow"}, path


def test_no_module_locks_files_by_fcntl():
    """It is for Unix alone; filelock is for all systems."""
    users = [p for p in tracked_files() if p.suffix == ".py" and "fcntl" in imports(p.read_text())]
    assert users == []


def test_at_most_two_modules_beside_the_packages():
    assert len([p for p in PACKAGE.glob("*.py") if p.name != "__init__.py"]) <= 2


def test_no_python_file_is_longer_than_600_lines():
    assert {p.name: line_count(p) for p in tracked_files() if p.suffix == ".py" and line_count(p) > 600} == {}


def test_no_module_is_shorter_than_36_lines():
    exempt = ("__init__.py", "__main__.py")
    short = {module_name(p): line_count(p) for p in MODULES if p.name not in exempt and line_count(p) < 36}
    assert not set(short) - SHORT_MODULES, short


def test_no_function_name_is_in_more_than_three_modules():
    modules = defaultdict(set)
    for path in (p for p in MODULES if p.name != "__main__.py"):  # each has its main
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef):
                modules[node.name].add(module_name(path))
    assert {name: sorted(where) for name, where in modules.items() if len(where) > 3} == {}


def test_no_module_is_a_collection_of_odds_and_ends():
    assert not [p for p in tracked_files() if p.stem in ("utils", "util", "helpers", "common", "misc")]


def test_tests_mirror_the_packages():
    tests = ROOT / "tests"
    folders = {p.parent.relative_to(tests) for p in tests.rglob("*") if p.is_file() and "__pycache__" not in p.parts}
    unknown = [f for f in folders if f.parts and f.parts[0] not in NOT_PACKAGES and not (PACKAGE / f).is_dir()]
    assert unknown == []


def test_names_of_tests_have_at_most_60_characters():
    names = [
        node.name
        for path in (ROOT / "tests").rglob("test_*.py")
        for node in docstrings.functions_of(ast.parse(path.read_text()))
        if node.name.startswith("test_")
    ]
    assert len(names) > 300
    assert [name for name in names if len(name) > 60] == []


def test_docstrings_script_counts_shapes_and_raises(tmp_path):
    (tmp_path / "module.py").write_text('''
def good(x: Tensor) -> None:
    """Of x (B, T). Raises ValueError."""
    raise ValueError

def commented(x: np.ndarray | None): return x.view(B, T)  # (N,)

def bad(x) -> list[Tensor]:
    """No shape (Smith, 2020), and only an inner function raises."""
    def inner(): raise ValueError
''')
    assert docstrings.shapes(tmp_path) == (pytest.approx(2 / 3), ["module.py:8 bad"])
    assert docstrings.raises(tmp_path) == (1 / 2, ["module.py:10 inner"])


def test_docstrings_of_tensor_functions_give_shapes():
    documented, missing = docstrings.shapes()
    assert documented >= docstrings.MIN_SHAPES, missing


def test_docstrings_of_raising_functions_say_raises():
    documented, missing = docstrings.raises()
    assert documented >= docstrings.MIN_RAISES, missing


def test_top_level_holds_nothing_unexpected():
    folders = {"conf", "src", "experiments", "outputs", "tests", ".ci"}
    files = {"Makefile", "pyproject.toml", "README.md", "LICENSE", ".gitignore", "train.py", "evaluate.py", "chat.py"}
    files |= {"Dockerfile", ".dockerignore"}
    assert {p.relative_to(ROOT).parts[0] for p in tracked_files()} <= folders | files


def test_every_option_has_help_and_a_default_among_its_choices():
    schemas = [s for _, s in inspect.getmembers(config, is_dataclass)]
    assert len(schemas) >= 8
    for schema in schemas:
        for field in fields(schema):
            if is_dataclass(field.type):
                continue  # a group: its own fields have help
            assert field.metadata["help"].strip(), f"{schema.__name__}.{field.name}"
            choices = field.metadata["choices"]
            allowed = (*choices, config.MISSING, *([None] if type(None) in get_args(field.type) else []))
            assert not choices or field.default in allowed, f"{schema.__name__}.{field.name}"


@pytest.mark.parametrize("file", sorted(ROOT.glob("conf/*/*.yaml")), ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_config_file_begins_with_a_comment(file):
    """``--help`` prints it."""
    lines = [line for line in file.read_text().splitlines() if "@package" not in line]
    assert lines[0].startswith("# ")


def test_no_file_names_a_path_of_one_machine_or_a_package_index():
    machine_path = re.compile(r"(?<![\w.~$}/:<-])/(home|root|Users|work|tmp|mnt|private)/\w")
    host = re.compile(r"https?://([\w.-]+)")
    for path in tracked_files():
        if path.suffix in (".safetensors", ".png"):
            continue
        text = path.read_text("utf-8", errors="replace")
        assert not machine_path.search(text), f"{path.name}: {machine_path.search(text)}"
        assert set(host.findall(text)) <= {"127.0.0.1", "localhost", "huggingface.co", "github.com"}, (
            f"{path.name}: {host.findall(text)}"
        )
