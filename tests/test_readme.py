"""The README and the pages behind it hold: commands run as they stand, or say above why not; links lead somewhere.

A comment directly above a block of code says what becomes of it:

    <!-- run with: FLAGS -->       its commands are run with these flags behind them, in a small size
    <!-- not run: REASON -->       its commands are only checked: verb, flags, keys and values, files that they name
    <!-- run by: FILE -->          that test runs it

Without a comment, a block of `bash` is run as it stands. Blocks run in their order and in one folder, as a reader would
do it, so that a later one finds the runs of an earlier.
"""

import re
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import pytest

from fedrsclip_jax import arguments, cli, compilation, grid
from fedrsclip_jax import config as configuration
from tests.conftest import REPOSITORY
from tests.end_to_end.conftest import photographs

# The manual, in the order in which a reader would run its commands.
MANUAL = (
    "README.md", "configs/README.md", "fedrsclip_jax/README.md", "fedrsclip_jax/export/README.md", "launch/README.md",
)  # fmt: skip
PAGES = (*MANUAL, "RESULTS.md", "CONTRIBUTING.md", "tests/benchmarks/README.md", "tests/faults/README.md")
MOST_WORDS = 3000  # of the README; what else there is to say stands on the pages behind it
LANGUAGES = ("bash", "python")  # whose blocks are code; others are shown
OURS = (".venv/bin/fedrsclip", "fedrsclip")
BLOCK = re.compile(
    r"(?:<!-- (?P<mark>[^\n]*) -->\n)?```(?P<language>\w*)\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE
)


class Block(NamedTuple):
    """One fenced block: its language, the kind and the words of the comment above, if any, and its text."""

    language: str
    kind: str
    words: str
    text: str

    @property
    def commands(self) -> list[list[str]]:
        lines = self.text.replace("\\\n", " ").splitlines()
        return [words for line in lines if (words := shlex.split(line, comments=True))]


def blocks(page: str) -> list[Block]:
    found = []
    for match in BLOCK.finditer(page):
        kind, _, words = (match["mark"] or "").partition(": ")
        found.append(Block(match["language"], kind, words, match["text"]))
    return found


TEXTS = {page: (REPOSITORY / page).read_text(encoding="utf-8") for page in MANUAL}
CODE = [block for text in TEXTS.values() for block in blocks(text) if block.language in LANGUAGES]
SHELL = [block for block in CODE if block.language == "bash"]


def first_line(block: Block) -> str:
    return block.text.splitlines()[0][:60]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_folder) -> Path:
    """What a reader has, configurations and photographs of their own in PATH, and a quick CLIP for small sizes."""
    place = tmp_path_factory.mktemp("reader")
    (place / "configs").symlink_to(REPOSITORY / "configs")
    (place / "quick_clip").symlink_to(tiny_folder)
    photographs(place / "PATH", {"Forest": 24, "StorageTanks": 24, "river_bank": 24})
    return place


@pytest.mark.long
@pytest.mark.parametrize("block", [block for block in SHELL if block.kind in ("", "run with")], ids=first_line)
def test_commands_run(block, folder, monkeypatch, capsys):
    monkeypatch.setattr(compilation, "keep_on_disk", lambda: None)  # the tests have a place of their own for programs
    monkeypatch.chdir(folder)
    for program, *words in block.commands:
        assert program in OURS, f"say above the block how {program} is run: {__doc__}"
        if words[0] == "export":
            pytest.importorskip("torch", reason="exports are held against PyTorch")
        assert cli.main([*words, *shlex.split(block.words)]) == 0, capsys.readouterr().err


@pytest.mark.parametrize("block", SHELL, ids=first_line)
def test_commands_are_well_formed(block, monkeypatch):
    """All of them, as they stand there, those that are run in a smaller size too."""
    monkeypatch.chdir(REPOSITORY)
    subprocess.run(["bash", "-n"], input=block.text, text=True, check=True)
    for command in block.commands:
        check(command)


