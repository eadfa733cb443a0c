"""`fedrsclip train` from the command line to the folder of results."""

import json
import shutil
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from fedrsclip_jax import cli, compilation, federation, formats, grid
from fedrsclip_jax import config as configuration
from fedrsclip_jax.data.partition import Partition
from fedrsclip_jax.errors import InputError
from fedrsclip_jax.federated import engine
from fedrsclip_jax.federated.round import run_rounds
from tests.conftest import REPOSITORY

AID = REPOSITORY.parent / "shared" / "data" / "aid"
SMALL = (
    "--no-report",
    "--config.data.scenes.count=320",
    "--config.data.image_size=32",
    "--config.partition.clients=4",
    "--config.partition.alpha=0.5",
    "--config.local.batch_size=16",
    "--config.rounds=3",
    "--config.eval.every=2",
)


@pytest.fixture
def train(tiny_folder, tmp_path):
    """Runs the shipped quickstart, shrunk, on a tiny random CLIP; returns the folder of results."""

    def run(name: str, *flags: str) -> Path:
        workdir = tmp_path / name
        words = ("train", "--quiet", f"--config={REPOSITORY / 'configs/quickstart.py'}", f"--workdir={workdir}")
        assert cli.main([*words, f"--config.backbone={tiny_folder}", *SMALL, *flags]) == 0
        return workdir

    return run


@pytest.fixture
def dispatches(monkeypatch) -> list[tuple[bool, int]]:
    """Of each dispatch, whether its images were streamed, and its rounds; their number grows whatever the time."""
    seen, advance = [], engine.Engine.advance

    def noted(self, first, most):
        done = advance(self, first, most)
        seen.append((self.plan.streamed, len(done)))
        return done

    monkeypatch.setattr(engine.Engine, "advance", noted)
    monkeypatch.setattr(engine, "PATIENCE", 1e9)
    return seen


def read(workdir: Path, name: str = "summary.json"):
    return json.loads((workdir / name).read_text())


@pytest.mark.newest
def test_the_folder_of_a_run_keeps_its_contract(train, capsys):
    workdir = train("run", "--report", "--config.seeds=2", "--config.baselines=promptfl,local_coop")
    printed = capsys.readouterr().out
    for row in ("zero-shot", "PromptFL", "local CoOp", "FedRSCLIP"):
        assert row in printed

    runs = [workdir, *sorted((workdir / "compared").iterdir())]
    assert [run.name for run in runs[1:]] == [
        "fedrsclip-seed1",
        "local_coop-seed0",
        "local_coop-seed1",
        "promptfl-seed0",
        "promptfl-seed1",
    ]
    for run in runs:
        names = {path.name for path in run.iterdir()}
        wanted = ("config.json", "partition.npz", "metrics.jsonl", "checkpoints", "summary.json", "report.html")
        assert names >= set(wanted)
        summary = read(run)
        assert summary["num_classes"] == 16
        assert summary["num_clients"] == 4
        assert summary["rounds"] == 3
        for key in ("method", "backbone", "dataset", "seed", "client_steps_per_second", "wasted_lane_share"):
            assert key in summary
        for key in ("encode", "compile", "train", "evaluate"):
            assert summary["seconds"][key] >= 0
        for key in ("accuracy", "macro_f1", "ece"):
            assert 0 <= summary["global"][key] <= 1
            assert 0 <= summary["zero_shot"][key] <= 1
        for key in ("mean", "weighted_mean", "std", "worst_decile"):
            assert 0 <= summary["personalised"][key] <= 1
        assert len(summary["personalised"]["per_client"]) == 4
        assert len(summary["state_sha256"]) == 64
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        assert [line["round"] for line in lines] == [2, 3]
        config = configuration.resolve(configuration.Config, formats.read(run / "config.json"))
        assert config.method.name == summary["method"]
        assert "<h1>" in (run / "report.html").read_text()
    train("run", "--no-report", "--config.seeds=2", "--config.baselines=promptfl,local_coop")
    assert not [*workdir.rglob("report.html")], "left out, and older ones are gone"
    prompt = 4 * 32
    assert read(workdir)["uplink_params_per_client_round"] == prompt
    assert read(workdir)["uplink_bytes_per_client_round"] == 4 * prompt
    assert read(workdir)["downlink_params_per_client_round"] == prompt
    assert read(workdir)["bytes_sent"] == 3 * 4 * 4 * prompt
    alone = read(workdir / "compared" / "local_coop-seed0")
    assert alone["uplink_params_per_client_round"] == alone["downlink_bytes_per_client_round"] == 0
    assert alone["bytes_to_accuracy"]["0.1"] == {"global": None, "personalised": 0}

    same = [Partition.load(run / "partition.npz").digest() for run in (runs[0], runs[2], runs[4])]
    assert len(set(same)) == 1, "rows of one seed are compared on the same clients"
    assert Partition.load(runs[1] / "partition.npz").digest() != same[0]


