"""The real builders on look-alikes of the raw layouts, read back without TensorFlow; what is missing or wrong."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fedrsclip_jax.data.decoding import decode
from fedrsclip_jax.data.names import readable_name
from fedrsclip_jax.data.preparation import prepare
from fedrsclip_jax.data.published import PUBLISHED, published
from fedrsclip_jax.data.tfds import Tfds, find_builder, manual_folder
from fedrsclip_jax.errors import install
from tests import lookalikes

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    """TFDS's folder after the preparation of all four, in a process of its own: TensorFlow stays out of this one."""
    if importlib.util.find_spec("tensorflow") is None:
        pytest.skip("preparing needs TensorFlow: pip install 'fedrsclip_jax[tfds]'")
    folder = tmp_path_factory.mktemp("tfds")
    words = [sys.executable, "-m", "tests.lookalikes", str(folder)]
    done = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "labels", "side", "form"),
    [
        ("uc_merced", lookalikes.UC_MERCED, 40, "png"),
        ("eurosat/rgb", lookalikes.EUROSAT, 64, "jpeg"),
        ("resisc45", lookalikes.RESISC45, 256, "jpeg"),
        ("optimal31", lookalikes.CLASSES, 32, "jpeg"),
    ],
)
def test_images_and_labels_come_back(prepared, name, labels, side, form):
    source = Tfds(name, prepared)
    assert len(source) == lookalikes.EACH * len(labels)
    wanted = {}
    for label in labels:
        for i in range(lookalikes.EACH):
            picture = lookalikes.picture(name.partition("/")[0], label, i, side)
            wanted[decode(lookalikes.encoded(picture, form)).tobytes()] = readable_name(label)
    found = {source.image(i).tobytes(): source.class_names[source.labels[i]] for i in range(len(source))}
    assert found == wanted
    assert len(source.class_names) == PUBLISHED[name].classes


@pytest.mark.long
def test_an_archive_that_is_not_the_published_one(prepared):
    refused = json.loads((prepared / "refused.json").read_text())
    assert list(refused) == ["uc_merced", "eurosat/rgb"]
    for name, line in refused.items():
        assert "\n" not in line
        assert all(part in line for part in (name, "has wrong checksum", PUBLISHED[name].page, "put it, packed, into"))


@pytest.mark.long
def test_a_prepared_set_is_described_without_tensorflow(prepared, tmp_path):
    script = (
        "import sys; from fedrsclip_jax import cli; code = cli.main(sys.argv[1:]); "
        "assert 'tensorflow' not in sys.modules; sys.exit(code)"
    )
    words = [
        "data",
        "--name=uc_merced,eurosat/rgb",
        f"--config.data.tfds_dir={prepared}",
        "--config.partition.clients=2",
    ]
    words += ["--config.partition.kind=domain", "--config.partition.min_examples=1", f"--output={tmp_path / 'it.png'}"]
    done = subprocess.run([sys.executable, "-c", script, *words], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "40 x 40 (63), 64 x 64 (30)" in done.stdout
    assert "images by source: uc_merced 63, eurosat/rgb 30" in done.stdout
    assert "tfds:uc_merced was published with 2,100 images and has 63 here" in done.stdout
    assert re.search(r"freeway +6 += +highway", done.stdout)
    assert (tmp_path / "it.png").stat().st_size > 1000


def test_builders_have_as_many_classes_as_published(tmp_path):
    for name, known in PUBLISHED.items():
        builder = find_builder(name, tmp_path)
        assert builder.info.features["label"].num_classes == known.classes
        assert published(f"{name}:{builder.version}") is known
        assert manual_folder(builder) == tmp_path / "downloads" / "manual"
    assert published("eurosat") is PUBLISHED["eurosat/rgb"]
    assert published("cifar10") is None


@pytest.mark.parametrize(("name", "folder"), [("resisc45", "NWPU-RESISC45"), ("optimal31", "OPTIMAL-31")])
def test_what_is_downloaded_by_hand_and_where_to(tmp_path, refused, name, folder):
    manual = tmp_path / "downloads" / "manual"
    with refused(name, PUBLISHED[name].page, manual / folder, "CLASS/*.jpg"):
        prepare(name, tmp_path)
    with refused(PUBLISHED[name].page, manual / folder, "fedrsclip data", f"--name={name}"):
        Tfds(name, tmp_path)
    assert not list(tmp_path.iterdir())


def test_no_network(tmp_path, refused, monkeypatch):
    for variable in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")  # where nobody listens
    monkeypatch.setenv("no_proxy", "")
    for name in ("uc_merced", "eurosat/rgb"):
        archive = PUBLISHED[name].file
        with refused(name, "refused", archive, tmp_path / "downloads" / "manual", "put it, packed"):
            prepare(name, tmp_path)
    assert not list(tmp_path.iterdir())


def test_optimal31_with_a_class_too_few_or_too_many(tmp_path, refused):
    manual = tmp_path / "downloads" / "manual"
    lookalikes.optimal31(manual)
    images = manual / "OPTIMAL-31" / "Images"
    (images / "harbor").rename(images / "harbour")
    with refused("harbour", "nearest is 'harbor'", "move it away"):
        prepare("optimal31", tmp_path)
    (images / "harbour").rename(tmp_path / "elsewhere")
    with refused("lacks 1 of its 31 classes", "'harbor'", PUBLISHED["optimal31"].page):
        prepare("optimal31", tmp_path)


def test_without_tensorflow(tmp_path, refused, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", None)  # Python's way to say that there is none
    lookalikes.optimal31(tmp_path / "downloads" / "manual")
    with refused("optimal31", "needs tensorflow", install("tfds")):
        prepare("optimal31", tmp_path)


def test_pictures_of_a_set_are_told_apart():
    """Or the tests above could not fail."""
    first, second = (np.asarray(lookalikes.picture("uc_merced", "beach", i, 8)) for i in range(2))
    assert not np.array_equal(first, second)