def check(command: list[str]) -> None:
    """Verb and flags parse; keys exist and take their values; scripts and configurations are there and sound."""
    program, *words = command
    if program in OURS:
        known, rest = arguments.parser().parse_known_args(words)
        overrides = arguments.overrides(rest, known.parser)
        kind = configuration.PretrainConfig if known.verb == "pretrain" else configuration.Config
        file = getattr(known, "config", None)
        written = configuration.load_file(file) if file else {}
        if known.verb == "sweep":
            grid.read(written, overrides)
        else:
            configuration.resolve(kind, written, overrides)
    for name in (word for word in command if word.startswith("launch/")):
        assert (REPOSITORY / name).is_file(), name
        if not name.endswith((".yaml", ".ipynb")):
            subprocess.run(["bash", "-n", REPOSITORY / name], check=True)
            subprocess.run([Path(sys.executable).with_name("shellcheck"), REPOSITORY / name], check=True)
    if program == "launch/local.sh" and words[0] != "test":
        check([OURS[0], *words])


@pytest.mark.parametrize(
    "line",
    sorted(set(re.findall(r"`((?:\.venv/bin/)?fedrsclip \w[^`]*|python -m [^`]*)`", "".join(TEXTS.values())))),
    ids=str,
)
def test_commands_in_a_sentence_name_what_is_there(line, capsys):
    """They may lack what a whole command needs."""
    program, verb, *words = shlex.split(line)
    if program == "python":
        assert find_spec(words[0]) is not None
        return
    with pytest.raises(SystemExit):
        cli.main([verb, "--help"])
    shown = capsys.readouterr().out
    flags = [word.partition("=")[0] for word in words if word.startswith("--") and not word.startswith("--config.")]
    assert all(re.search(rf"{flag}\b", shown) for flag in flags), flags
    keys = [word.removeprefix("--config.") for word in words if word.startswith("--config.")]
    configuration.resolve(configuration.Config, {}, [tuple(key.split("=", 1)) for key in keys])


@pytest.mark.parametrize("block", CODE, ids=first_line)
def test_code_is_run_or_says_why_not(block):
    assert block.kind in ("", "run with", "not run", "run by"), f"no such mark: {block.kind}"
    if block.kind == "not run":
        assert len(block.words) >= 10, "a reason is due"
    if block.kind == "run by":
        test = REPOSITORY / block.words
        assert "README.md" in test.read_text(encoding="utf-8"), f"{block.words} does not read the README"
    if block.language == "python":
        assert block.kind in ("run by", "not run"), "name the test that runs it: <!-- run by: tests/... -->"


def test_no_fence_is_overlooked():
    for page, text in TEXTS.items():
        assert len(re.findall(r"^\s*```", text, re.MULTILINE)) == 2 * len(blocks(text)), page
    assert len(SHELL) >= 6
    assert sum(block.kind in ("", "run with") for block in SHELL) >= 4


@pytest.mark.parametrize(
    "line",
    [
        "fedrsclip trian --config=configs/aid.py",
        "fedrsclip train --confg=configs/aid.py",
        "fedrsclip train --config=configs/aids.py",
        "fedrsclip train --config.local.learning_rte=0.1",
        "fedrsclip train --config.rounds=many",
        "fedrsclip sweep --config=configs/quickstart.py",
        "launch/local.sh train --config.rounds=0",
    ],
)
def test_a_wrong_command_is_found(line, monkeypatch):
    from fedrsclip_jax.errors import InputError

    monkeypatch.chdir(REPOSITORY)
    with pytest.raises(InputError):
        check(line.split())


def test_the_readme_is_no_longer_than_a_person_reads():
    assert len(TEXTS["README.md"].split()) < MOST_WORDS


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    path = REPOSITORY / page
    text = path.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)|(?:src|href|srcset)=\"([^\"]+)\"", text):
        file, _, anchor = "".join(target).partition("#")
        if not file.startswith(("http://", "https://", "mailto:")):
            there = path.parent / file if file else path
            assert there.exists(), f"{page} links to {file}, which is not there"
            assert not anchor or anchor in anchors(there), f"{page} links to #{anchor}, which {there.name} lacks"


def anchors(page: Path) -> set[str]:
    """The headings of a page as links name them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
