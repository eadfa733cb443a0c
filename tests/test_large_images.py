"""One function prepares an image, for training, answers, certificates and exports; seen on a file of 2,310 pixels."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from fedrsclip_jax.clip.preprocess import SHORT_SIDE, load_preprocess, shrink
from fedrsclip_jax.data.decoding import decode
from fedrsclip_jax.export.chosen import choose
from fedrsclip_jax.export.pictures import take
from fedrsclip_jax.finished import open_run, restore
from fedrsclip_jax.predict.predictor import Request, predict
from fedrsclip_jax.progress import Progress
from fedrsclip_jax.task import encode_images
from tests.runs import PLAIN, finished

QUIET = Progress(quiet=True)
NEAR = 1e-3  # of logits, as a certificate asks


@pytest.fixture(scope="module")
def opened(tiny_folder, tmp_path_factory):
    """A run whose first image is large: its model, and that file."""
    workdir = finished(tmp_path_factory.mktemp("large") / "run", tiny_folder, PLAIN)
    path = workdir / "photos" / "class0" / "0.png"
    noise = np.random.default_rng(0).integers(0, 256, (75, 70, 3), np.uint8)
    Image.fromarray(np.tile(noise, (29, 33, 1))[:2150]).save(path)
    run = open_run(workdir, [])
    return choose(run, restore(run), None), path


@pytest.fixture(scope="module")
def trained(opened):
    """Logits of the large image by the features that training reads."""
    model, path = opened
    features = encode_images(model.run.config, model.run.task, QUIET)
    assert model.run.task.source.name(0) == str(path)
    return model.logits(np.asarray(features.plain[:1]))[0]


def odds(logits):
    shifted = np.exp(logits - logits.max())
    return shifted / shifted.sum()


def test_reducing_makes_a_difference(opened, trained):
    """Or what follows would hold without it."""
    from transformers.models.clip import CLIPImageProcessorPil

    model, path = opened
    image = decode(path.read_bytes())
    assert image.shape == (2150, 2310, 3)
    processor = CLIPImageProcessorPil.from_pretrained(model.run.task.folder)
    pixels = processor([image], return_tensors="np", input_data_format="channels_last")
    whole = np.moveaxis(np.asarray(pixels["pixel_values"], np.float32), 1, -1)
    logits = model.logits(np.asarray(model.run.task.clip.encode_image(jnp.asarray(whole))))[0]
    assert np.abs(logits - trained).max() > 10 * NEAR


def test_certificates_and_answers_prepare_it_as_training_does(opened, trained, tmp_path):
    model, path = opened
    np.testing.assert_allclose(model.logits(take(model.run).features)[0], trained, rtol=0, atol=NEAR)
    answers = tmp_path / "answers.jsonl"
    predict(Request(model.run.workdir, [path], format="jsonl", output=answers), [], QUIET)
    (line,) = map(json.loads, answers.read_text().splitlines())
    found = {entry["class"]: entry["probability"] for entry in line["top"]}
    np.testing.assert_allclose([found[name] for name in PLAIN], odds(trained), atol=1e-5)


def test_the_exported_classifier_prepares_it_as_training_does(opened, trained, tmp_path):
    torch = pytest.importorskip("torch", reason="a classifier is for PyTorch")
    from fedrsclip_jax.export.exporter import Request, export
    from fedrsclip_jax.export.torch_classifier import Classifier

    model, path = opened
    (certificate,) = export(Request(model.run.workdir, "classifier", tmp_path / "out"), [], QUIET)
    assert certificate["verified"]
    classifier = Classifier.from_folder(tmp_path / "out")
    array = decode(path.read_bytes())
    for image in (path, Image.fromarray(array), array):
        with torch.inference_mode():
            logits = classifier(classifier.preprocess([image]))[0].numpy()
        np.testing.assert_allclose(logits, trained, rtol=0, atol=NEAR)


@pytest.mark.parametrize("kind", ["counts.tif", "alpha.png", "palette.png", "grey.jpg", "large_counts.tif"])
def test_the_exported_classifier_reads_every_kind_of_file_as_training_does(tiny_folder, tmp_path, kind):
    pytest.importorskip("torch", reason="a classifier is for PyTorch")
    from fedrsclip_jax.export.torch_classifier import _rgb

    rng, path = np.random.default_rng(0), tmp_path / kind
    picture = {
        "counts.tif": lambda: Image.fromarray(rng.integers(200, 9000, (40, 50), np.uint16)),
        "large_counts.tif": lambda: Image.fromarray(np.tile(rng.integers(200, 9000, (50, 50), np.uint16), (42, 42))),
        "alpha.png": lambda: Image.fromarray(rng.integers(0, 256, (40, 50, 4), np.uint8)),
        "palette.png": lambda: Image.fromarray(rng.integers(0, 256, (40, 50, 3), np.uint8)).quantize(16),
        "grey.jpg": lambda: Image.fromarray(rng.integers(0, 256, (40, 50), np.uint8)),
    }[kind]()
    picture.save(path, **({"transparency": 3} if kind == "palette.png" else {}))
    ours = shrink(decode(path.read_bytes()))
    np.testing.assert_array_equal(np.asarray(_rgb(path)), ours)
    assert load_preprocess(tiny_folder)([ours]).shape == (1, 32, 32, 3)


def test_bands_in_an_order_that_training_finds_by_name_are_not_taken_as_they_stand(tmp_path):
    pytest.importorskip("torch", reason="a classifier is for PyTorch")
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

    from fedrsclip_jax.export.torch_classifier import _rgb

    bands = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    names = "".join(
        f'<Item name="DESCRIPTION" sample="{n}" role="description">{name}</Item>'
        for n, name in enumerate(("blue", "green", "red"))
    )
    tags = ImageFileDirectory_v2()
    tags[42112] = f"<GDALMetadata>{names}</GDALMetadata>"
    path = tmp_path / "bgr.tif"
    Image.fromarray(bands).save(path, tiffinfo=tags)
    ours = decode(path.read_bytes())
    np.testing.assert_array_equal(ours, bands[..., ::-1])
    with pytest.raises(ValueError, match="named bands"):
        _rgb(path)
    np.testing.assert_array_equal(np.asarray(_rgb(ours)), ours)


def test_a_picture_that_was_shrunk_stays_as_it_is():
    for side in (SHORT_SIDE, 2 * SHORT_SIDE - 1, 2 * SHORT_SIDE, 3 * SHORT_SIDE - 1, 5 * SHORT_SIDE + 3):
        small = shrink(np.zeros((side, side + 7, 3), np.uint8))
        assert SHORT_SIDE <= min(small.shape[:2]) < 2 * SHORT_SIDE
        assert shrink(small) is small


def test_nothing_else_prepares_images():
    """A second way to do it would drift from the first."""
    package = Path(__file__).parent.parent / "fedrsclip_jax"
    found = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if "CLIPImageProcessor" in path.read_text(encoding="utf-8")
    }
    assert found == {"clip/preprocess.py", "export/torch_classifier.py", "export/card.py"}
