"""FedOTP from pictures to a report: patches are encoded, trained on, exported; and who needs none sees none."""

import json
import re
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from fedrsclip_jax import cli, compilation
from fedrsclip_jax.evidence import Evidence
from tests.conftest import REPOSITORY

FLAGS = (
    "--quiet",
    f"--config={REPOSITORY / 'configs' / 'quickstart.py'}",
    "--config.seeds=1",
    "--config.data.scenes.count=160",
    "--config.data.image_size=32",
    "--config.partition.clients=3",
    "--config.local.batch_size=16",
    "--config.local.learning_rate=0.02",
    "--config.method.patch_grid=2",
    "--config.rounds=4",
    "--config.eval.every=1",
    "--config.spmd.devices=1",
)


@pytest.fixture(scope="module")
def train(tiny_folder, tmp_path_factory):
    """Runs the command line in this process; gives the folder of results."""

    def run(*flags: str) -> Path:
        folder = tmp_path_factory.mktemp("fedotp") / "run"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(compilation, "keep_on_disk", lambda: None)
            assert cli.main(["train", *FLAGS, f"--config.backbone={tiny_folder}", f"--workdir={folder}", *flags]) == 0
        return folder

    return run


@pytest.fixture(scope="module")
def compared(train):
    return train("--config.method.name=fedotp", "--config.baselines=promptfl")


def course(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.long
def test_it_learns_and_is_reported_and_exported(compared, tmp_path, capfd):
    losses = course(compared)
    assert losses[-1] < losses[0]
    evidence = Evidence.load(compared)
    assert evidence is not None
    assert evidence.shared.shape == evidence.zero_shot.shape
    assert evidence.private.shape == (3, *evidence.shared.shape)
    assert "FedOTP" in (compared / "report.html").read_text()

    words = ("export", "--quiet", f"--workdir={compared}", "--client=1")
    assert cli.main([*words, "--format=safetensors", f"--output={tmp_path / 'prompts'}"]) == 0
    certificate = json.loads((tmp_path / "prompts" / "certificate.json").read_text())
    assert certificate["verified"] == (find_spec("torch") is not None), "by PyTorch, where there is one"
    assert certificate["compared"] == "mean of the prompts' logits on whole images"  # not the transport
    capfd.readouterr()
    assert cli.main([*words, "--format=classifier", f"--output={tmp_path / 'classifier'}"]) == 2
    said = capfd.readouterr().err
    assert said.count("\n") == 1
    assert "fedotp reads those of its patches" in said
    assert not (tmp_path / "classifier").exists()


@pytest.mark.long
def test_a_dry_run_counts_the_patches(tiny_folder, tmp_path, capsys):
    flags = ("--config.method.name=fedotp", "--config.baselines=promptfl", "--config.data.scenes.count=96", "--dry-run")
    words = ["train", *FLAGS, f"--config.backbone={tiny_folder}", f"--workdir={tmp_path / 'run'}", *flags]
    assert cli.main(words) == 0
    shown = capsys.readouterr().out
    assert re.search(r"disk: features +30\.0 KiB", shown), "96 images, each of 1 + 2 x 2 features of 16 numbers"
    assert not (tmp_path / "run").exists()


@pytest.mark.long
def test_promptfl_beside_it_is_promptfl_alone(compared, train):
    alone = train("--config.method.name=promptfl", "--config.baselines=", "--config.eval.target_accuracy=0.01")
    np.testing.assert_allclose(course(compared / "compared" / "promptfl-seed0"), course(alone), rtol=1e-4)
    assert abs(course(alone)[-1] - course(compared)[-1]) > 1e-3
    summary = json.loads((alone / "summary.json").read_text())
    lines = [json.loads(line) for line in (alone / "metrics.jsonl").read_text().splitlines()]
    first = next(line for line in lines if line["global"]["accuracy"] >= 0.01)
    has_it = summary["zero_shot"]["accuracy"] >= 0.01  # zero-shot CLIP, which sends nothing
    assert summary["bytes_to_target"]["global"] == (0 if has_it else first["bytes_sent"])
    assert json.loads((compared / "summary.json").read_text())["bytes_to_target"] is None


@pytest.mark.long
def test_streamed_images_bring_their_patches(compared, train):
    streamed = train("--config.method.name=fedotp", "--config.baselines=", "--config.spmd.features=streamed")
    np.testing.assert_allclose(course(streamed), course(compared), rtol=1e-5)


@pytest.mark.long
def test_fine_tuning_is_of_a_client_and_leaves_the_federation_as_it_is(train, capfd):
    plain, tuned = (
        train("--config.method.name=promptfl", "--config.baselines=", f"--config.eval.finetune_epochs={epochs}")
        for epochs in (0, 3)
    )
    was, now = (json.loads((folder / "summary.json").read_text()) for folder in (plain, tuned))
    for same in ("state_sha256", "global", "global_on_clients", "bytes_sent", "zero_shot"):
        assert was[same] == now[same], same
    assert was["personalised"] != now["personalised"]
    capfd.readouterr()
    assert cli.main(["evaluate", "--quiet", f"--workdir={tuned}"]) == 0
    assert f"{100 * now['personalised']['mean']:.1f}" in capfd.readouterr().out, "scored again, it is the same"
