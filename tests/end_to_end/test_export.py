"""`fedrsclip export` from the command line: a run that was trained, the lines of the README, and bad input."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="exports are held against PyTorch")  # what follows needs it

from PIL import Image

from fedrsclip_jax import cli
from tests.conftest import REPOSITORY
from tests.runs import ACCENTS, CLIENTS, PLAIN, ROUNDS, finished

SMALL = (
    "--no-report",
    "--config.data.scenes.count=320",
    "--config.data.image_size=32",
    "--config.partition.clients=4",
    "--config.partition.alpha=0.5",
    "--config.local.batch_size=16",
    "--config.rounds=2",
    "--config.eval.every=2",
    "--config.seeds=1",
    "--config.baselines=",
)
# Any import of JAX or Flax fails in a process that begins with this.
WITHOUT_JAX = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("jax", "jaxlib", "flax", "optax", "orbax"):
            raise ImportError(f"{name} is blocked")
sys.meta_path.insert(0, Blocker())
"""


def train(tiny_folder: Path, workdir: Path, *flags: str) -> dict:
    words = ("train", "--quiet", f"--config={REPOSITORY / 'configs/quickstart.py'}", f"--workdir={workdir}")
    assert cli.main([*words, f"--config.backbone={tiny_folder}", *SMALL, *flags]) == 0
    return json.loads((workdir / "summary.json").read_text())


def export(workdir: Path, kind: str, output: Path, *flags: str) -> dict:
    assert (
        cli.main(["export", "--quiet", f"--workdir={workdir}", f"--format={kind}", f"--output={output}", *flags]) == 0
    )
    return json.loads((output / "certificate.json").read_text())


@pytest.mark.long
def test_a_trained_run_goes_out_and_comes_back(tiny_folder, tmp_path, capsys):
    summary = train(tiny_folder, tmp_path / "run")
    for kind, flags in (
        ("coop", ()),
        ("fedotp", ("--client=1",)),
        ("safetensors", ("--client=1",)),
        ("classifier", ("--client=1", "--with-backbone")),
        ("huggingface", ()),
    ):
        certificate = export(tmp_path / "run", kind, tmp_path / kind, *flags)
        assert certificate["verified"]
        assert certificate["images"] == {"count": 16, "origin": "run"}
        assert certificate["config_sha256"] == summary["config_sha256"]
    assert "predicted classes equal" in capsys.readouterr().out

    # A run whose clients never step is what it started from: the prompts that it saves are those that it was given.
    still = ("--config.local.learning_rate=0", "--config.rounds=1")
    for kind, file in (("fedotp", "prompt_learner/model.pth.tar-2"), ("safetensors", "prompts.safetensors")):
        again = tmp_path / f"{kind}-again"
        train(tiny_folder, again, *still, f"--config.init_from={kind}:{tmp_path / kind / file}")
        for client in (1, 3):
            back = export(again, "safetensors", tmp_path / f"{kind}-back-{client}", f"--client={client}")
            there = json.loads((tmp_path / "safetensors" / "certificate.json").read_text())
            assert back["prompts_sha256"] == there["prompts_sha256"]
    assert cli.main(["evaluate", "--quiet", f"--workdir={tmp_path / 'fedotp-again'}"]) == 0


