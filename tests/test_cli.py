"""The command line's surface: help that is there at once, verbs, flags and how keys are written."""

import errno
import io
import math
import os
import re
import shlex
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pytest

from fedrsclip_jax import cli
from fedrsclip_jax import config as configuration
from fedrsclip_jax import verbs as actions
from fedrsclip_jax.errors import InputError


def verbs() -> list[str]:
    """As the help lists them."""
    with redirect_stdout(io.StringIO()) as shown:
        cli.main([])
    return re.findall(r"^    (\w+) ", shown.getvalue(), re.MULTILINE)


VERBS = verbs()
CONFIGURED = {"train": configuration.Config, "sweep": configuration.Config, "pretrain": configuration.PretrainConfig}


@pytest.fixture
def spoken(monkeypatch):
    """What a verb would be run with, instead of running it."""
    calls = []
    for verb in VERBS:
        monkeypatch.setattr(actions, verb, lambda known, overrides, verb=verb: calls.append((verb, known, overrides)))
    return calls


@pytest.mark.parametrize(
    "arguments", [[], ["--help"], ["--version"], ["train", "--help"], ["sweep", "--help-config"], ["trian"]]
)
def test_help_needs_no_heavy_library(arguments):
    # Under a second is what the README promises; importing any of these alone can take longer than that.
    script = (
        "import sys\nfrom fedrsclip_jax import cli\n"
        "try:\n    cli.main(sys.argv[1:])\nexcept SystemExit:\n    pass\n"
        "heavy = {'jax', 'numpy', 'transformers', 'flax', 'rich', 'PIL', 'ml_collections'} & set(sys.modules)\n"
        "print('heavy:', sorted(heavy))"
    )
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("heavy: []\n")


