"""The wheel: all that it needs is in it and declared, and it works where nothing else of the repository is."""

import ast
import configparser
import os
import re
import subprocess
import sys
import venv
from email import message_from_bytes
from importlib import metadata
from pathlib import Path
from zipfile import ZipFile

import pytest

from fedrsclip_jax import config as configuration
from tests.conftest import REPOSITORY

pytest.importorskip("setuptools", minversion="70")
SHIPPED = sorted(path.stem for path in (REPOSITORY / "configs").glob("*.py"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from what git knows, so that no file of an earlier build gets in."""
    source, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    files = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    for name in files.stdout.splitlines():
        if name.startswith(("fedrsclip_jax/", "configs/")) or "/" not in name:
            place = source / name
            place.parent.mkdir(parents=True, exist_ok=True)
            if (REPOSITORY / name).is_file():
                place.write_bytes((REPOSITORY / name).read_bytes())
    pip("wheel", "--no-deps", "--no-build-isolation", f"--wheel-dir={built}", str(source))
    (file,) = built.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """`bin` of a bare environment with the wheel and, by a path, the libraries of this one."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    (site,) = folder.glob("lib/python*/site-packages")
    pip("--python", str(folder / "bin" / "python"), "install", "--no-deps", "--no-index", "--quiet", str(wheel))
    # A path in a .pth file brings modules, but not the .pth files there: no editable install of the repository.
    (site / "libraries.pth").write_text("\n".join(place for place in sys.path if place.endswith("site-packages")))
    stray = site / "configs"
    stray.mkdir()
    (stray / "quickstart.py").write_text("raise RuntimeError('somebody else wrote this')")
    return folder / "bin"


def pip(*words: str) -> None:
    command = ["-I", "-m", "pip", "--disable-pip-version-check", *words]
    done = run(Path(sys.executable), *command, cwd=Path(words[-1]).parent)
    assert done.returncode == 0, done.stdout + done.stderr


def run(program: Path, *words: str, cwd: Path) -> subprocess.CompletedProcess:
    """Without PYTHONPATH, which would bring the repository's own package."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run([program, *words], cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.long
def test_the_wheel_has_every_module_asset_and_configuration(wheel):
    with ZipFile(wheel) as file:
        names = set(file.namelist())
        (described,) = (file.read(name) for name in names if name.endswith("METADATA"))
    package = REPOSITORY / "fedrsclip_jax"
    wanted = {str(path.relative_to(REPOSITORY)) for path in package.rglob("*.py")}
    wanted |= {str(path.relative_to(REPOSITORY)) for path in (package / "assets").rglob("*") if path.is_file()}
    wanted |= {f"fedrsclip_jax/configs/{name}.py" for name in SHIPPED} | {"fedrsclip_jax/py.typed"}
    missing = {name for name in wanted if "__pycache__" not in name} - names
    assert not missing
    beside = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    assert beside == {"fedrsclip_jax"}, "nothing is put beside the package"

    said = message_from_bytes(described)
    text = said.get_payload()
    assert "Simulate **federated prompt learning" in text
    targets = re.findall(r"\]\(([^)]*)\)|(?:src|href)=\"([^\"]+)\"", text)
    assert all("".join(target).startswith("https://") for target in targets), "an index page has no files beside it"
    for minor in (11, 12, 13):
        assert f"Programming Language :: Python :: 3.{minor}" in said.get_all("Classifier")
    assert {"cuda", "cuda13", "tpu", "torch", "onnx", "geo"} <= set(said.get_all("Provides-Extra"))
    assert said["Keywords"]
    assert said.get_all("Project-URL")


@pytest.mark.long
def test_the_installed_program_finds_its_own_configurations_from_anywhere(installed, tmp_path):
    where = run(installed / "python", "-c", "import fedrsclip_jax; print(fedrsclip_jax.__file__)", cwd=tmp_path)
    assert Path(where.stdout.strip()).is_relative_to(installed.parent), where.stderr
    flags = ("--config.rounds=2", "--config.seeds=1", "--config.baselines=", "--config.data.scenes.count=64")
    flags += ("--config.partition.clients=2", "--config.partition.min_examples=1", "--config.spmd.devices=1")
    quickstart = run(installed / "fedrsclip", "train", "--dry-run", *flags, cwd=tmp_path)
    assert quickstart.returncode == 0, quickstart.stderr
    assert "features" in quickstart.stdout

    aid = run(installed / "fedrsclip", "train", "--config=aid:nowhere", "--config.backbone=tiny", cwd=tmp_path)
    assert aid.returncode == 2
    assert "nowhere" in aid.stderr, "the file is found, and names the folder that is not"
    assert not [*tmp_path.iterdir()]


def test_a_word_names_a_configuration_of_the_package(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert sorted(configuration.shipped()) == SHIPPED
    assert configuration.load_file("aid:photographs").data.source == "folder:photographs"
    (tmp_path / "aid.py").write_text("def get_config():\n    return {'rounds': 3}\n")
    assert configuration.load_file("aid.py") == {"rounds": 3}, "a file is what it is"


@pytest.mark.parametrize(("spec", "near"), [("aids", "aid"), ("configs/aid.py", "aid"), ("quickstrat", "quickstart")])
def test_a_wrong_name_is_answered_with_one_of_the_package(spec, near, refused, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with refused(f"no file {spec!r}", f"did you mean {near}?"):
        configuration.load_file(spec)


def test_every_library_that_is_imported_is_declared():
    declared = {canonical(name) for name in requirements()}
    of_modules = metadata.packages_distributions()
    missing = {}
    for path in sorted((REPOSITORY / "fedrsclip_jax").rglob("*.py")):
        for module in imported(path) - set(sys.stdlib_module_names) - {"fedrsclip_jax"}:
            names = {canonical(name) for name in of_modules.get(module, [KNOWN_AS.get(module, module)])}
            if not names & declared:
                missing.setdefault(module, path.name)
    assert not missing


def requirements() -> list[str]:
    """Names in setup.cfg, those of extras included."""
    written = configparser.ConfigParser()
    written.read(REPOSITORY / "setup.cfg")
    lists = [written["options"]["install_requires"], *written["options.extras_require"].values()]
    return [name for text in lists for name in re.findall(r"^[A-Za-z][\w.-]*", text, re.MULTILINE)]


# Distributions of modules that need not be installed where the tests run.
KNOWN_AS = {"tensorflow": "tensorflow-cpu"}


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
    return found


def test_the_constraints_hold_every_library_of_the_figures():
    written = configparser.ConfigParser()
    written.read(REPOSITORY / "setup.cfg")
    needed = re.findall(r"^[A-Za-z][\w.-]*", written["options"]["install_requires"], re.MULTILINE)
    lines = (REPOSITORY / "constraints.txt").read_text().splitlines()
    held = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert {canonical(name) for name in needed} <= {canonical(name) for name in held}
    assert all(re.fullmatch(r"[\d.]+", version) for version in held.values())