@pytest.mark.optimised
def test_equal_seeds_give_equal_bits_and_evaluate_gives_the_same_scores(train, capsys):
    flags = ("--config.seeds=1", "--config.baselines=")
    first, again, other = train("a", *flags), train("b", *flags), train("c", *flags, "--config.seed=5")
    assert read(first)["state_sha256"] == read(again)["state_sha256"]
    assert read(first)["state_sha256"] != read(other)["state_sha256"]
    capsys.readouterr()
    assert cli.main(["evaluate", "--quiet", f"--workdir={first}"]) == 0
    from_checkpoint = capsys.readouterr().out
    assert f"{100 * read(first)['personalised']['mean']:.1f}" in from_checkpoint
    assert f"{100 * read(first)['global']['accuracy']:.1f}" in from_checkpoint

    # A finished run is scored as it was, or not at all.
    assert cli.main(["evaluate", "--quiet", f"--workdir={first}", "--config.method.name=promptfl"]) == 2
    assert "--config.method.name" in capsys.readouterr().err
    assert cli.main(["evaluate", "--quiet", f"--workdir={first}", "--config.backbone=tiny"]) == 2
    assert "other weights" in capsys.readouterr().err


def test_one_compilation_serves_all_rounds_of_a_run(train):
    flags = ("--config.seeds=1", "--config.baselines=", "--config.cohort=3", "--config.rounds=5")
    flags += ("--config.local.batch_size=13",)  # a program that no other test has compiled
    before = run_rounds._cache_size()
    train("run", *flags)
    assert run_rounds._cache_size() == before + 1


@pytest.mark.parametrize("method", ["fedrsclip", "local_coop"])
def test_a_run_that_diverges_says_so_and_leaves_nothing(tiny_folder, tmp_path, capsys, method):
    workdir = tmp_path / "run"
    words = ("train", "--quiet", f"--config={REPOSITORY / 'configs/quickstart.py'}", f"--workdir={workdir}")
    save_file({"shared": np.zeros((4, 32), np.float32)}, tmp_path / "start")
    start = f"--config.init_from=safetensors:{tmp_path / 'start'}"
    flags = ("--config.seeds=1", "--config.baselines=", "--config.local.learning_rate=1e38", start)
    name = f"--config.method.name={method}"
    assert cli.main([*words, f"--config.backbone={tiny_folder}", *SMALL, *flags, name]) == 1
    err = capsys.readouterr().err
    assert err.startswith(f"fedrsclip: {method}, seed 0: round 1: ")
    assert "lower local.learning_rate = 1e+38" in err
    assert not workdir.exists()


def test_a_method_that_diverges_is_a_row_beside_the_others(tiny_folder, tmp_path, capsys):
    """A server that overshoots spoils a shared prompt in the first round, and nothing where nothing is shared."""
    workdir = tmp_path / "run"
    words = ("train", "--quiet", f"--config={REPOSITORY / 'configs/quickstart.py'}", f"--workdir={workdir}")
    flags = ("--config.method.name=promptfl", "--config.baselines=local_coop", "--config.seeds=1", "--config.rounds=1")
    words += (*SMALL, "--report", *flags, f"--config.backbone={tiny_folder}", "--config.server.learning_rate=3e38")
    words += ("--config.local.learning_rate=100",)  # a change above 1 times that is infinite in fp32
    for start in ("first", "again"):
        assert cli.main([*words]) == 1, start
        said = capsys.readouterr()
        assert said.err.startswith("fedrsclip: 1 of 2 runs diverged: promptfl, seed 0: round 1: prompts or loss are no")
        assert said.err.count("\n") == 1
        lines = said.out.splitlines()
        (row,) = (number for number, line in enumerate(lines) if line.split()[:1] == ["PromptFL"])
        assert lines[row].split()[1:] == ["-", "-", "-", "-"]
        assert lines[row + 1].strip() == "diverged: seed 0"
        result = read(workdir, "comparison.json")
        assert [(run["method"], run["seed"]) for run in result["diverged"]] == [("promptfl", 0)]
        assert result["rows"]["promptfl"]["on_clients"] is None
        assert len(result["rows"]["local_coop"]["on_clients"]["values"]) == 1
        assert "PromptFL, diverged: seed 0" in (workdir / "report.html").read_text()
        assert read(workdir / "compared" / "local_coop-seed0")["rounds"] == 1


