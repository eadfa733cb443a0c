"""Format numbers, and folders of earlier versions: read, resumed, evaluated, exported and reported on."""

import csv
import dataclasses
import html
import importlib.metadata
import json
import platform
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import jax
import numpy as np
import pytest

from fedrsclip_jax import __version__, cli, config, formats, workdir
from fedrsclip_jax.checkpoint import Checkpoints
from fedrsclip_jax.config import Config
from fedrsclip_jax.errors import InputError
from fedrsclip_jax.evidence import Evidence
from fedrsclip_jax.finished import clients_of, open_run
from fedrsclip_jax.formats import FORMAT, Step, upgrade
from fedrsclip_jax.ledger import read_lines
from fedrsclip_jax.report.page import write_report
from fedrsclip_jax.task import divide

FIXTURES = Path(__file__).parent / "fixtures"
SEED_1 = Path("run") / "compared" / "fedrsclip-seed1"
PROMPTS_OFF = 1e-4  # another processor, other lanes: three rounds add up what each rounds otherwise


@pytest.fixture(scope="module")
def resumed(tmp_path_factory):
    """The first format's folder after one more round by this version; for reading only. Tests copy what they change."""
    place = tmp_path_factory.mktemp("formats") / "first_format"
    shutil.copytree(FIXTURES / "first_format", place)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        assert cli.main(["train", "--workdir=run", "--config.rounds=3", "--quiet"]) == 0
    return place


@pytest.fixture
def first(tmp_path, monkeypatch) -> Path:
    """The first format's folder as it was written, which is the current one."""
    shutil.copytree(FIXTURES / "first_format", tmp_path / "first_format")
    monkeypatch.chdir(tmp_path / "first_format")
    return tmp_path / "first_format"


