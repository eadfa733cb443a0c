"""`fedrsclip evaluate`: any checkpoint of a run, and test images for a run that chose on validation images."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from fedrsclip_jax import cli
from fedrsclip_jax.checkpoint import Checkpoints
from fedrsclip_jax.config import EvalConfig
from fedrsclip_jax.data.partition import Partition
from fedrsclip_jax.export.chosen import logits_of
from fedrsclip_jax.finished import open_run, restore
from fedrsclip_jax.progress import Progress
from fedrsclip_jax.rescore import rescore
from fedrsclip_jax.task import divide, encode_images, split
from tests import runs
from tests.conftest import REPOSITORY
from tests.end_to_end.conftest import SMALL

ROUNDS = 3


@pytest.fixture(scope="module")
def chosen(tiny_folder, tmp_path_factory) -> Path:
    """A run that chose on validation images, with a checkpoint of every round and steps that are too long."""
    folder = tmp_path_factory.mktemp("runs") / "chosen"
    words = ("train", "--quiet", f"--config={REPOSITORY / 'configs' / 'quickstart.py'}", *SMALL)
    more = (f"--config.rounds={ROUNDS}", "--config.checkpoint.every=1", f"--config.checkpoint.keep={ROUNDS}")
    more += ("--config.eval.split=validation", "--config.eval.every=1", "--config.local.learning_rate=3")
    assert cli.main([*words, *more, f"--config.backbone={tiny_folder}", f"--workdir={folder}"]) == 0
    return folder


def test_the_round_that_validation_chose_is_scored_on_images_never_seen(chosen, capsys):
    run, kept = open_run(chosen, []), Partition.load(chosen / "partition.npz")
    best = json.loads((chosen / "summary.json").read_text())["best_round"]
    tested = dataclasses.replace(run.config, eval=EvalConfig(split="test"))
    train, tests = split(tested, run.task.source)
    assert not {*tests} & {*kept.train_order, *kept.test_order}
    assert {*train} == {*kept.train_order, *kept.test_order}

    features = encode_images(run.config, run.task, Progress(quiet=True)).plain

    def by_hand(number: int, images: np.ndarray) -> float:
        """Accuracy of the federation's model after a round."""
        restored = restore(run, str(number))
        logits = logits_of(restored.module(0), True, restored.backbone, features[images])
        return float(np.mean(logits.argmax(axis=1) == run.task.labels[images]))

    def pooled(**how: str) -> tuple[int, str, float]:
        result = rescore(chosen, [], Progress(quiet=True), **how)
        return result["round"], result["split"], result["rows"]["fedrsclip"]["pooled"]["mean"]

    assert pooled() == (ROUNDS, "validation", pytest.approx(by_hand(ROUNDS, kept.test_order)))
    assert pooled(checkpoint="best", split="test") == (best, "test", pytest.approx(by_hand(best, tests)))
    for number in range(1, ROUNDS + 1):
        said = pooled(checkpoint=str(number), split="test")
        assert said == (number, "test", pytest.approx(by_hand(number, tests)))

    capsys.readouterr()
    assert cli.main(["evaluate", "--quiet", f"--workdir={chosen}", "--checkpoint=best", "--split=test"]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"after round {best}\n")
    assert f"{100 * by_hand(best, tests):.1f}" in said


def test_which_run_of_a_comparison_is_scored_is_said(chosen, tmp_path, capsys):
    shutil.copytree(chosen, tmp_path / "several")
    for name in ("fedrsclip-seed10", "fedrsclip-seed2", "unfinished-seed0"):
        (tmp_path / "several" / "compared" / name).mkdir(parents=True)
        if name.startswith("fedrsclip"):
            shutil.copy(chosen / "summary.json", tmp_path / "several" / "compared" / name)
    assert cli.main(["evaluate", "--quiet", f"--workdir={tmp_path / 'several'}"]) == 0
    first, second = capsys.readouterr().out.splitlines()[:2]
    assert first == f"after round {ROUNDS}"
    others = "compared/fedrsclip-seed2, compared/fedrsclip-seed10"
    where = f"are in {tmp_path / 'several'}: {others}"
    assert second == f"this is FedRSCLIP, seed 0; the other runs of its comparison {where}"


@pytest.mark.parametrize(
    ("flags", "of_run", "words"),
    [
        (["--split=all"], {}, ("--split=all", "test or validation")),
        (["--split=validation"], {}, ("--split=validation", "has trained on its validation images")),
        (["--checkpoint=best"], {}, ("--checkpoint=best", "eval.split = validation")),
        (["--checkpoint=5"], {}, ("5", "7")),
        (
            ["--split=test"],
            {"partition.kind": "given", "eval.split": "validation"},
            ("--split=test", "given for validation images"),
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_refused(refused, here, tiny_folder, flags, of_run, words):
    runs.finished(here / "run", tiny_folder, **of_run)
    said = refused("evaluate", "--quiet", "--workdir=run", *flags)
    assert all(word in said for word in words), said


def test_clients_that_never_answered_have_not_taken_part(tiny_folder, tmp_path, monkeypatch):
    """Checkpoints of older versions hold them."""
    flags = {"partition.kind": "virtual", "partition.examples_per_client": 3, "cohort": 2, "eval.clients": 3}
    workdir = runs.finished(tmp_path / "run", tiny_folder, silent=(1,), **flags)
    run = open_run(workdir, [])
    divide(run.config, run.task).save(workdir / "partition.npz")
    with Checkpoints(workdir) as checkpoints:
        assert list(checkpoints.restore().population["ids"]) == [0, 1, 2]
    scored = []
    monkeypatch.setattr("fedrsclip_jax.rescore.score_beyond", lambda federation, *_: scored.append(federation) or {})
    rescore(workdir, [], Progress(quiet=True))
    assert scored[0].population.took_part.tolist() == [0, 2]