def test_devices_and_lanes_change_nothing_but_the_last_digits(train):
    flags = ("--config.seeds=1", "--config.baselines=")
    one = read(train("one", *flags, "--config.spmd.devices=1"))
    many = read(train("many", *flags, "--config.spmd.devices=2", "--config.spmd.clients_per_device=2"))
    assert (one["devices"], many["devices"]) == (1, 2)
    assert many["clients_per_device"] == 2
    assert many["personalised"]["mean"] == pytest.approx(one["personalised"]["mean"], abs=1e-6)
    assert many["global"]["accuracy"] == pytest.approx(one["global"]["accuracy"], abs=1e-6)


@pytest.mark.optimised
@pytest.mark.long
def test_where_images_lie_and_how_rounds_are_dispatched_change_no_bit(train, dispatches, monkeypatch):
    base = ("--config.seeds=1", "--config.baselines=", "--config.rounds=7", "--config.eval.every=7")
    base += ("--config.data.views=2", "--config.cohort=1", "--config.spmd.devices=1")

    def run(name: str, *flags: str) -> tuple[str, list[tuple[bool, int]]]:
        dispatches.clear()
        return read(train(name, *base, *flags))["state_sha256"], [*dispatches]

    resident, rounds = run("resident", "--config.spmd.features=resident")
    assert rounds == [(False, 1), (False, 2), (False, 4)]
    in_twos = run("twos", "--config.spmd.features=resident", "--config.spmd.rounds_per_dispatch=2")
    assert in_twos == (resident, [(False, 1), (False, 2), (False, 2), (False, 2)])
    one_by_one = run("ones", "--config.spmd.rounds_per_dispatch=1")
    assert one_by_one == (resident, 7 * [(False, 1)]), "a CPU does not say that anything is too large"
    assert run("streamed", "--config.spmd.features=streamed") == (resident, 7 * [(True, 1)])
    monkeypatch.setattr(federation, "memory_limit", lambda mesh: 1)
    assert run("auto") == (resident, 7 * [(True, 1)])


def test_looking_for_lanes_counts_as_compiling(train, monkeypatch):
    """An accelerator that we do not have: memory has to be asked for, which takes a compilation."""
    monkeypatch.setattr(engine, "platform_of", lambda mesh: "gpu")
    monkeypatch.setattr(engine, "memory_limit", lambda mesh: 2**40)
    spent, measure = {}, compilation.measure

    @contextmanager
    def noted(seconds, phase):
        before = seconds["compile"]
        with measure(seconds, phase):
            yield
        spent[phase] = spent.get(phase, 0.0) + seconds["compile"] - before

    monkeypatch.setattr(compilation, "measure", noted)
    # A program that no other test has compiled.
    flags = ("--config.seeds=1", "--config.baselines=", "--config.spmd.devices=1", "--config.local.batch_size=11")
    summary = read(train("run", *flags))
    assert summary["clients_per_device"] > 1
    assert spent["start"] > spent["train"], "the rounds' program is there when the first dispatch begins"
    assert summary["seconds"]["compile"] == pytest.approx(sum(spent.values()), abs=2e-3)


@pytest.mark.parametrize(
    "flags",
    [
        ("--config.data.views=2",),
        ("--config.dtype=bfloat16",),
        ("--config.cohort=2", "--config.dropout=0.5"),
        ("--config.partition.clients=1",),
        ("--config.method.combine=concat", "--config.method.cmfac=contrastive", "--config.method.pacl=tokens"),
        ("--config.method.class_position=middle",),
        ("--config.local.optimizer=adam", "--config.server.optimizer=adam", "--config.local.proximal_weight=0.1"),
        ("--config.partition.kind=domain", "--config.partition.clients=6"),
        ("--config.eval.split=validation",),
    ],
    ids=lambda flags: flags[0].removeprefix("--config."),
)
def test_settings_run_and_are_finite(train, flags):
    import jax

    # Optax's Adam and Flax's normalisation in bfloat16 mix types themselves.
    with jax.numpy_dtype_promotion("standard"):
        workdir = train("run", "--config.seeds=1", "--config.baselines=", *flags)
    summary = read(workdir)
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert all(np.isfinite(line["loss"]) for line in lines)
    assert 0 <= summary["personalised"]["mean"] <= 1
    if "--config.cohort=2" in flags:
        assert summary["bytes_sent"] <= 3 * 2 * 4 * 4 * 32


def test_scoring_on_validation_leaves_the_test_images_alone(train):
    flags = ("--config.seeds=1", "--config.baselines=", "--config.rounds=1")
    tested = Partition.load(train("test", *flags) / "partition.npz")
    validated = Partition.load(train("validation", *flags, "--config.eval.split=validation") / "partition.npz")
    held_out = set(tested.test_order)
    assert held_out.isdisjoint(validated.train_order)
    assert held_out.isdisjoint(validated.test_order)


