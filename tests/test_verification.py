"""`fedrsclip verify`: an export held against its certificate, also one that was written without PyTorch."""

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="exports are held against PyTorch")  # what follows needs it
# ruff: noqa: E402

from safetensors.numpy import load_file, save_file

from fedrsclip_jax import cli, compilation
from fedrsclip_jax.errors import CheckError
from fedrsclip_jax.export.certificate import digest_of
from fedrsclip_jax.export.verification import verify
from tests.conftest import REPOSITORY
from tests.runs import ACCENTS, finished


@pytest.fixture(scope="module")
def run(tiny_folder, tmp_path_factory):
    return finished(tmp_path_factory.mktemp("finished") / "run", tiny_folder, ACCENTS)


SCRIPT = """
import contextlib, io, json, sys
sys.modules["torch"] = None  # as Python says that a module is not there
from fedrsclip_jax import cli, compilation
compilation.keep_on_disk = lambda: None
for words in json.loads(sys.argv[1]):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.main([words[0], "--quiet", *words[1:]])
    print(json.dumps([code, out.getvalue().splitlines(), err.getvalue()]))
"""


@pytest.fixture(scope="module")
def without_pytorch(run, tmp_path_factory):
    """A folder with exports of a process in which PyTorch is not installed, and what each of its commands said."""
    folder, place = tmp_path_factory.mktemp("without"), f"--workdir={run}"
    commands = {
        "classifier": ["export", place, "--format=classifier", "--output=classifier"],
        "prompts": ["export", place, "--format=safetensors", "--all-clients", "--output=prompts"],
        "coop": ["export", place, "--format=coop", "--output=coop"],
        "verify": ["verify", "classifier"],
    }
    words = [sys.executable, "-c", SCRIPT, json.dumps(list(commands.values()))]
    place = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(words, cwd=folder, env=place, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return folder, dict(zip(commands, map(json.loads, done.stdout.splitlines()), strict=True))


@pytest.fixture
def call(tmp_path, monkeypatch, capfd):
    """Runs a verb in an empty folder and gives its exit code, the lines of its output, and what went wrong."""
    monkeypatch.setattr(compilation, "keep_on_disk", lambda: None)
    monkeypatch.chdir(tmp_path)

    def verb(*words: str):
        capfd.readouterr()
        code = cli.main([words[0], "--quiet", *words[1:]])
        out, err = capfd.readouterr()
        return code, out.splitlines(), err

    return verb


def certificate(folder):
    return json.loads((folder / "certificate.json").read_text())


@pytest.mark.long
def test_an_export_without_pytorch_says_so_last_and_is_verified_later(without_pytorch, call, tmp_path):
    folder, said = without_pytorch
    code, lines, _ = said["classifier"]
    assert code == 0
    assert (
        lines[-1] == "classifier in classifier, not verified: PyTorch is not installed; later, run `fedrsclip verify`"
    )
    written = certificate(folder / "classifier")
    assert written["verified"] is False
    assert "max_abs_difference" not in written
    code, _, err = said["coop"]
    assert (code, err.count("\n")) == (2, 1)
    assert "--format=coop needs the Python package torch" in err
    code, _, err = said["verify"]
    assert (code, err.count("\n")) == (2, 1)
    assert "classifier was never verified, and cannot be: PyTorch is not installed" in err

    # On another machine: neither the run nor its CLIP is there.
    shutil.copytree(folder / "classifier", tmp_path / "elsewhere")
    code, lines, err = call("verify", "elsewhere")
    assert code == 0, err
    assert lines[-1].startswith(f"elsewhere: {len(written['files'])} files are as certified; logits within ")
    assert lines[-1].endswith("of ours on 4 reference pictures, predicted classes equal")
    later = certificate(tmp_path / "elsewhere")
    assert later["verified"] is True
    assert later["max_abs_difference"] <= later["tolerance"]
    assert later["verified_later"]["versions"]["torch"] == importlib.metadata.version("torch")
    assert "reason" not in later
    assert later["files"] == written["files"]


def test_what_has_changed_is_found_out(call, run, tmp_path):
    assert call("export", f"--workdir={run}", "--format=classifier", "--output=out")[0] == 0
    said = certificate(tmp_path / "out")
    file = tmp_path / "out" / "classifier.safetensors"
    tensors = load_file(file)
    tensors["weights"] = tensors["weights"][::-1].copy()
    save_file(tensors, file, metadata={"format": "pt"})
    code, _, err = call("verify", "out")
    assert (code, err.count("\n")) == (1, 1)
    assert "out/classifier.safetensors is not the file that was exported" in err
    # Who changes the digest too is told by the logits.
    said["files"]["classifier.safetensors"] = digest_of(file)
    (tmp_path / "out" / "certificate.json").write_text(json.dumps(said))
    with pytest.raises(CheckError, match="logits differ by"):
        verify(tmp_path / "out", None, [])
    file.unlink()
    with pytest.raises(CheckError, match=r"classifier\.safetensors is missing"):
        verify(tmp_path / "out", None, [])


@pytest.mark.long
def test_prompts_are_verified_with_their_run(without_pytorch, call, run, tmp_path, tiny_folder):
    folder, said = without_pytorch
    assert said["prompts"][0] == 0
    shutil.copytree(folder / "prompts", tmp_path / "all")
    code, _, err = call("verify", "all")
    assert code == 2
    assert "safetensors are compared with its run's; give it by --workdir=DIR" in err
    code, lines, err = call("verify", "all", f"--workdir={run}")
    assert code == 0, err
    assert [line.partition(":")[0] for line in lines] == ["all/client_00000", "all/client_00002"]
    assert all("of ours on 10 images of the run, predicted classes equal" in line for line in lines)
    assert all(certificate(tmp_path / "all" / name)["verified"] for name in ("client_00000", "client_00002"))

    assert call("export", f"--workdir={run}", "--format=coop", "--output=one")[0] == 0
    code, lines, _ = call("verify", "one")
    assert (code, lines[-1]) == (
        0,
        "one: 2 files are as certified; logits were not compared again: logits of coop are compared with its run's; "
        "give it by --workdir=DIR",
    )
    other = finished(tmp_path / "other", tiny_folder, ACCENTS, **{"seed": 5})
    code, _, err = call("verify", "one", f"--workdir={other}")
    assert code == 2
    assert "one was not exported from" in err
    assert "seed is another" in err

    # The run has gone on since, and its folder still has the checkpoint.
    summary = json.loads((run / "summary.json").read_text())
    shutil.copytree(run, tmp_path / "longer")
    later = {"rounds": summary["rounds"] + 5, "config_sha256": "of more rounds"}
    (tmp_path / "longer" / "summary.json").write_text(json.dumps(summary | later))
    code, _, err = call("verify", "one", f"--workdir={tmp_path / 'longer'}")
    assert code == 0, err


@pytest.mark.parametrize("kind", ["onnx", "huggingface"])
def test_other_formats(call, run, kind):
    if kind == "onnx":
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
    assert call("export", f"--workdir={run}", f"--format={kind}", "--output=out")[0] == 0
    code, lines, err = call("verify", "out", *([] if kind == "onnx" else [f"--workdir={run}"]))
    assert code == 0, err
    assert "predicted classes equal" in lines[-1]


@pytest.mark.parametrize("text", [None, "{", "[]", "{}", '{"format": "tea"}'])
def test_what_is_no_export(call, tmp_path, text):
    (tmp_path / "out").mkdir()
    if text is not None:
        (tmp_path / "out" / "certificate.json").write_text(text)
    code, _, err = call("verify", "out")
    assert (code, err.count("\n")) == (2, 1)
    assert "certificate" in err
    assert call("verify", "out", "--config.backbone=tiny")[0] == 2


def test_reference_pictures_are_the_same_everywhere():
    from fedrsclip_jax.export.pictures import references

    pictures = references(32)
    assert [picture.shape for picture in pictures] == [(39, 48, 3), (46, 64, 3), (53, 80, 3), (60, 96, 3)]
    assert [int(picture.astype(int).sum()) for picture in pictures] == SUMS
    assert min(np.std(picture) for picture in pictures) > 30


SUMS = [701624, 1114816, 1619224, 2199904]  # of whole numbers, so that a certificate holds on every machine