@pytest.mark.long
def test_the_lines_of_the_readme_classify_an_image_without_jax(tmp_path):
    """As they stand there, on the embedded CLIP, and equal to the run's own answer."""
    from fedrsclip_jax.clip.huggingface import TINY
    from fedrsclip_jax.export.chosen import choose
    from fedrsclip_jax.export.pictures import take
    from fedrsclip_jax.finished import open_run, restore

    blocks = re.findall(r"```python\n(.*?)```", (REPOSITORY / "README.md").read_text(), re.DOTALL)
    (lines,) = (block for block in blocks if "torch_classifier" in block)
    assert len([line for line in lines.splitlines() if line]) == 5
    workdir = finished(tmp_path / "run", TINY, PLAIN, backbone="tiny")
    export(workdir, "classifier", tmp_path / "classifier", "--client=2")
    run = open_run(workdir, [])
    pictures = take(run)
    Image.fromarray(pictures.images[1]).save(tmp_path / "scene.png")
    logits = choose(run, restore(run), 2).logits(pictures.features)[1]
    odds = np.exp(logits - logits.max())

    place = f"sys.path.insert(0, {str(REPOSITORY)!r})\n"
    jax = [sys.executable, "-I", "-c", WITHOUT_JAX + place + "import fedrsclip_jax.prompts"]
    blocked = subprocess.run(jax, capture_output=True, text=True, timeout=300)
    assert "is blocked" in blocked.stderr  # or what follows would prove nothing
    done = subprocess.run(
        [sys.executable, "-I", "-c", WITHOUT_JAX + place + lines],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    name, percent = re.fullmatch(r"(.*): (.*) %\n", done.stdout).groups()
    assert name == PLAIN[logits.argmax()]
    assert float(percent) == pytest.approx(100 * odds.max() / odds.sum(), abs=0.06)
    assert "UNEXPECTED" not in done.stdout + done.stderr


# Bad input ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tiny_folder, tmp_path_factory) -> Path:
    return finished(tmp_path_factory.mktemp("finished") / "run", tiny_folder, ACCENTS)


@pytest.fixture
def refused(tmp_path, monkeypatch, capfd):
    """Runs the command line in an empty folder and gives its one line; nothing is written."""
    from fedrsclip_jax import compilation

    monkeypatch.setattr(compilation, "keep_on_disk", lambda: None)
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> str:
        before = sorted(tmp_path.rglob("*"))
        capfd.readouterr()
        code = cli.main(["export", "--quiet", *arguments])
        out, err = capfd.readouterr()
        assert code == 2, err
        assert out == ""
        assert err.startswith("fedrsclip: ")
        assert err.count("\n") == 1, err
        assert sorted(tmp_path.rglob("*")) == before
        return err

    return call


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--format=coo"], ("--format=coo is not one of coop, fedotp", "did you mean 'coop'")),
        (["--format=tensorflow"], ("--format=tensorflow is not one of", "huggingface")),
        (["--format=coop", "--client=4"], ("--client=4", f"clients 0 to {CLIENTS - 1}")),
        (["--format=coop", "--client=-1"], ("--client=-1", "clients 0 to")),
        (["--format=coop", "--client=2", "--all-clients"], ("--client=2 and --all-clients", "one of them")),
        (["--format=coop", "--client=2"], ("the model of client 2 has two", "--format=fedotp")),
        (["--format=fedtpg", "--all-clients"], ("the model of client 0 has two", "safetensors or classifier")),
        (["--format=fedotp"], ("a shared and a private prompt", "--client=K")),
        (["--format=coop", "--checkpoint=3"], ("--checkpoint=3", "none of round 3", f"kept are {ROUNDS}")),
        (["--format=coop", "--checkpoint=best"], ("--checkpoint=best", "marked none", "eval.split = validation")),
        (["--format=coop", "--checkpoint=newest"], ("--checkpoint=newest", f"kept are {ROUNDS}")),
        (["--format=huggingface", "--client=1"], ("the same for all clients", "leave --client out")),
        (["--format=coop", "--client=one"], ("--client", "'one'")),
        (["--format=coop", "--config.rounds=3"], ("--config.rounds", "backbone, data.source")),
        (["--format=coop", "--config.backbone=tiny"], ("tiny has other weights",)),
        (["--format=coop", "--config.data.source=scenes"], ("16 classes", "not those of the run")),
    ],
    ids=lambda value: " ".join(value)[:50],
)
def test_what_cannot_be_exported(refused, run, arguments, words):
    line = refused(f"--workdir={run}", "--output=out", *arguments)
    for word in words:
        assert word in line, line


