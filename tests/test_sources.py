"""Sources: class folders of every kind, TensorFlow Datasets without TensorFlow, subsets and halves."""

import hashlib
import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fedrsclip_jax.data.decoding import decode
from fedrsclip_jax.data.folder import Folder
from fedrsclip_jax.data.names import readable_name
from fedrsclip_jax.data.sources import ImageSource, Subset, fingerprint, half, named_spec, open_source, split_spec
from fedrsclip_jax.data.tfds import Tfds
from fedrsclip_jax.errors import InputError, install

AID = Path(__file__).resolve().parents[2] / "shared" / "data" / "aid"
PIXELS = np.random.default_rng(0).integers(0, 256, (40, 12, 13, 3), dtype=np.uint8)

repeatable = settings(deadline=None, derandomize=True, max_examples=40)


def encoded(i: int, form: str = "png") -> bytes:
    file = io.BytesIO()
    Image.fromarray(PIXELS[i]).save(file, form)
    return file.getvalue()


def write(root: Path, **classes: int) -> Path:
    """A folder with that many different png images per class."""
    number = 0
    for name, count in classes.items():
        (root / name).mkdir(parents=True)
        for i in range(count):
            (root / name / f"{name}_{i + 1}.png").write_bytes(encoded(number))
            number += 1
    return root


def refusal(*needles: str):
    """An InputError of one line that names each of these."""
    return pytest.raises(InputError, check=lambda e: "\n" not in str(e) and all(n in str(e) for n in needles))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("BareLand", "bare land"),
        ("storage_tanks", "storage tanks"),
        ("annual-crop", "annual crop"),
        ("Airport", "airport"),
        ("SeaLake", "sea lake"),
        ("USAirport", "us airport"),
        ("parkinglot", "parking lot"),
        ("dense residential", "dense residential"),
    ],
)
def test_class_names_become_words(name, words):
    assert readable_name(name) == words


def test_folder_in_natural_order_with_every_extension_and_depth(tmp_path):
    root = write(tmp_path / "set", BareLand=0, storage_tanks=0)
    for i, name in enumerate(["b_10.JPG", "b_2.jpeg", "b_1.png", "deep/er/b_3.TIF", "deep/b_4.tiff"]):
        path = root / "BareLand" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(i, {"jpg": "jpeg", "jpeg": "jpeg", "png": "png"}.get(path.suffix[1:].lower(), "tiff")))
    for i, name in enumerate(["t1.png", "t2.png"]):
        (root / "storage_tanks" / name).write_bytes(encoded(10 + i))
    for hidden in (".hidden.png", "._t1.png", "notes.txt", "Thumbs.db"):
        (root / "storage_tanks" / hidden).write_bytes(b"no image")
    (root / ".git").mkdir()
    source = Folder(root)
    assert isinstance(source, ImageSource)
    assert source.class_names == ("bare land", "storage tanks")
    assert source.labels.dtype == np.int32
    assert source.labels.tolist() == [0] * 5 + [1] * 2
    names = [Path(source.name(i)).name for i in range(len(source))]
    assert names == ["b_1.png", "b_2.jpeg", "b_10.JPG", "b_4.tiff", "b_3.TIF", "t1.png", "t2.png"]
    assert (source.domain_names, source.domains.tolist()) == (("all",), [0] * 7)
    assert source.digests[0] == hashlib.sha256((root / "BareLand/b_1.png").read_bytes()).hexdigest()
    assert np.array_equal(source.image(0), PIXELS[2])
    assert all(source.image(i).shape == (12, 13, 3) for i in range(7))


def test_class_names_from_a_file(tmp_path):
    root = write(tmp_path, A=2, B=2, C=2, DeepWater=2)
    (root / "classnames.txt").write_text("# comment\n\nA\tairport  hall\nB = baseball diamond\nC  circular farmland\n")
    assert Folder(root).class_names == ("airport hall", "baseball diamond", "circular farmland", "deep water")
    (root / "classnames.txt").write_text("Bee = bee\n")
    with refusal("classnames.txt line 1", "'Bee'", "'B'"):
        Folder(root)
    (root / "classnames.txt").write_text("A = x\nB\n")
    with refusal("classnames.txt line 2", "B = some words"):
        Folder(root)
    (root / "classnames.txt").write_text("A = x\nB = x\n")
    with refusal("'A'", "'B'", "'x'", "merge"):
        Folder(root)


