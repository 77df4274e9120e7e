"""What installs the project: pip with its constraints, uv, the image. All of them install the same versions."""

import tomllib

from packaging.requirements import Requirement
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
