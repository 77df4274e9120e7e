"""What installs the project: pip with its constraints, uv, the image. All of them install the same versions."""

import json
import re
import shutil
import subprocess
import tomllib
from fnmatch import fnmatch

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from manners.runtime.paths import CONF, ROOT


def pins(lines):
    """The version of each package in ``name==version`` lines."""
    found = {}
    for line in lines:
        requirement = Requirement(line)
        (specifier,) = requirement.specifier
        assert specifier.operator == "==" and not requirement.marker, line
        assert canonicalize_name(requirement.name) not in found, line
        found[canonicalize_name(requirement.name)] = specifier.version
    return found


def constraints():
    lines = (CONF / "constraints.txt").read_text().splitlines()
    return pins(line for line in lines if line.strip() and not line.startswith("#"))


def pyproject():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_uv_is_held_to_the_same_versions_as_pip():
    pinned = constraints()
    assert len(pinned) > 100
    assert pins(pyproject()["tool"]["uv"]["constraint-dependencies"]) == pinned


def test_uv_leaves_out_what_the_pins_exclude():
    """uv resolves all extras at once: a single one that cannot go with the pins would leave no solution."""
    excluded = set(pyproject()["tool"]["uv"]["exclude-dependencies"])
    extras = pyproject()["project"]["optional-dependencies"]
    needed = {extra for lines in extras.values() for line in lines for extra in Requirement(line).extras}
    assert excluded == {"vllm"} <= needed


# --- The image ---


def instructions():
    """The instructions of the Dockerfile, as (name, rest), with continued lines joined."""
    text = re.sub(r"\\\n\s*", "", (ROOT / "Dockerfile").read_text())
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in lines)]


def of(name):
    return [rest for instruction, rest in instructions() if instruction == name]


def copied():
    """What COPY takes from the repository, and where each goes below the working directory."""
    for rest in of("COPY"):
        *sources, target = [word for word in rest.split() if not word.startswith("--")]
        yield from ((source, target) for source in sources)


def make(folder, *words):
    """What make would run, and its return code."""
    process = subprocess.run(["make", "--dry-run", *words], cwd=folder, capture_output=True, text=True)
    return process.returncode, process.stdout


def test_image_has_a_python_that_the_project_takes():
    (image,) = of("FROM")
    version = image.removeprefix("python:").removesuffix("-slim")
    assert version in SpecifierSet(pyproject()["project"]["requires-python"])


def test_image_installs_before_the_code_is_copied(tmp_path):
    """`make setup` finds all it needs in the files that are copied before it, at the places where they go."""
    names = [name for name, _ in instructions()]
    first_files = list(copied())[:-1]
    assert names[names.index("USER") + 1 :] == ["ARG", "COPY", "COPY", "COPY", "RUN", "COPY", "VOLUME", "CMD"]
    assert list(copied())[-1] == (".", ".") and of("ARG") == ["TORCH_INDEX="]
    for source, target in first_files:
        (tmp_path / target).mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / source, tmp_path / target)
    assert of("RUN")[-1] == 'make setup TORCH_INDEX="$TORCH_INDEX"'
    code, commands = make(tmp_path, "setup", "TORCH_INDEX=INDEX")
    assert code == 0 and "--index-url INDEX torch" in commands and "--editable '.[dev]'" in commands
    assert make(tmp_path, "setup", "TORCH_INDEX=")[1].count("--index-url") == 0
    project = pyproject()["project"]
    needed = {project["readme"], "LICENSE", "conf/constraints.txt", "src/manners/__init__.py", "pyproject.toml"}
    assert all((tmp_path / file).exists() for file in needed)


def test_image_runs_make_as_an_ordinary_user():
    (user,), (made, owned, _) = of("USER"), of("RUN")
    assert f"useradd --create-home --uid {user} manners" in made and "chown -R manners:manners ." in owned
    assert all(f"--chown={user}:{user} " in rest for rest in of("COPY"))
    folders = {target.strip("./") for _, target in copied()} - {""} | {"outputs"}
    assert folders <= set(owned.partition(" && ")[0].split())
    command = json.loads(of("CMD")[0])
    assert command == ["make", "run"] and make(ROOT, *command[1:])[0] == 0
    assert of("VOLUME") == [f"{of('WORKDIR')[0]}/outputs"] and of("WORKDIR")[0].startswith("/app")


def test_image_leaves_out_what_git_does():
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert {".git", ".venv", "outputs/*", "**/__pycache__"} <= set(ignored)
    patterns = [p.removeprefix("**/") for p in ignored if not p.startswith("!") and p != "outputs/*"]
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.splitlines()
    lost = [file for file in tracked if any(fnmatch(part, p) for part in file.split("/") for p in patterns)]
    assert lost == []
    for name in (line.strip("/") for line in (ROOT / ".gitignore").read_text().split()):
        assert any(fnmatch(name, pattern) for pattern in patterns), name