def test_refused_folders(tmp_path):
    with refusal(str(tmp_path / "none"), "does not exist", "give"):
        Folder(tmp_path / "none")
    (tmp_path / "file").write_text("x")
    with refusal("file", "is a file"):
        Folder(tmp_path / "file")
    flat = tmp_path / "flat"
    flat.mkdir()
    (flat / "a.png").write_bytes(encoded(0))
    with refusal(str(flat), "no class folders", "put"):
        Folder(flat)
    with refusal("no images", "jpg, jpeg, png, tif, tiff"):
        Folder(write(tmp_path / "empty", A=0, B=0))
    with refusal("'B'", "1 image", "needs two", "add images"):
        Folder(write(tmp_path / "single", A=2, B=1))
    with refusal("'Images'", "one level deeper", str(tmp_path / "outer" / "Images")):
        Folder(write(tmp_path / "outer" / "Images", A=2, B=2).parent)
    with refusal("'BareLand'", "'bare_land'", "'bare land'", "classnames.txt"):
        Folder(write(tmp_path / "twins", BareLand=2, bare_land=2))


def test_every_kind_of_picture_becomes_rgb(tmp_path):
    root = write(tmp_path, A=2, B=2)
    colour = PIXELS[5]
    kinds = {
        "grey.png": Image.fromarray(colour[..., 0]),
        "rgba.png": Image.fromarray(np.dstack([colour, colour[..., :1]])),
        "palette.png": Image.fromarray(colour).quantize(16),
        "bits.png": Image.fromarray(colour[..., 0] > 127),
        "counts.tif": Image.fromarray(np.arange(400, 400 + 12 * 13, dtype=np.uint16).reshape(12, 13)),
        "counts.png": Image.fromarray(np.arange(400, 400 + 12 * 13, dtype=np.uint16).reshape(12, 13)),
        "float.tif": Image.fromarray(np.linspace(0, 1e-3, 156, dtype=np.float32).reshape(12, 13)),
        "flat.tif": Image.fromarray(np.full((12, 13), 900, np.uint16)),
        "cmyk.jpg": Image.fromarray(colour).convert("CMYK"),
    }
    for name, picture in kinds.items():
        picture.save(root / "A" / name)
    Image.fromarray(colour).quantize(16).save(root / "A" / "clear.png", transparency=bytes(range(16)))
    source = Folder(root)
    images = {Path(source.name(i)).name: source.image(i) for i in range(len(source))}
    assert all(image.dtype == np.uint8 and image.shape == (12, 13, 3) for image in images.values())
    assert np.array_equal(images["grey.png"], np.repeat(colour[..., :1], 3, axis=-1))
    assert np.array_equal(images["rgba.png"], colour)
    for name in ("counts.tif", "counts.png", "float.tif"):  # a ramp is stretched over the whole range
        flat = images[name][..., 0].ravel().astype(int)
        assert flat[0] == 0
        assert flat[-1] == 255
        assert 120 < flat[78] < 136
        assert (np.diff(flat) >= 0).all()
        # 2 % are cut off at either end, which is about 3 of 156 pixels
        assert flat[6] > 0
    assert np.ptp(images["flat.tif"]) == 0


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_tiff_that_is_too_large_needs_no_other_reader(monkeypatch):
    monkeypatch.setitem(sys.modules, "rasterio", None)
    file = io.BytesIO()
    Image.new("1", (10_001, 10_000)).save(file, "TIFF", compression="group4")
    with pytest.raises(ValueError, match=r"10,001 x 10,000 pixels are more than 100,000,000; cut it into tiles$"):
        decode(file.getvalue())
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)  # of which Pillow refuses the double
    with pytest.raises(ValueError, match=r"100010000 pixels.* cut it into tiles$"):
        decode(file.getvalue())