def records(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*.json") if "checkpoints" not in path.parts)


def said(capfd, *words: str) -> str:
    """What the command line refuses with: one line."""
    capfd.readouterr()
    assert cli.main([*words, "--quiet"]) == 2
    err = capfd.readouterr().err
    assert err.startswith("fedrsclip: ")
    assert err.count("\n") == 1, err
    return err


@pytest.mark.long
def test_a_folder_of_the_first_format_is_resumed(resumed):
    """It goes on with its own configuration, seeds and split, to the prompts that the version had that wrote it."""
    with np.load(FIXTURES / "first_format" / "after_round_3.npz") as expected:
        for seed, folder in enumerate((resumed / "run", resumed / SEED_1)):
            with Checkpoints(folder) as checkpoints:
                saved = checkpoints.restore()
            assert saved.round == 3
            np.testing.assert_array_equal(saved.population["ids"], expected[f"drawn{seed}"])
            np.testing.assert_allclose(saved.shared[0], expected[f"shared{seed}"], atol=PROMPTS_OFF)
            np.testing.assert_allclose(saved.population["leaves"]["0"], expected[f"private{seed}"], atol=PROMPTS_OFF)
            lines = read_lines(folder)
            assert [line["round"] for line in lines] == [1, 2, 3]
            assert lines[-1]["loss"] == pytest.approx(float(expected[f"loss{seed}"]), abs=1e-4)


@pytest.mark.long
def test_what_is_written_is_of_the_present_format(resumed):
    written = [json.loads(path.read_text()) for path in records(resumed / "run")]
    assert len(written) >= 7, "configuration, identity and summary of two runs, and the comparison"
    assert {(record["format"], record["version"]) for record in written} == {(FORMAT, __version__)}
    for folder in (resumed / "run", resumed / SEED_1):
        raw = (folder / "metrics.jsonl").read_text().splitlines()
        assert {json.loads(line)["format"] for line in raw} == {FORMAT}
        assert "format" not in read_lines(folder)[0], "which a chart would take for a loss"
        for name in ("partition.npz", "evidence.npz"):
            with np.load(folder / name) as arrays:
                assert int(arrays["format"]) == FORMAT
        record = json.loads(next((folder / "checkpoints").glob("*/record/metadata")).read_text())["record"]
        assert (record["format"], record["version"]) == (FORMAT, __version__)


@pytest.mark.long
def test_a_run_says_how_it_was_computed(resumed):
    for folder in (resumed / "run", resumed / SEED_1):
        made = json.loads((folder / "summary.json").read_text())["provenance"]
        for package in ("jax", "flax"):
            assert made[package] == importlib.metadata.version(package)
        assert (made["fedrsclip_jax"], made["python"]) == (__version__, platform.python_version())
        assert made["host"] == platform.node()
        assert (made["platform"], made["device"]) == ("cpu", jax.devices()[0].device_kind)
        assert datetime.now(UTC) - datetime.fromisoformat(made["date"]) < timedelta(hours=1)
        assert made["command"] == "fedrsclip train --workdir=run --config.rounds=3 --quiet"
        assert made["after_round"] == 2
        assert made["earlier"] == [{"after_round": 0, "fedrsclip_jax": "0.1.0 or earlier"}]
        page = (folder / "report.html").read_text()
        for word in ("How it was computed", made["command"], made["date"], "0.1.0 or earlier", made["device"]):
            assert word in page


@pytest.mark.long
def test_predictions_by_image_are_kept(resumed):
    for folder in (resumed / "run", resumed / SEED_1):
        with (folder / "predictions.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        summary = json.loads((folder / "summary.json").read_text())
        with np.load(folder / "partition.npz") as kept:
            assert len(rows) == len(kept["test_order"]) == 6
        for row in rows:
            assert (resumed / row["path"]).is_file()
            assert Path(row["path"]).parent.name == row["truth"]
            assert row["guess"] in summary["class_names"]
            assert 1 / 3 <= float(row["probability"]) <= 1
            assert row["model"] == "federation"
        right = [row["truth"] == row["guess"] for row in rows]
        assert np.mean(right) == pytest.approx(summary["global"]["accuracy"])


@pytest.mark.parametrize("folder", ["run", str(SEED_1)])
def test_a_folder_of_the_first_format_is_evaluated(first, folder, capfd):
    summary = json.loads((first / folder / "summary.json").read_text())
    assert cli.main(["evaluate", f"--workdir={folder}", "--quiet"]) == 0
    out = capfd.readouterr().out
    assert f" {100 * summary['personalised']['mean']:.1f} " in out
    assert f" {100 * summary['global']['accuracy']:.1f} " in out


def test_a_folder_of_the_first_format_is_exported_and_asked(first, capfd):
    words = ("--workdir=run", "--client=1", "--quiet")
    assert cli.main(["export", *words, "--format=safetensors", "--output=out"]) == 0
    certificate = json.loads((first / "out" / "certificate.json").read_text())
    assert (certificate["run"]["round"], certificate["run"]["client"]) == (2, 1)
    assert cli.main(["predict", *words, "--output=answers.csv", "photographs/river"]) == 0
    assert (first / "answers.csv").read_text().count("\n") == 1 + 8


def test_a_folder_of_the_first_format_is_reported_on(first):
    assert cli.main(["report", "--workdir=run"]) == 0
    page = (first / "run" / "report.html").read_text()
    assert "photographs" in page
    assert "mean ± standard deviation of 2 seeds" in page


# Newer ones


def test_a_newer_format_is_refused_in_a_line_that_names_both_versions(first, capfd):
    for name in ("config", "summary"):
        kept = (first / "run" / f"{name}.json").read_text()
        newer = {**json.loads(kept), "format": FORMAT + 1, "version": "9.9"}
        (first / "run" / f"{name}.json").write_text(json.dumps(newer))
        for verb in (["train"], ["evaluate"], ["report"], ["export", "--format=safetensors", "--output=out"]):
            if (name, verb) == ("config", ["report"]):
                continue  # it quotes the configuration as it stands
            err = said(capfd, *verb, "--workdir=run")
            assert all(word in err for word in (f"{name}.json", str(FORMAT + 1), "9.9", __version__, "install")), err
        (first / "run" / f"{name}.json").write_text(kept)


def test_newer_arrays_lines_and_checkpoints_are_refused(first, monkeypatch, refused):
    run = first / "run"
    for name, read in (("evidence.npz", Evidence.load), ("metrics.jsonl", read_lines)):
        with monkeypatch.context() as patch:
            patch.setattr(formats, "FORMAT", FORMAT + 1)
            if name == "metrics.jsonl":
                (run / name).write_text(json.dumps({"round": 1, "format": FORMAT + 1}) + "\n")
            else:
                found = Evidence.load(run)
                assert found is not None
                found.save(run)
        with refused(name, f"format {FORMAT + 1}", __version__):
            read(run)
    path = next((run / "checkpoints").glob("*/record/metadata"))
    written = json.loads(path.read_text())
    written["record"] |= {"format": FORMAT + 1, "version": "9.9"}
    path.write_text(json.dumps(written))
    with Checkpoints(run) as checkpoints, refused("checkpoint 2", "9.9", __version__, "install"):
        checkpoints.newest()
    assert not (run / "damaged").exists()


@pytest.mark.parametrize("number", [-1, "1", 1.0, None])
def test_a_number_that_is_none(number, refused):
    with refused("config.json", repr(number)):
        upgrade("config", {"format": number}, "config.json")


# Older ones


def test_keys_are_renamed_step_by_step_and_new_ones_get_what_they_meant():
    steps = (
        Step(renamed={"config": {"local.lr": "local.rate"}, "summary": {"accuracy": "global.accuracy"}}),
        Step(renamed={"config": {"local.rate": "local.learning_rate"}}, implied={"data.split_seed": -1}),
    )
    old = {"local": {"lr": 0.1}, "rounds": 3}
    new = {"local": {"learning_rate": 0.1}, "rounds": 3, "data": {"split_seed": -1}}
    assert upgrade("config", old, "", steps) == new
    assert old == {"local": {"lr": 0.1}, "rounds": 3}
    assert upgrade("config", {"local": {"rate": 0.1}, "rounds": 3, "format": 1}, "", steps) == new
    assert upgrade("config", {**new, "format": 2}, "", steps) == new
    assert upgrade("config", {"data": {"split_seed": 7}}, "", steps)["data"] == {"split_seed": 7}
    for kind in ("checkpoint", "comparison", "diverged", "study"):
        assert upgrade(kind, {"config": old}, "", steps) == {"config": new}
    assert upgrade("summary", {"accuracy": 0.5}, "", steps) == {"global": {"accuracy": 0.5}}
    row = {"runs": [{"summary": {"accuracy": 0.5}}, {"summary": None}]}
    first, second = upgrade("sweep", {"rows": [row]}, "", steps)["rows"][0]["runs"]
    assert first["summary"] == {"global": {"accuracy": 0.5}}
    assert second["summary"] is None
    assert upgrade("config", old, "", steps).version == "0.1.0 or earlier"


def test_the_table_leads_to_keys_that_there_are():
    known = {name for name, _, _ in config.keys(Config)}
    last: dict[str, str] = {}
    for step in formats.STEPS:
        renamed = step.renamed.get("config", {})
        last = {**{old: renamed.get(new, new) for old, new in last.items()}, **renamed}
        assert {renamed.get(key, key) for key in step.implied} <= known
    assert set(last.values()) <= known


def test_checkpoints_whose_sha256_left_the_record_out_are_read(first):
    """As those of the first days did."""
    folder = first / "run" / "checkpoints"
    with Checkpoints(first / "run") as checkpoints:
        before = checkpoints.restore()
    path = next(folder.glob("*/record/metadata"))
    written = json.loads(path.read_text())
    import fedrsclip_jax.checkpoint as module

    state = {"shared.000": before.shared[0]} | {"private.000": before.population["leaves"]["0"]}
    state |= {"ids": before.population["ids"], "drawn": np.asarray(len(before.population["ids"]))}
    written["sha256"] = module._digest(state, None)
    path.write_text(json.dumps(written))
    with Checkpoints(first / "run") as checkpoints:
        assert checkpoints.restore().record == before.record


# What a refusal says


def test_where_a_default_has_changed_the_runs_own_value_is_offered(first, capfd):
    shutil.rmtree(first / "run" / "checkpoints")
    path = first / "run" / "config.json"
    settings = json.loads(path.read_text())
    del settings["method"]["pacl_weight"]
    (first / "given.json").write_text(json.dumps(settings))
    settings["method"]["pacl_weight"] = 0.3  # which was the default once
    path.write_text(json.dumps(settings))
    words = ("train", "--workdir=run", "--config=given.json")
    err = said(capfd, *words)
    assert "method.pacl_weight = 0.1 (it was 0.3)" in err
    assert "--config.method.pacl_weight=0.3" in err
    assert "allow-changed" not in err
    assert "0.1.0 or earlier" in err
    assert __version__ in err
    err = said(capfd, *words, "--config.method.pacl_weight=0.7")
    assert "--config.method.pacl_weight=0.3" in err
    assert "--allow-changed=method.pacl_weight" in err


def test_checkpoints_that_cannot_be_read_are_not_to_be_deleted(first):
    for path in (first / "run" / "checkpoints").glob("*/record/metadata"):
        path.write_text("{}")
    with Checkpoints(first / "run") as checkpoints, pytest.raises(InputError) as caught:
        checkpoints.restore()
    message = str(caught.value)
    assert "delete" not in message
    assert all(word in message for word in ("0.1.0 or earlier", __version__, "copy the folder"))


def test_class_names_come_from_the_run(first, capfd):
    """Its folder of images may have got names and classes since; `evaluate` needs the images as they were."""
    words = ("--workdir=run", "--client=1", "--quiet")
    assert cli.main(["predict", *words, "--output=before.csv", "photographs/river"]) == 0
    (first / "photographs" / "classnames.txt").write_text("river = Fluss\n")
    assert cli.main(["predict", *words, "--output=named.csv", "photographs/river"]) == 0
    shutil.copytree(first / "photographs" / "river", first / "photographs" / "lake")
    assert cli.main(["predict", *words, "--output=more.csv", "photographs/river"]) == 0
    before = (first / "before.csv").read_text()
    assert "river" in before
    assert (first / "named.csv").read_text() == (first / "more.csv").read_text() == before
    assert cli.main(["export", *words, "--format=safetensors", "--output=out"]) == 0
    assert "are not those of the run" in said(capfd, "evaluate", "--workdir=run")


def test_where_the_split_followed_the_seed_it_still_does(first, capfd):
    """Seed 0 has the split that is the default by now; seed 1 has one of its own, and would get another."""
    settings = json.loads((first / "run" / "config.json").read_text())
    (first / "given.json").write_text(json.dumps({**settings, "data": {**settings["data"], "split_seed": 0}}))
    err = said(capfd, "train", "--workdir=run", "--config=given.json", "--config.seeds=2")
    assert "data.split_seed" in err
    assert "--config.data.split_seed=-1" in err
    assert "allow-changed" not in err


def test_where_each_folder_was_a_class_it_still_is(first):
    """The same images, in parts that are called like the sides of a split, which the first version did not know."""
    for place in (first / "photographs").iterdir():
        for part, numbers in (("test", range(4)), ("train", range(4, 8))):
            (place / part).mkdir()
            for i in numbers:
                (place / f"{i}.png").rename(place / part / f"{i}.png")
    run = open_run(first / "run", [])
    assert clients_of(run, np.ones(len(run.task.labels), bool)).num_clients == 3
    own = config.resolve(Config, workdir.own_configuration(first / "run"))
    now = config.to_dict(config.resolve(Config, {}, [("data.layout", "auto")]))
    assert own.data.layout == "classes"
    assert workdir.check_same({"data": {"layout": "classes"}}, now, {}, (), __version__) == [], "digests tell"


@pytest.mark.long
def test_images_that_a_version_dealt_out_otherwise_keep_their_owners(first, capfd):
    """As a split by sensors was before it was even in each; which images are new to a run is then not known."""
    run = first / "run"
    settings, summary = (json.loads((run / name).read_text()) for name in ("config.json", "summary.json"))
    settings["eval"]["split"] = "validation"
    (run / "config.json").write_text(json.dumps(settings))
    opened = open_run(run, [])
    readable = np.ones(len(opened.task.labels), bool)
    dealt = divide(dataclasses.replace(opened.config, seed=9), opened.task, readable)
    dealt.save(run / "partition.npz")
    (run / "summary.json").write_text(json.dumps(summary | {"partition_sha256": dealt.digest()}))
    assert clients_of(open_run(run, []), readable).digest() == dealt.digest()
    assert "divided these images otherwise" in said(capfd, "evaluate", "--workdir=run", "--split=test")
    (run / "summary.json").write_text(json.dumps(summary))
    assert "have changed since the run" in said(capfd, "evaluate", "--workdir=run")


# What a folder was started with


def test_a_folder_knows_what_it_was_started_with(first, refused):
    """Its run's own configuration, with the seeds and baselines of the comparison that it is the first of."""
    run = first / "run"
    own = workdir.own_configuration(run)
    assert own is not None
    assert (own["rounds"], own["seeds"], own["partition"]["clients"]) == (2, 2, 3)
    formats.write(run / workdir.STUDY, {"config": {**own, "seeds": 5, "baselines": ["promptfl"]}})
    assert workdir.own_configuration(run) == {**own, "seeds": 5, "baselines": ["promptfl"]}
    assert workdir.own_configuration(first) is None
    (run / "config.json").write_text(json.dumps({**own, "sweep": {"rows": []}}))
    with refused("holds a sweep", "fedrsclip sweep"):
        workdir.own_configuration(run)


def test_the_page_of_a_comparison_shows_the_configuration_of_all_its_runs(first):
    run = first / "run"

    def shown(folder: Path) -> dict:
        page = write_report(folder).read_text(encoding="utf-8")
        return json.loads(html.unescape(page.partition("<summary>Configuration</summary><pre>")[2].partition("<")[0]))

    assert json.loads((run / "config.json").read_text())["seeds"] == 1
    assert shown(run)["seeds"] == 2, "as its comparison says"
    formats.write(run / workdir.STUDY, {"config": {**shown(run), "seeds": 5, "baselines": ["promptfl"]}})
    assert (shown(run)["seeds"], shown(run)["baselines"], shown(run)["format"]) == (5, ["promptfl"], FORMAT)
    assert shown(first / SEED_1) == json.loads((first / SEED_1 / "config.json").read_text())


def test_what_a_start_was_asked_for_is_forgotten_where_nothing_was_saved(tmp_path):
    with workdir.claim(tmp_path / "run"):
        formats.write(tmp_path / "run" / workdir.STUDY, {"config": {"rounds": 7}})
        workdir.check(tmp_path / "run")  # as after a kill: it is no obstacle, and says how to go on
        assert (workdir.own_configuration(tmp_path / "run") or {})["rounds"] == 7
    assert not (tmp_path / "run").exists()
