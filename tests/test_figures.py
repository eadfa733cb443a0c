"""What an export says of itself: warnings of clients that saw few classes, and model cards. No PyTorch is needed."""

import json

import numpy as np
import pytest

from fedrsclip_jax import cli, compilation
from fedrsclip_jax.evaluate import calibration_error
from fedrsclip_jax.evidence import Evidence
from fedrsclip_jax.export import linear
from fedrsclip_jax.export.card import model_card
from fedrsclip_jax.export.chosen import choose
from fedrsclip_jax.export.figures import Figures, Scorer, remembered, warning
from fedrsclip_jax.export.places import place_name, source_name
from fedrsclip_jax.finished import open_run, restore
from fedrsclip_jax.progress import Progress
from fedrsclip_jax.task import divide, encode_images
from tests.runs import ACCENTS, CLIENTS, finished

NAMES = tuple(f"sort {i} of land cover" for i in range(20))

TRAIN = np.array([[1, 1, 1, 1, 1], [0, 3, 0, 0, 0], [0, 9, 0, 0, 0], [2, 0, 1, 0, 1]])  # by client and class
TEST = np.array([[1, 1, 1, 1, 1], [0, 1, 0, 0, 0], [0, 5, 0, 0, 0], [1, 0, 1, 0, 1]])


def keep_evidence(workdir):
    truth = np.repeat(np.arange(5), TEST.sum(axis=0))
    Evidence(
        truth=truth,
        guess=truth,
        owners=np.arange(CLIENTS),
        train=TRAIN,
        test=TEST,
        zero_shot=np.zeros((5, 16), np.float32),
        shared=np.zeros((0, 16), np.float32),
        movers=np.zeros(0, np.int64),
        private=np.zeros((0, 5, 16), np.float32),
        wrong=np.zeros(0, np.int64),
        pictures=np.zeros((0, 112, 112, 3), np.uint8),
    ).save(workdir)
    summary = json.loads((workdir / "summary.json").read_text())
    summary |= {
        "uplink_params_per_client_round": 128,
        "zero_shot": {"accuracy": 0.45},
        "global": {"accuracy": 0.61, "macro_f1": 0.57, "ece": 0.083},
        "personalised": {"per_client": [0.6, None, 1.0, 0.8]},
        "personal_on_pooled": {"per_client": [0.5, 0.4, 0.286, 0.55]},
    }
    (workdir / "summary.json").write_text(json.dumps(summary))


@pytest.fixture(scope="module")
def run(tiny_folder, tmp_path_factory):
    workdir = finished(tmp_path_factory.mktemp("figures") / "run", tiny_folder, ACCENTS)
    keep_evidence(workdir)
    return open_run(workdir, [], images=False)


@pytest.fixture(scope="module")
def models(run):
    restored = restore(run)
    return {client: choose(run, restored, client) for client in (None, 0, 1, 2)}


def test_a_client_that_saw_few_classes_is_warned_of(run, models):
    def said(client):
        return warning(models[client], remembered(run, models[client].round, client), "leave --client out")

    assert said(None) is said(0) is None
    assert said(1).startswith("client 1 never took part")
    assert said(2) == (
        "client 2 trained on 1 of 5 classes (Fährhafen); it is right on 28.6 % of all test images; leave --client out, "
        "which is right on 61.0 %"
    )