def test_unreadable_images_are_named(tmp_path):
    root = write(tmp_path, A=4, B=2)
    whole = encoded(30, "jpeg")
    for name, data in {"A_1.png": whole[: len(whole) // 2], "A_2.png": b"", "A_3.png": b"text"}.items():
        (root / "A" / name).write_bytes(data)
    (root / "A" / "A_5.jpg").write_bytes(whole[:-20])
    source = Folder(root)
    for i in (0, 1, 2, 4):
        with refusal(source.name(i), "--config.data.skip_unreadable=True"):
            source.image(i)
    assert source.image(3).shape == (12, 13, 3)
    with pytest.raises(ValueError, match="known format"):
        decode(encoded(0)[:40])


def test_open_source(tmp_path):
    options = {"scenes_count": 40, "scenes_size": 16, "scenes_domains": (), "seed": 0}
    root = write(tmp_path, A=2, B=2)
    assert len(open_source(f"folder:{root}", **options)) == 4
    for spec in ("scene", "folder", "folder:", "tfds:", "tfds", "scenes:x", "", f"{root}"):
        with refusal(repr(spec), "scenes, folder:PATH or tfds:NAME"):
            open_source(spec, **options)


def test_fingerprint_changes_with_images_labels_and_names(tmp_path):
    first = fingerprint(Folder(write(tmp_path / "1", A=2, B=3)))
    assert first == fingerprint(Folder(write(tmp_path / "2", A=2, B=3)))
    assert first != fingerprint(Folder(write(tmp_path / "3", A=3, B=2)))
    assert first != fingerprint(Folder(write(tmp_path / "4", A=2, C=3)))
    source = Folder(tmp_path / "1")
    assert first != fingerprint(Subset(source, np.array([0, 1, 2, 3])))
    assert first == fingerprint(Subset(source, np.arange(5)))


class Listed:
    """A source without pictures."""

    def __init__(self, labels, digests):
        self.labels = np.array(labels, np.int32)
        self.digests = list(digests)
        self.class_names = tuple(f"class {c}" for c in range(int(self.labels.max()) + 1))
        self.domain_names = ("all",)
        self.domains = np.zeros(len(self.labels), np.int32)

    def __len__(self):
        return len(self.labels)

    def image(self, i):
        return PIXELS[i]

    def name(self, i):
        return f"listed {i}"


def test_subset_is_a_view(tmp_path):
    source = Folder(write(tmp_path, A=3, B=3))
    some = Subset(source, np.array([4, 1]))
    assert isinstance(some, ImageSource)
    assert (len(some), some.labels.tolist(), some.class_names) == (2, [1, 0], ("a", "b"))
    assert some.digests == [source.digests[4], source.digests[1]]
    assert some.name(0) == source.name(4)
    assert np.array_equal(some.image(1), source.image(1))


@repeatable
@given(
    rows=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 25)), min_size=1, max_size=80),
    seed=st.integers(0, 10),
)
def test_halves_share_no_image(rows, seed):
    source = Listed([label for label, _ in rows], [f"{d:02x}" for _, d in rows])
    pretrain, federate = half(source, "pretrain", seed), half(source, "federate", seed)
    assert not set(pretrain.digests) & set(federate.digests)
    assert sorted([*pretrain.indices, *federate.indices]) == list(range(len(source)))
    owner = {}  # the class of a digest is that of its first image
    for label, digest in zip(source.labels, source.digests, strict=True):
        owner.setdefault(digest, label)
    for c in range(4):
        distinct = {d for d, label in owner.items() if label == c}
        assert len(distinct & set(pretrain.digests)) == len(distinct) // 2


def test_half_depends_on_the_seed_and_not_on_the_order_of_files():
    digests = [f"{d:04x}" for d in range(60)]
    source = Listed([0] * 60, digests)
    one = half(source, "pretrain", 1)
    assert set(one.digests) == set(half(Listed([0] * 60, digests[::-1]), "pretrain", 1).digests)
    assert set(one.digests) != set(half(source, "pretrain", 2).digests)
    with refusal("'train'", "'pretrain' and 'federate'"):
        half(source, "train", 0)


def prepare(root: Path, splits: dict[str, list[int]], **changes) -> Path:
    """A small image + label set as TFDS leaves it on disk, made without TensorFlow."""
    import tensorflow_datasets as tfds
    from array_record.python.array_record_module import ArrayRecordWriter
    from tensorflow_datasets.core import example_serializer

    folder = root / "toy_scenes" / "1.0.0"
    folder.mkdir(parents=True)
    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "label": tfds.features.ClassLabel(names=["golfcourse", "BareLand"]),
        }
    )
    features.save_config(folder)
    serializer = example_serializer.ExampleSerializer(features.get_serialized_info())
    for split, numbers in splits.items():
        writer = ArrayRecordWriter(str(folder / f"toy_scenes-{split}.array_record-00000-of-00001"), "group_size:1")
        for number in numbers:
            example = {"label": number % 2, "image": io.BytesIO(encoded(number))}
            writer.write(serializer.serialize_example(features.encode_example(example)))
        writer.close()
    info = {
        "name": "toy_scenes",
        "version": "1.0.0",
        "fileFormat": "array_record",
        "moduleName": "toy_scenes",
        "splits": [
            {
                "name": split,
                "shardLengths": [str(len(numbers))],
                "numBytes": "1",
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
            }
            for split, numbers in splits.items()
        ],
    }
    (folder / "dataset_info.json").write_text(json.dumps(info | changes))
    return root


