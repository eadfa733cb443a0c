"""Clients that never train and classes that are never seen, from the command line to the report."""

from pathlib import Path

import numpy as np
import pytest

from fedrsclip_jax import cli, formats
from fedrsclip_jax import config as configuration
from fedrsclip_jax.config import Config
from fedrsclip_jax.data.split import stratified_split
from fedrsclip_jax.export.chosen import logits_of
from fedrsclip_jax.finished import open_run, restore
from fedrsclip_jax.progress import Progress
from fedrsclip_jax.task import encode_images, load_task
from tests.end_to_end.conftest import check, listing
from tests.end_to_end.test_resume import SMALL, left

BOTH = ("--config.partition.held_out=2", "--config.eval.base_to_new=True")
BASE = 8  # of the scenes' 16 classes


def words(verb: str, clip: Path, *flags: str) -> list[str]:
    return [verb, "--quiet", *SMALL, f"--config.backbone={clip}", "--config.rounds=2", "--config.eval.every=1", *flags]


def shares(logits: np.ndarray, labels: np.ndarray) -> float:
    return float(np.mean(logits.argmax(axis=1) == labels))


@pytest.mark.long
def test_a_run_with_both_from_training_to_the_report(tiny_folder, tmp_path, capfd):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert cli.main(words("train", tiny_folder, *BOTH, "--report", f"--workdir={whole}")) == 0
    said = capfd.readouterr().out
    for title in ("clients that never trained", "base classes, new classes, harmonic mean"):
        assert title in said

    for rounds in ("1", "2"):
        again = words("train", tiny_folder, *BOTH, f"--workdir={parts}", f"--config.rounds={rounds}")
        assert cli.main(again) == 0
    summary = left(whole)
    assert left(parts) == summary

    capfd.readouterr()
    assert cli.main(["evaluate", "--quiet", f"--workdir={whole}"]) == 0
    round_, *shown = capfd.readouterr().out.splitlines()
    assert round_ == "after round 2"
    assert shown == said.splitlines()[:-1], "all but where the results are"
    page = (whole / "report.html").read_text()
    assert "2 clients that never trained" in page
    assert "8 base classes" in page

    check_unseen(whole, summary)
    check_new_classes(tiny_folder, whole, summary)


def check_unseen(folder: Path, summary: dict) -> None:
    """By the shared prompt of the checkpoint, client by client."""
    assert (summary["num_clients"], len(summary["personalised"]["per_client"])) == (4, 4)
    run = open_run(folder, [])
    restored, features = restore(run), encode_images(run.config, run.task, Progress(quiet=True))
    logits = logits_of(restored.module(0), True, restored.backbone, features.plain)
    kept = np.load(folder / "partition.npz")
    images = np.split(kept["unseen_test_order"], kept["unseen_test_offsets"][1:-1])
    expected = [shares(logits[own], run.task.labels[own]) for own in images]
    assert summary["unseen"]["global"]["per_client"] == pytest.approx(expected)
    assert summary["unseen"]["global"]["mean"] == pytest.approx(np.mean(expected))
    zero = features.plain @ np.asarray(restored.backbone.zero_shot).T
    expected = [shares(zero[own], run.task.labels[own]) for own in images]
    assert summary["unseen"]["zero_shot"]["per_client"] == pytest.approx(expected)
    trained = np.concatenate([kept["train_order"], kept["test_order"]])
    assert not np.isin(kept["unseen_train_order"], trained).any()
    assert summary["global"]["accuracy"] == pytest.approx(
        shares(logits[kept["test_order"]], run.task.labels[kept["test_order"]])
    )


def check_new_classes(clip: Path, folder: Path, summary: dict) -> None:
    """By the checkpoint's prompts in front of the other names, on images of a source that knows of no halves."""
    plain = configuration.resolve(Config, formats.read(folder / "config.json"))
    flags = [("backbone", str(clip)), ("eval.base_to_new", "False")]
    config = configuration.resolve(Config, configuration.to_dict(plain), flags)
    full = load_task(config)
    features = encode_images(config, full, Progress(quiet=True)).plain
    names = list(full.source.class_names)
    scores = summary["base_to_new"]
    assert (scores["base_classes"], scores["new_classes"]) == (names[:BASE], names[BASE:])
    assert (summary["class_names"], summary["num_classes"]) == (names[:BASE], BASE)

    moved = open_run(folder, [("data.source", "folder:nowhere")], images=False)
    assert list(moved.task.source.class_names) == names[:BASE], "told by what the run has kept"
    run = open_run(folder, [])
    restored = restore(run)
    theirs = np.flatnonzero(full.labels >= BASE)
    digests = [full.source.digests[i] for i in theirs]
    _, test = stratified_split(full.labels[theirs] - BASE, digests, 0.2, 0, np.ones(len(theirs), bool))
    images, labels = features[theirs[test]], full.labels[theirs[test]]
    backbone = full.backbone(config.method)  # of all names; only the logits of the new ones count

    def accuracy(module, of_federation: bool) -> float:
        return shares(logits_of(module, of_federation, backbone, images)[:, BASE:], labels - BASE)

    assert scores["new"] == pytest.approx(accuracy(restored.module(0), True))
    assert scores["base"] == summary["global"]["accuracy"]
    own = [accuracy(restored.module(client), False) for client in range(4)]
    assert scores["personal"]["new"] == pytest.approx(np.mean(own))
    assert scores["personal"]["base"] == summary["personal_on_pooled"]["mean"]
    zero = images @ np.asarray(backbone.zero_shot).T
    assert scores["zero_shot"]["new"] == pytest.approx(shares(zero[:, BASE:], labels - BASE))
    assert scores["zero_shot"]["base"] == summary["zero_shot"]["accuracy"]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--config.method.name=linear_probe", BOTH[1]), "method.name: linear_probe has variables of each class"),
        (("--config.baselines=linear_probe", BOTH[1]), "baselines: linear_probe has variables of each class"),
        (
            ("--config.partition.kind=virtual", "--config.cohort=2", BOTH[0]),
            "partition.held_out = 2: clients of partition.kind = virtual share images",
        ),
        (("--config.partition.held_out=100",), "of these clients 100 are partition.held_out"),
        (("--config.partition.held_out=-1",), "partition.held_out"),
        ((BOTH[1], "--config.eval.finetune_epochs=1"), "eval.base_to_new = True with eval.finetune_epochs = 1"),
    ],
    ids=["method", "baseline", "virtual", "too many", "negative", "fine-tuned"],
)
def test_what_cannot_be_scored_so_is_refused_in_a_line(tiny_folder, tmp_path, capfd, feature_cache, flags, said):
    before = listing(feature_cache)
    code = cli.main(words("train", tiny_folder, *flags, f"--workdir={tmp_path / 'run'}"))
    out, err = capfd.readouterr()
    check(code, out, err)
    assert said in err
    assert not (tmp_path / "run").exists()
    assert listing(feature_cache) == before, "no image was encoded"
