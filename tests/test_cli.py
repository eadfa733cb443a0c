"""The command line's surface: help that is there at once, verbs, flags and how keys are written."""

import subprocess
import sys

import pytest

from fedrsclip_jax import cli
from fedrsclip_jax.errors import InputError

VERBS = ("train", "evaluate", "predict", "pretrain")


@pytest.fixture
def spoken(monkeypatch):
    """What a verb would be run with, instead of running it."""
    calls = []
    for verb in VERBS:
        monkeypatch.setattr(cli, f"_{verb}", lambda known, overrides, verb=verb: calls.append((verb, known, overrides)))
    return calls


@pytest.mark.parametrize("arguments", [[], ["--help"], ["--version"], ["train", "--help"], ["trian"]])
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
    assert all(f"\n    {verb} " in without for verb in VERBS)
    assert "--config.KEY=VALUE" in without


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_an_example_that_it_takes(verb, capsys, spoken):
    with pytest.raises(SystemExit) as ended:
        cli.main([verb, "--help"])
    assert ended.value.code == 0
    (example,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("example: "))
    assert example.startswith(f"example: fedrsclip {verb} --")
    assert cli.main(example.removeprefix("example: fedrsclip ").split()) == 0
    assert [call[0] for call in spoken] == [verb]


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


def test_values_may_be_empty_or_negative(spoken):
    assert cli.main(["train", "--config.baselines=", "--config.partition.alpha", "-1"]) == 0
    assert spoken[0][2] == [("baselines", ""), ("partition.alpha", "-1")]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["trian"], ("'trian'", "train")),
        (["train", "--confg=x"], ("'--confg=x'", "--config.KEY=VALUE")),
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

    monkeypatch.setattr(cli, "_train", fail)
    assert cli.main(["train"]) == 2
    assert capsys.readouterr().err == "fedrsclip: first second\n"


def test_interruption_has_its_own_code(monkeypatch, capsys):
    def interrupt(known, overrides):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_train", interrupt)
    assert cli.main(["train"]) == 130
    assert capsys.readouterr().err == "fedrsclip: interrupted\n"