def test_a_client_never_drawn_is_exported_with_a_warning(run, tmp_path, capsys):
    words = ["export", f"--workdir={run}", "--format=safetensors"]
    for name, flags, warnings in (("out", (), 1), ("quiet", ("--quiet",), 1), ("other", ("--client=2",), 0)):
        assert cli.main([*words, "--client=3", f"--output={tmp_path / name}", *flags]) == 0
        said = capsys.readouterr()
        assert (said.out + said.err).count("never took part") == warnings
        assert said.out.count("warning: client 3 never took part") == warnings


def test_methods_without_such_a_model(refused, tiny_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("methods")
    local = finished(folder / "local", tiny_folder, **{"method.name": "local_coop"})
    shared = finished(folder / "shared", tiny_folder, **{"method.name": "promptfl"})
    line = refused(f"--workdir={local}", "--output=out", "--format=coop")
    assert "local_coop has no model of the federation; name a client with --client=K" in line
    assert "use --format=coop" in refused(f"--workdir={local}", "--output=out", "--format=fedotp", "--client=0")
    for flag in ("--client=0", "--all-clients"):
        line = refused(f"--workdir={shared}", "--output=out", "--format=coop", flag)
        assert "promptfl has no private prompts" in line
    front = finished(folder / "front", tiny_folder, **{"method.class_position": "front"})
    line = refused(f"--workdir={front}", "--output=out", "--format=fedtpg")
    assert "FedTPG puts class names at the end" in line


def test_folders_that_will_not_do(refused, run, tmp_path):
    assert "no config.json" in refused("--workdir=nowhere", "--output=out", "--format=coop")
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "unfinished" / "config.json").write_text((run / "config.json").read_text())
    assert "has not finished" in refused("--workdir=unfinished", "--output=out", "--format=coop")
    (tmp_path / "unfinished" / "summary.json").write_text("{")
    assert "summary.json is not JSON" in refused("--workdir=unfinished", "--output=out", "--format=coop")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("years of work")
    line = refused(f"--workdir={run}", "--output=full", "--format=coop")
    assert "--output: full is not empty" in line
    line = refused(f"--workdir={run}", "--output=full", "--format=coop", "--overwrite")
    assert "thesis.txt was not written by an export" in line
    for place in ("full/thesis.txt", "full/thesis.txt/below"):
        assert f"--output: {place}" in refused(f"--workdir={run}", f"--output={place}", "--format=coop")


def test_prompts_that_cannot_start_a_run(tiny_folder, run, tmp_path, capfd, monkeypatch):
    """Refused before an image is encoded, and nothing is written."""
    from fedrsclip_jax import compilation

    monkeypatch.setattr(compilation, "keep_on_disk", lambda: None)
    export(run, "coop", tmp_path / "coop")
    file = tmp_path / "coop" / "prompt_learner" / f"model.pth.tar-{ROUNDS}"
    train = ["train", "--quiet", f"--config.backbone={tiny_folder}", f"--workdir={tmp_path / 'out'}", *SMALL]
    for flags, words in (
        ((f"--config.init_from=coop:{tmp_path / 'nowhere'}",), ("init_from", "is no file")),
        ((f"--config.init_from=coop:{tmp_path / 'coop'}",), ("is a folder; give", f"model.pth.tar-{ROUNDS}")),
        ((f"--config.init_from=flip:{file}",), ("[4, 32]", "write coop:")),
        (
            (f"--config.init_from=coop:{file}", "--config.method.context_tokens=8"),
            ("_tokens = 4 (it is 8)",),
        ),
        ((f"--config.init_from=coop:{file}", "--config.backbone=tiny"), ("width 32", "tiny is 128 wide")),
    ):
        capfd.readouterr()
        assert cli.main([*train, *flags]) == 2
        err = capfd.readouterr().err
        assert err.count("\n") == 1
        for word in words:
            assert word in err
    assert not (tmp_path / "out").exists()