def test_predict_and_export_warn_before_anybody_believes_them(run, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(compilation, "keep_on_disk", lambda: None)
    monkeypatch.chdir(tmp_path)
    image = run.workdir / "photos" / "class0" / "0.png"
    place = f"--workdir={run.workdir}"
    for client, warned in ((2, True), (0, False)):
        said = f"warning: client {client} trained on 1 of 5 classes"
        assert cli.main(["predict", "--quiet", place, f"--client={client}", str(image)]) == 0
        out, err = capfd.readouterr()
        assert (said in err) == ("warning" in err) == warned
        assert "warning" not in out
        words = [f"--client={client}", "--format=safetensors", f"--output=out{client}"]
        assert cli.main(["export", "--quiet", place, *words]) == 0
        assert (said in capfd.readouterr().out) == warned
        certificate = json.loads((tmp_path / f"out{client}" / "certificate.json").read_text())
        assert ("warning" in certificate) == warned
    assert cli.main(["export", "--quiet", place, "--all-clients", "--format=safetensors", "--output=all"]) == 0
    assert "warning: 1 of 2 clients trained on fewer than half of the classes" in capfd.readouterr().out


def card(model, figures, kind="classifier"):
    head = linear.read_off(model)
    return model_card(model, kind, head, np.linalg.norm(head.weights, axis=1), figures, "a copy is in `image_tower`")


def test_the_card_of_a_client_gives_its_figures_beside_zero_shot(run, models):
    text = card(models[2], remembered(run, models[2].round, 2))
    assert "**This client trained on 1 of 5 classes (Fährhafen)." in text
    for row in (
        "| this model | all test images of all clients | 14 | 28.6 % |",
        "| this model | this client's own test images | 5 | 100.0 % |",
        "| zero-shot CLIP, a hand-written sentence a class | all test images of all clients | 14 | 45.0 % |",
        "Classes that this client trained on: 1 of 5 (Fährhafen).",
        "Accuracy on the 5 test images of the client itself says little: one image is 20 percentage points.",
        "the calibration error was not measured",
        "\nlicense: other\n",
        "## Licence",
        "fedrsclip_jax ",
        "jax ",
    ):
        assert row in text, row
    import datetime

    assert f"Exported on {datetime.date.today().year}-" in text
    assert str(run.config.backbone) not in text


def test_the_card_of_the_federation(run, models):
    text = card(models[None], remembered(run, models[None].round, None), "onnx")
    assert "| this model | all test images of all clients | 14 | 61.0 % |" in text
    assert "Macro-F1 of this model on all test images of all clients: 57.0 %." in text
    assert "off by 8.3 percentage points on average (expected calibration error" in text
    assert "trained on" not in text
    assert 'InferenceSession("classifier.onnx")' in text
    # Of another round, or of an older run, nothing is made up.
    assert "| not known |" in card(models[None], Figures("test"))
    assert remembered(run, models[None].round - 1, None).accuracy is None
    assert remembered(run, models[2].round - 1, 2).trained_on == ("Fährhafen",)


def test_figures_are_measured_where_the_features_are_in_the_cache(tiny_folder, tmp_path):
    workdir = finished(tmp_path / "run", tiny_folder, NAMES, **{"partition.min_examples": 1})
    run = open_run(workdir, [])
    model = choose(run, restore(run), 2)
    assert Scorer(run).of(model) == remembered(run, model.round, 2)  # nothing is encoded for a card
    features = encode_images(run.config, run.task, Progress(quiet=True))
    assert Scorer(run).of(model).ece is None  # the run has kept no partition
    clients = divide(run.config, run.task)
    clients.save(workdir / "partition.npz")
    found = Scorer(run).of(model)

    pooled, labels = clients.pooled, run.task.labels
    logits = model.logits(np.asarray(features.plain[pooled]))
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    odds /= odds.sum(axis=1, keepdims=True)
    right = logits.argmax(axis=1) == labels[pooled]
    assert (found.images, found.accuracy) == (len(pooled), right.mean())
    assert found.ece == pytest.approx(calibration_error(odds.max(axis=1), right), abs=1e-6)
    text = np.asarray(run.task.backbone(run.config.method).zero_shot)
    assert found.zero_shot == np.mean((features.plain[pooled] @ text.T).argmax(axis=1) == labels[pooled])
    train, test = clients.partition.counts(labels, len(NAMES))
    assert found.trained_on == tuple(name for name, count in zip(NAMES, train[2], strict=True) if count)
    assert found.own_images == test[2].sum()


def test_places_go_by_the_name_that_others_know(tmp_path):
    (tmp_path / "my_clip").mkdir()
    assert place_name(str(tmp_path / "my_clip")) == "my_clip"
    assert place_name("openai/clip-vit-base-patch16") == "openai/clip-vit-base-patch16"
    assert place_name("tiny") == "tiny"
    spec = f"folder:{tmp_path}/a,scenes,tfds:eurosat,folder:b/c/"
    assert source_name(spec) == "folder:a,scenes,tfds:eurosat,folder:c"
