"""A run that is given more rounds later has the lines of one that had them from the start, whoever owns the images."""

import json

import pytest

from fedrsclip_jax import cli, experiment
from fedrsclip_jax.federated.cohort import draw_cohort

KINDS = {
    "iid": (),
    "dirichlet": ("--config.cohort=1", "--config.dropout=0.3"),
    "classes": ("--config.partition.classes_per_client=8", "--config.eval.clients=1"),
    "domain": ("--config.partition.clients=6",),
    "virtual": (
        "--config.partition.clients=40",
        "--config.partition.examples_per_client=8",
        "--config.cohort=6",
        "--config.eval.clients=8",
    ),
}
SMALL = (
    "--quiet",
    "--no-report",
    "--config=none.py",
    "--config.data.scenes.count=96",
    "--config.data.image_size=16",
    "--config.partition.clients=2",
    "--config.partition.min_examples=1",
    "--config.method.name=local_coop",  # whose scores hang on which clients have trained
    "--config.local.learning_rate=0.5",
    "--config.eval.every=1",
    "--config.spmd.devices=1",
)


@pytest.fixture
def train(tiny_folder, here):
    """Trains in a folder; gives its lines as they are written."""
    (here / "none.py").write_text("def get_config():\n    return {}\n")

    def run(name: str, rounds: int, *flags: str) -> list[str]:
        words = ("train", *SMALL, *flags, f"--config.backbone={tiny_folder}", f"--config.rounds={rounds}")
        assert cli.main([*words, f"--workdir={name}"]) == 0
        return (here / name / "metrics.jsonl").read_text().splitlines()

    return run


def told(folder, name: str) -> dict:
    summary = json.loads((folder / name / "summary.json").read_text())
    return {key: summary[key] for key in ("state_sha256", "personalised", "zero_shot", "scored", "last_evaluations")}


@pytest.mark.parametrize("kind", KINDS)
def test_more_rounds_change_no_line(train, here, kind):
    flags = (f"--config.partition.kind={kind}", *KINDS[kind])
    whole = train("whole", 2, *flags)
    assert train("parts", 1, *flags) == whole[:1]
    assert train("parts", 2, *flags) == whole
    assert told(here, "parts") == told(here, "whole")
    lines = [json.loads(line) for line in whole]
    of = {"virtual": 40, "domain": 6}.get(kind, 2)
    assert {(line["scored"]["clients"], line["scored"]["of"]) for line in lines} == {
        ({"virtual": 8, "classes": 1}.get(kind, of), of)
    }
    if kind == "virtual":
        cohorts = [draw_cohort(0, number, 40, 6) for number in (1, 2)]
        so_far = [set(cohorts[0].tolist()), {*cohorts[0].tolist(), *cohorts[1].tolist()}]
        sample = set(told(here, "whole")["personalised"]["clients"])
        assert [line["scored"]["took_part"] for line in lines] == [len(sample & some) / 8 for some in so_far]
        counts = [line["participants"]["clients"] for line in lines]
        assert counts == [6, 8], "of those that took part, at most as many as of the population"


def test_lines_of_an_older_version_stay_and_are_not_compared_with_later_ones(train, here, monkeypatch):
    """These scored the virtual clients that any round of the run would draw, and did not say so."""
    real = experiment.brief

    def brief(scores):
        line = {part: value for part, value in real(scores).items() if part in ("global", "personalised")}
        return line | {"personalised": line["personalised"] | {"mean": 0.99}}

    flags = ("--config.partition.kind=virtual", *KINDS["virtual"])
    with monkeypatch.context() as patch:
        patch.setattr(experiment, "brief", brief)
        before = train("run", 1, *flags, "--config.eval.split=validation")
    kept, left = ("summary.json", "predictions.csv", "evidence.npz"), []
    score = experiment.score_zero_shot

    def at_the_start(*given):
        left.extend(name for name in kept if (here / "run" / name).exists())
        return score(*given)

    assert all((here / "run" / name).exists() for name in kept)
    with monkeypatch.context() as patch:
        patch.setattr(experiment, "score_zero_shot", at_the_start)
        after = train("run", 2, *flags, "--config.eval.split=validation")
    assert left == [], "what is of fewer rounds goes"
    assert after[:1] == before
    assert [("scored" in json.loads(line)) for line in after] == [False, True]
    summary = json.loads((here / "run" / "summary.json").read_text())
    assert summary["best_round"] == 2
    assert [path.name for path in (here / "run" / "best").iterdir()] == ["2"]
    assert summary["last_evaluations"]["personalised"]["evaluations"] == 1