def test_help_lists_the_verbs(capsys):
    assert cli.main([]) == 0
    without = capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        cli.main(["--help"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == without
    assert {"train", "sweep", "evaluate", "export", "pretrain"} <= set(VERBS)
    assert "--config.KEY=VALUE" in without


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_an_example_that_it_takes(verb, capsys, spoken):
    with pytest.raises(SystemExit) as ended:
        cli.main([verb, "--help"])
    assert ended.value.code == 0
    examples = [line for line in capsys.readouterr().out.splitlines() if line.startswith("example: ")]
    assert examples
    for example in examples:
        assert example.startswith(f"example: fedrsclip {verb} ")
        assert cli.main(shlex.split(example.removeprefix("example: fedrsclip "))) == 0
    assert [call[0] for call in spoken] == [verb] * len(examples)


@pytest.mark.parametrize("verb", CONFIGURED)
def test_every_key_is_explained_with_default_and_limits(verb, capsys, spoken):
    with pytest.raises(SystemExit) as ended:
        cli.main([verb, "--help-config"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert all(len(line) <= 80 for line in text.splitlines())
    assert text.isascii(), "it is to be read in any terminal"
    read = " ".join(text.split())
    for name, kind, field in configuration.keys(CONFIGURED[verb]):
        meaning = field.metadata["meaning"]
        assert len(meaning) >= 10, f"{name} says too little: {meaning!r}"
        assert read.count(f" {name} = ") == 1
        (after,) = re.findall(rf"^  {re.escape(name)} = (.*(?:\n      .*)+)", text, re.MULTILINE)
        after = " ".join(after.split())
        assert meaning in after
        if field.default not in ("", ()):
            assert after.lower().startswith(f"{field.default} (".lower())
        assert all(choice in after for choice in field.metadata["among"])
        if kind in (int, float):
            for limit in (field.metadata[name] for name in ("low", "above", "high")):
                assert math.isinf(limit) or f"{limit:.10g}" in after
    assert ("sweep.grid.KEY" in text) == (verb == "sweep")
    assert not spoken


def test_keys_with_equals_sign_or_space(spoken):
    words = ["train", "--config.rounds=3", "--config.local.epochs", "2", "--quiet", "--config.backbone=a=b"]
    assert cli.main(words) == 0
    _, known, overrides = spoken[0]
    assert overrides == [("rounds", "3"), ("local.epochs", "2"), ("backbone", "a=b")]
    assert known.quiet
    assert known.config is None
    assert known.workdir is None


def test_keys_do_not_hide_the_flag_that_they_begin_with(spoken):
    assert cli.main(["train", "--config.rounds=3", "--config=mine.py:fast", "--workdir", "there"]) == 0
    _, known, overrides = spoken[0]
    assert known.config == "mine.py:fast"
    assert str(known.workdir) == "there"
    assert overrides == [("rounds", "3")]


def test_home_is_found_behind_an_equals_sign(spoken, monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    assert cli.main(["train", "--workdir=~/run"]) == 0
    assert str(spoken[0][1].workdir) == "/home/somebody/run"


def test_values_may_be_empty_or_negative(spoken):
    assert cli.main(["train", "--config.baselines=", "--config.partition.alpha", "-1"]) == 0
    assert spoken[0][2] == [("baselines", ""), ("partition.alpha", "-1")]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["trian"], ("'trian'", "train")),
        (["train", "--confg=x"], ("'--confg=x'", "did you mean --config?", "--config.KEY=VALUE")),
        (["predict", "a.png", "--workdir=x", "--topk=many"], ("'--topk=many'", "predict takes", "--client", "--bands")),
        (["predict", "a.png", "--workdir=x", "--outptu=x"], ("'--outptu=x'; did you mean --output?\n",)),
        (["train", "--work=x"], ("'--work=x'",)),  # no abbreviations: they change meaning when a flag is added
        (["train", "extra"], ("'extra'",)),
        (["train", "--workdir"], ("--workdir", "expected one argument", "fedrsclip train --help")),
        (["train", "--config.rounds"], ("--config.rounds=VALUE",)),
        (["train", "--config.rounds", "--quiet=1"], ("--quiet",)),
        (["train", "--config.rounds", "--config.seed=1"], ("--config.rounds=VALUE",)),
        (["evaluate"], ("--workdir",)),
        (["pretrain"], ("--config",)),
    ],
)
def test_wrong_arguments_get_one_line(arguments, words, capsys, spoken):
    assert cli.main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("fedrsclip: ")
    assert err.count("\n") == 1
    for word in words:
        assert word in err
    assert not spoken


def test_an_error_of_several_lines_is_put_into_one(monkeypatch, capsys):
    def fail(known, overrides):
        raise InputError("first\nsecond")

    monkeypatch.setattr(actions, "train", fail)
    assert cli.main(["train"]) == 2
    assert capsys.readouterr().err == "fedrsclip: first second\n"


def test_interruption_has_its_own_code(monkeypatch, capsys):
    def interrupt(known, overrides):
        raise KeyboardInterrupt

    monkeypatch.setattr(actions, "train", interrupt)
    assert cli.main(["train"]) == 130
    assert capsys.readouterr().err == "fedrsclip: interrupted\n"


def test_a_reader_that_leaves_early_is_no_error():
    """As `| head -1` does."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "fedrsclip_jax.cli", "train", "--help-config"]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert done.stderr == ""
    assert done.returncode == 0


@pytest.mark.parametrize(
    ("number", "file", "code", "said"),
    [
        (errno.ENOENT, "photos/river/1.png", 2, "give one that can be read"),
        (errno.ENOENT, "more/lake/1.png", 2, "give one that can be read"),
        (errno.EISDIR, "out.png", 2, "give one that can be read"),
        (errno.EACCES, "runs/a/summary.json", 2, "give one that can be read"),
        (errno.ENOSPC, "runs/a/summary.json", 2, "make room"),
        (errno.ENOENT, "runs/a/summary.json", 1, "no fault of yours unless it was moved"),
        (errno.EISDIR, "runs/a/comparison.json", 1, "no fault of yours unless it was moved"),
        (errno.ENOENT, "elsewhere/features.npy", 1, "no fault of yours unless it was moved"),
        (errno.EACCES, str(Path(cli.__file__).parent / "assets" / "tiny_clip" / "vocab.json"), 1, "install it again"),
        (errno.ENOENT, np.__file__, 1, "install it again"),
    ],
)
def test_a_file_of_ours_is_no_bad_input(monkeypatch, tmp_path, number, file, code, said):
    monkeypatch.chdir(tmp_path)
    words = ["train", "--config.data.source=folder:photos,folder:more", "--output=out.png", "--workdir", "runs/a"]
    message, found = cli.said_of_file(OSError(number, os.strerror(number), str(Path(file).absolute())), words)
    assert (found, said in message) == (code, True), message
    assert os.strerror(number) in message
    assert "\n" not in message


def test_the_other_file_of_a_renaming_counts(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    error = OSError(errno.EISDIR, "Is a directory", str(tmp_path / ".partial.x"), None, str(tmp_path / "out.png"))
    assert cli.said_of_file(error, ["data", "--output=out.png"])[1] == 2
