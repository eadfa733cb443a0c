"""Bad input through the real command line: exit code 2, one line that names value and remedy, nothing written."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from fedrsclip_jax import cli
from fedrsclip_jax.config import PretrainConfig
from tests.end_to_end.conftest import SMALL, check, listing, photographs, started

# Configuration ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--config.ruonds=3"], ("'ruonds'", "'rounds'")),
        (["--config.local.lerning_rate=3"], ("'local.lerning_rate'", "'local.learning_rate'")),
        (["--config.rounds=many"], ("'rounds'", "'many'", "a whole number")),
        (["--config.local.learning_rate=fast"], ("'local.learning_rate'", "'fast'", "a number")),
        (["--config.rounds=0"], ("'rounds'", "0", "at least 1")),
        (["--config.partition.alpha=0"], ("'partition.alpha'", "0.0", "above 0")),
        (["--config.partition.alpha=-0.1"], ("'partition.alpha'", "-0.1", "above 0")),
        (["--config.partition.clients=2147483648"], ("'partition.clients'", "between 1 and 2147483647")),
        (
            ["--config.partition.kind=random"],
            ("'partition.kind'", "'random'", "iid, dirichlet, classes, domain, virtual"),
        ),
        (["--config.method.name=fedrsclp"], ("method.name", "'fedrsclp'", "'fedrsclip'", "promptfl")),
        (
            ["--config.method.name=promptfl,fedpgp"],
            ("several methods", "--config.sweep.grid.method.name=promptfl,fedpgp"),
        ),
        (["--config.sweep.grid.rounds=1,2"], ("'sweep.grid.rounds'", "use fedrsclip sweep")),
        (
            ["--config.local.learning_rate=0.1,1"],
            ("fedrsclip sweep with --config.sweep.grid.local.learning_rate=0.1,1",),
        ),
        (["--config.baselines=promtfl"], ("baselines", "'promtfl'", "'promptfl'", "local_coop")),
        (["--config=configs/missing.py"], ("no file 'configs/missing.py'", "give FILE.py")),
        (["--rounds=3"], ("'--rounds=3'", "--config.KEY=VALUE")),
        (["--config.rounds"], ("--config.rounds=VALUE",)),
        (["--config.data.source=satellite"], ("'satellite'", "folder:PATH")),
        (["--config.data.test_fraction=1"], ("test_fraction", "1.0", "such as 0.2")),
        (["--config.data.scenes.domains=dsut"], ("'dsut'", "'dust'")),
        (["--config.data.scenes.count=16"], ("data.scenes.count", "at least 32")),
    ],
)
def test_configuration(refused, federation, arguments, words):
    line = refused("train", *federation, *arguments)
    for word in words:
        assert word in line, line


def test_wrong_verb(refused):
    line = refused("trian")
    assert "'trian'" in line
    assert "--help" in line


def test_config_file_that_fails(refused, here, federation):
    (here / "mine.py").write_text("def get_config():\n    raise ValueError('two\\nlines')\n")
    assert "mine.py fails (ValueError: two lines)" in refused("train", "--config=mine.py", *federation)


# Data -------------------------------------------------------------------------------------------------


def test_missing_image_folder(refused, federation):
    line = refused("train", *federation, "--config.data.source=folder:nowhere")
    assert "data.source=folder:nowhere does not exist" in line
    assert "give a folder" in line


def test_folder_without_images(refused, here, federation):
    (here / "empty").mkdir()
    assert "no class folders" in refused("train", *federation, "--config.data.source=folder:empty")
    (here / "empty" / "river").mkdir()
    (here / "empty" / "river" / "notes.txt").touch()
    line = refused("train", *federation, "--config.data.source=folder:empty")
    assert "folder empty has no images" in line
    assert "png" in line


def test_class_with_one_image(refused, here, federation):
    photographs(here / "photos", {"river": 3, "lake": 1})
    line = refused("train", *federation, "--config.data.source=folder:photos")
    assert "class 'lake' in photos has 1 image(s)" in line
    assert "add images" in line


def test_truncated_image_is_named_and_can_be_skipped(refused, here, federation, capfd):
    photographs(here / "photos", {"river": 6, "lake": 6})
    broken = here / "photos" / "lake" / "3.png"
    broken.write_bytes(broken.read_bytes()[:900])
    arguments = (*federation, "--config.data.source=folder:photos")
    for _ in range(2):  # the second time from the cache, if it kept anything
        line = refused("train", *arguments)
        assert os.path.join("photos", "lake", "3.png") in line
        assert "--config.data.skip_unreadable=True" in line
    assert cli.main(["train", *arguments, "--config.data.skip_unreadable=True"]) == 0
    summary = json.loads((here / "out" / "summary.json").read_text())
    assert summary["unreadable_images"] == 1
    assert summary["num_images"] == 12
    with np.load(here / "out" / "partition.npz") as partition:
        used = np.concatenate([partition["train_order"], partition["test_order"]])
    # Classes are in the order of their names: lake 3 is image 3.
    assert sorted(used.tolist()) == [i for i in range(12) if i != 3]
    # Once known to be unreadable, it is still an error for who does not skip.
    (here / "out").rename(here / "kept")
    assert "3.png" in refused("train", *arguments)


# Partition --------------------------------------------------------------------------------------------


def test_more_clients_than_images(refused, federation):
    line = refused("train", *federation, "--config.partition.clients=1000")
    assert "partition.clients=1000" in line
    assert "give at most 48 clients" in line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ("cohort = 0 is everyone", "all 2 clients", "such as 64")),
        (["--config.cohort=3"], ("cohort = 3", "partition.clients = 2")),
        (["--config.cohort=1", "--config.partition.examples_per_client=99"], ("examples_per_client=99", "1 to 48")),
    ],
)
def test_virtual_clients(refused, federation, arguments, words):
    line = refused("train", *federation, "--config.partition.kind=virtual", *arguments)
    for word in words:
        assert word in line, line


def test_more_classes_a_client_than_there_are(refused, federation):
    line = refused("train", *federation, "--config.partition.kind=classes", "--config.partition.classes_per_client=17")
    assert "partition.classes_per_client=17" in line
    assert "1 to 16" in line


def test_fewer_clients_than_domains(refused, federation):
    line = refused(
        "train", *federation, "--config.partition.kind=domain", "--config.data.scenes.domains=dust,dusk,frost"
    )
    assert "partition.clients=2" in line
    assert "give at least 3" in line


# Backbone ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("missing", "remedy"),
    [
        ("config.json", "Hugging Face layout"),
        ("model.safetensors", "expected model.safetensors"),
        ("tokenizer.json", "download the whole folder"),
        ("preprocessor_config.json", "download the whole folder"),
    ],
)
def test_backbone_folder_that_lacks_a_file(refused, here, federation, tiny_folder, missing, remedy):
    shutil.copytree(tiny_folder, here / "clip")
    (here / "clip" / missing).unlink()
    line = refused("train", *federation, "--config.backbone=clip")
    assert "backbone: clip has no" in line
    assert remedy in line


def test_preprocessing_that_cannot_be_used(refused, here, federation, tiny_folder, feature_cache):
    """Settings that transformers alone refuses are met with the first images; nothing is left in the cache."""
    shutil.copytree(tiny_folder, here / "clip")
    path = here / "clip" / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"size": "large"}))
    unfinished = {*feature_cache.glob("*.partial")}
    line = refused("train", *federation, "--config.backbone=clip")
    assert "preprocessor_config.json cannot be used" in line
    assert "download the folder again" in line
    assert {*feature_cache.glob("*.partial")} == unfinished


def test_backbone_that_is_nowhere(refused, federation):
    line = refused("train", *federation, "--config.backbone=./nowhere")
    assert "'./nowhere' is no folder" in line
    assert "openai/clip-vit-base-patch16" in line


def test_truncated_weights(refused, here, federation, tiny_folder):
    shutil.copytree(tiny_folder, here / "clip")
    weights = here / "clip" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    line = refused("train", *federation, "--config.backbone=clip")
    assert os.path.join("clip", "model.safetensors") in line
    assert "download it again" in line


def test_context_that_does_not_fit_into_the_tower(refused, federation):
    line = refused("train", *federation, "--config.method.context_tokens=400")
    assert "method.context_tokens: 400" in line
    assert "this CLIP reads 77" in line
    room = int(line.rpartition("use at most ")[2])
    assert 0 < room < 77


def test_initial_words_of_another_number_than_tokens(refused, federation):
    line = refused("train", *federation, "--config.method.context_init=a satellite photo of a")
    assert "'a satellite photo of a'" in line
    assert "set method.context_tokens = " in line
    assert "(it is 4)" in line


# Machine and folders ----------------------------------------------------------------------------------


def test_more_devices_than_there_are(refused, federation):
    line = refused("train", *federation, "--config.spmd.devices=99")
    assert "spmd.devices = 99" in line
    assert "JAX sees 8" in line  # of conftest.py


def test_workdir_that_is_not_empty(refused, here, federation):
    (here / "out").mkdir()
    (here / "out" / "thesis.txt").write_text("years of work")
    for verb, arguments in (("train", federation), ("pretrain", (pretraining(here), "--workdir=out"))):
        line = refused(verb, *arguments)
        assert "--workdir: out is not an empty folder" in line
        assert "name a new one" in line


def test_workdir_that_cannot_be_made(refused, here, federation):
    (here / "file").touch()
    for workdir in ("file", "file/below", "file/far/below"):
        assert f"--workdir: {workdir} " in refused("train", *federation, f"--workdir={workdir}")
        assert f"--workdir: {workdir} " in refused("pretrain", pretraining(here), f"--workdir={workdir}")


def test_an_empty_workdir_will_do_and_a_refusal_leaves_it_empty(refused, here, federation):
    (here / "out").mkdir()
    refused("train", *federation, "--config.partition.clients=1000")


# Other verbs ------------------------------------------------------------------------------------------


def test_evaluate_without_a_run(refused, here):
    assert "no config.json" in refused("evaluate", "--workdir=nowhere", "--quiet")
    (here / "run").mkdir()
    (here / "run" / "config.json").write_text("{")
    assert "is not JSON" in refused("evaluate", "--workdir=run", "--quiet")
    (here / "run" / "config.json").write_text('{"ruonds": 3}')
    assert "'ruonds'" in refused("evaluate", "--workdir=run", "--quiet")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--config.partition.clients=3"], ("unknown config key 'partition.clients'",)),
        (["--config.data.source=folder:nowhere"], ("folder:nowhere does not exist",)),
        (["--config.model.heads=3"], ("model.heads = 3", "model.width = 128")),
        (["--config.model.patch_size=5"], ("model.patch_size = 5", "data.image_size = 64")),
        (["--config.model.positions=8", "--quiet"], ("model.positions = 8", "at most 6")),
    ],
)
def test_pretraining(refused, here, monkeypatch, arguments, words):
    monkeypatch.setattr("fedrsclip_jax.pretrain.CAPTION_SAMPLE", 200)
    line = refused("pretrain", pretraining(here), "--workdir=out", *arguments)
    for word in words:
        assert word in line, line


def pretraining(folder: Path) -> str:
    file = folder / "pretraining.py"
    if not file.exists():
        file.write_text("def get_config():\n    return {'data': {'scenes': {'count': 64}}}\n")
    return f"--config={file.name}"


def test_pretraining_configurations_have_no_keys_of_a_federation():
    assert not hasattr(PretrainConfig(), "partition")  # or the case above tests nothing


# In a process of its own: the exit code that a shell sees, and what libraries print on the way -----------


def test_exit_code_of_an_unknown_key(here):
    code, out, err = started(here, "train", "--config.ruonds=3")
    check(code, out, err)
    assert "'rounds'" in err
    assert listing(here) == []


def test_exit_code_of_an_unknown_verb(here):
    check(*started(here, "trian"))


@pytest.mark.long
def test_hugging_face_name_without_network(here):
    code, out, err = started(
        here, "train", *SMALL, "--config.backbone=someone/some-clip", HF_HUB_OFFLINE="1", HF_HOME=str(here / "hub")
    )
    check(code, out, err)
    assert "'someone/some-clip'" in err
    assert "download it where there is a network and give its folder" in err
    assert not (here / "runs").exists()


@pytest.mark.long
def test_truncated_image_in_a_process_of_its_own(here, federation):
    photographs(here / "photos", {"river": 4, "lake": 4})
    broken = here / "photos" / "river" / "2.png"
    broken.write_bytes(broken.read_bytes()[:900])
    loud = [argument for argument in federation if argument != "--quiet"]
    before = listing(here)
    code, out, err = started(here, "train", *loud, "--config.data.source=folder:photos")
    told, _, refusal = err.rstrip("\n").rpartition("\n")
    check(code, out, f"{refusal}\n")
    assert told.startswith("CLIP reads "), "what was found out of the images before one of them was opened"
    assert os.path.join("photos", "river", "2.png") in err
    assert listing(here) == before
