"""`fedrsclip train --dry-run`: what it foretells is what the run does, and nothing is written by it."""

import dataclasses
import json
import re

import pytest

from fedrsclip_jax import cli, forecast
from fedrsclip_jax import config as configuration
from fedrsclip_jax.progress import Progress
from tests.end_to_end.conftest import listing

UNEVEN = (
    "--config.partition.clients=5",
    "--config.data.scenes.count=128",
    "--config.cohort=3",
    "--config.dropout=0.3",
    "--config.local.batch_size=3",
    "--config.rounds=4",
    "--config.eval.every=3",
    "--config.seeds=2",
    "--config.spmd.devices=2",
)


@pytest.mark.long
def test_the_run_does_what_was_foretold(here, federation, feature_cache, capsys):
    words = [*federation, *UNEVEN]
    keys = [word.removeprefix("--config.").split("=", 1) for word in words if word.startswith("--config.")]
    config = configuration.resolve(
        configuration.Config,
        configuration.load_file(str(configuration.default_file())),
        [(name, value) for name, value in keys],
    )
    cached = listing(feature_cache)
    before = forecast.forecast(config, here / "out", Progress(quiet=True))
    assert listing(here) == []
    assert listing(feature_cache) == cached
    assert before.to_encode == 128
    assert before.done == [0, 0]
    assert all(seconds > 0 for seconds in before.seconds.values())

    assert cli.main(["train", *words]) == 0
    runs = (here / "out", here / "out" / "compared" / "fedrsclip-seed1")
    summaries = [json.loads((run / "summary.json").read_text()) for run in runs]
    assert [run for _, run in before.plan.runs] == [here / "out", here / "out" / "compared" / "fedrsclip-seed1"]
    trial = before.trials["fedrsclip"]
    for count, summary in zip(before.counts, summaries, strict=True):
        assert count.steps == summary["local_steps"] > 0
        assert count.up == summary["bytes_sent"]
        assert 0 < count.up < count.down == 4 * 3 * trial.bytes, "some that were drawn did not answer"
        assert trial.bytes == summary["uplink_bytes_per_client_round"]
        assert (trial.devices, trial.lanes) == (summary["devices"], summary["clients_per_device"])
        assert count.wasted == pytest.approx(summary["wasted_lane_share"])

    # Once finished, nothing is left; half done, half of the rounds and the evaluations of that half are.
    over, half = (dataclasses.replace(before, done=done, to_encode=0) for done in ([4, 4], [4, 2]))
    assert sum(over.seconds.values()) == 0
    assert half.seconds == {
        "encode": 0.0,
        "compile": trial.compile,
        "train": pytest.approx(before.counts[1].steps / 2 * trial.step),
        "evaluate": pytest.approx(trial.evaluation + trial.last_evaluation),
    }

    # The same command, to go further: the features are there, and the earlier rounds are not run again.
    kept, cached = listing(here), listing(feature_cache)
    capsys.readouterr()
    assert cli.main(["train", *words, "--dry-run", "--config.rounds=8"]) == 0
    shown = capsys.readouterr().out
    assert (listing(here), listing(feature_cache)) == (kept, cached)
    tables = [line for line in shown.splitlines() if not line.startswith("CLIP reads ")]  # which names all classes
    assert all(len(line) <= 80 for line in tables)
    for words in (
        ("data set", "scenes, 16 classes, 128 images"),
        ("runs", "2: FedRSCLIP; seeds 2; 2 to go on with"),
        ("cohort", "3 clients a round, of whom 30 % fail to answer"),
        ("FedRSCLIP", f"{trial.bytes} B", "KiB"),
        ("disk: features", "in the cache"),
        ("encode", "0 s"),
        ("nothing was written; the results would be in out",),
    ):
        assert any(all(word in line for word in words) for line in shown.splitlines()), words


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--config.cohort=9",), ("cohort = 9", "partition.clients = 2")),
        (("--config.method.name=fedrsklip",), ("method.name", "fedrsclip")),
        (("--config.spmd.devices=99",), ("spmd.devices = 99",)),
        (("--config.init_from=coop:nowhere",), ("init_from", "nowhere")),
        (("--config.local.batch_size=0",), ("local.batch_size", "at least 1")),
        (("--workdir=taken",), ("--workdir: taken", "not an empty folder")),
    ],
    ids=lambda value: value[0],
)
def test_bad_input_is_refused_as_by_the_run_itself(refused, federation, here, flags, words):
    (here / "taken").mkdir()
    (here / "taken" / "thesis.txt").write_text("years of work")
    said = [refused("train", *federation, *flags, *dry) for dry in ((), ("--dry-run",))]
    assert said[0] == said[1]
    for word in words:
        assert word in said[0]


@pytest.mark.long
def test_a_sweep_is_foretold_by_its_programs(here, federation, capsys):
    words = [word for word in federation if not word.startswith(("--config.seeds", "--config.baselines", "--quiet"))]
    file = f"--config={configuration.default_file()}"
    grid = ("--config.sweep.grid.method.pacl_weight=0,1", "--config.sweep.grid.method.context_tokens=2,4")
    assert cli.main(["sweep", file, *words, *grid, "--config.sweep.seeds=2", "--dry-run"]) == 0
    out, err = capsys.readouterr()
    assert listing(here) == []
    assert "a sweep leaves out baselines = promptfl,local_coop and seeds = 3" in err
    assert re.search(r"runs +8: ", out)
    assert "context_tokens=4" in out
    assert "the results would be in out" in out