def test_every_shipped_configuration_is_valid():
    files = sorted((REPOSITORY / "configs").glob("*.py"))
    assert len(files) >= 4
    for file in files:
        written = configuration.load_file(str(file))
        if "sweep" in written:
            with pytest.raises(InputError, match="use fedrsclip sweep"):
                configuration.resolve(configuration.Config, written)
            grid.read(written)
        else:
            kind = configuration.PretrainConfig if file.stem.startswith("pretrain") else configuration.Config
            configuration.resolve(kind, written)
        assert "fedrsclip" in file.read_text().split('"""')[1] or "launch/local.sh" in file.read_text().split('"""')[1]


def test_a_million_clients_of_whom_few_take_part(tiny_folder, tmp_path):
    """The shipped configuration with fewer rounds, images and local steps, but all of its clients."""
    workdir = tmp_path / "million"
    words = ("train", "--quiet", f"--config={REPOSITORY / 'configs/million_clients.py'}", f"--workdir={workdir}")
    smaller = ("--config.rounds=3", "--config.cohort=8", "--config.local.epochs=1", "--config.baselines=")
    smaller += ("--config.eval.clients=100",)
    few = (f"--config.backbone={tiny_folder}", "--config.data.scenes.count=640", "--config.data.image_size=32")
    assert cli.main([*words, *smaller, *few]) == 0
    summary = read(workdir)
    assert summary["num_clients"] == 1_000_000
    sample = summary["personalised"]["clients"]
    assert len(sample) == len(summary["personalised"]["per_client"]) == summary["num_scored_clients"] == 100
    assert max(sample) > 900_000, "they come from the whole population"
    assert summary["zero_shot"]["on_clients"]["clients"] == sample
    assert summary["scored"] == {"clients": 100, "of": 1_000_000, "took_part": 0.0}
    took_part = summary["participants"]["clients"]
    assert len(took_part) == len(summary["participants"]["per_client"]) == 24
    assert summary["participants"]["zero_shot"]["clients"] == took_part
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["scored"] == summary["scored"]
    assert lines[-1]["participants"]["clients"] == 24
    assert lines[-1]["participants"]["mean"] == summary["participants"]["mean"]
    beside = read(workdir, "comparison.json")["participants"]["fedrsclip"]
    assert beside["mean"]["values"] == [summary["participants"]["mean"]]
    # What is kept grows with those 24 and the sample: a list of all would take megabytes a number.
    assert sum(path.stat().st_size for path in workdir.rglob("*") if path.is_file()) < 2**20


@pytest.mark.skipif(not AID.is_dir(), reason="AID is not in ../shared/data/aid")
def test_no_image_of_aid_is_in_both_pretraining_and_federation():
    from fedrsclip_jax.task import load_source

    halves = {}
    for name, kind in (("pretrain_aid", configuration.PretrainConfig), ("aid", configuration.Config)):
        written = configuration.load_file(f"{REPOSITORY / 'configs' / name}.py:{AID}")
        config = configuration.resolve(kind, written)
        halves[name] = load_source(config.data)
    seen, federated = (set(halves[name].digests) for name in ("pretrain_aid", "aid"))
    assert seen.isdisjoint(federated)
    assert len(halves["pretrain_aid"]) + len(halves["aid"]) == 10_000
    assert abs(len(halves["pretrain_aid"]) - 5000) <= 30  # half of each of 30 classes


@pytest.mark.nightly
def test_the_quickstart_shows_what_it_promises(tmp_path):
    """Shipped as it is: personal prompts lead PromptFL, and PromptFL leads zero-shot, by three points and more."""
    workdir = tmp_path / "quickstart"
    config = REPOSITORY / "configs" / "quickstart.py"
    assert cli.main(["train", "--quiet", f"--config={config}", f"--workdir={workdir}"]) == 0
    result = read(workdir, "comparison.json")
    assert result["seeds"] == [0, 1, 2]
    own = {name: row["on_clients"]["mean"] for name, row in result["rows"].items()}
    assert own["fedrsclip"] >= own["promptfl"] + 0.03
    assert own["promptfl"] >= own["zero_shot"] + 0.03
    # FedRSCLIP and local CoOp are level: 0.4 points apart, and versions of JAX move them by half a point.
    assert own["local_coop"] >= own["promptfl"] + 0.03
    # Well above chance (1/16) and well below what the backbone reaches on pictures of its own kind.
    assert 2 / 16 < result["rows"]["zero_shot"]["pooled"]["mean"] < 0.7
    shutil.rmtree(workdir)