def test_tfds_without_tensorflow(tmp_path):
    prepare(tmp_path, {"train": [0, 1, 2, 3, 4], "test": [7, 8, 0]})
    source = Tfds("toy_scenes", tmp_path)
    assert isinstance(source, ImageSource)
    assert source.class_names == ("golf course", "bare land")
    assert source.labels.tolist() == [1, 0, 0, 0, 1, 0, 1, 0]  # the splits in the order of their names
    for i, number in enumerate([7, 8, 0, 0, 1, 2, 3, 4]):
        assert np.array_equal(source.image(i), PIXELS[number])
        assert source.digests[i] == hashlib.sha256(encoded(number)).hexdigest()
    assert source.digests[2] == source.digests[3]
    assert (source.name(0), source.name(4)) == ("tfds:toy_scenes test[0]", "tfds:toy_scenes train[1]")
    assert len(fingerprint(source)) == 64


def test_tfds_never_imports_tensorflow(tmp_path):
    """In a process of its own, as other tests may have imported TensorFlow; JAX is not needed either."""
    prepare(tmp_path, {"train": [0, 1, 2, 3]})
    script = (
        "import sys; from fedrsclip_jax.data.tfds import Tfds; s = Tfds('toy_scenes', sys.argv[1]); "
        "assert s.image(3).shape == (12, 13, 3); assert not {'tensorflow', 'jax'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True)


def test_refused_tfds(tmp_path):
    for name in ("uc_merced", "eurosat/rgb"):  # known, but not prepared
        with refusal(
            name,
            "not prepared",
            install("tfds"),
            f"fedrsclip data --name={name} --config.data.tfds_dir={tmp_path}",
        ):
            Tfds(name, tmp_path)
    with refusal("tfds:uc_mercd", "'uc_merced'"):
        Tfds("uc_mercd", tmp_path)
    with refusal("tfds:eurosat/nope", "nope not found"):
        Tfds("eurosat/nope", tmp_path)
    with refusal("tfds:eurosat/all", "'image' and 'label'", "eurosat/rgb"):
        Tfds("eurosat/all", tmp_path)
    prepare(tmp_path / "old", {"train": [0, 1]}, fileFormat="tfrecord")
    with refusal("toy_scenes", "cannot be read as array_record", "delete"):
        Tfds("toy_scenes", tmp_path / "old")


@pytest.mark.skipif(not AID.is_dir(), reason="AID is not on this machine (../shared/data/aid)")
def test_aid():
    source = Folder(AID)
    assert (len(source), len(source.class_names)) == (10_000, 30)
    assert source.class_names[1] == "bare land"
    assert source.image(0).shape == (150, 150, 3)
    by_name = {Path(source.name(i)).stem: i for i in range(len(source))}
    twins = [by_name["industrial_203"], by_name["industrial_205"]]
    assert len(set(source.digests)) == 9_999
    pretrain, federate = half(source, "pretrain", 0), half(source, "federate", 0)
    assert not set(pretrain.digests) & set(federate.digests)
    assert len(pretrain) + len(federate) == 10_000
    assert sum(set(twins) <= set(part.indices.tolist()) for part in (pretrain, federate)) == 1
    counts = np.bincount(source.labels)
    assert (np.abs(np.bincount(pretrain.labels) - counts / 2) <= 1).all()


def test_a_folder_may_be_given_by_its_path_alone_or_from_home(tmp_path, monkeypatch):
    for name in ("river", "lake"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(2):
            Image.new("RGB", (20, 20), (i, 0, 0)).save(tmp_path / "photos" / name / f"{i}.png")
    monkeypatch.setenv("HOME", str(tmp_path))
    for spec in (str(tmp_path / "photos"), "~/photos", "folder:~/photos"):
        (one,) = split_spec(spec)
        assert one.removeprefix("folder:") == spec.removeprefix("folder:")
        source = open_source(one, scenes_count=32, scenes_size=32, scenes_domains=(), seed=0)
        assert len(source) == 4
    assert named_spec(f"{tmp_path / 'photos'},uc_merced") == f"folder:{tmp_path / 'photos'},tfds:uc_merced"
    assert split_spec("scenes,folder:a,b,tfds:c") == ["scenes", "folder:a,b", "tfds:c"]
