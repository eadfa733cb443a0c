"""Folders as people have them: splits, domains, other kinds of files; each is recognised and said, none is silent."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import fedrsclip_jax as frs
from fedrsclip_jax import cli, remarks
from fedrsclip_jax import config as configuration
from fedrsclip_jax.data.folder import Folder
from fedrsclip_jax.data.joined import Joined
from fedrsclip_jax.data.layout import SIDES
from fedrsclip_jax.data.sources import Subset, sides_of
from fedrsclip_jax.task import divide_images, load_source, split

RNG = np.random.default_rng(3)


def picture(form: str = "png") -> bytes:
    file = io.BytesIO()
    Image.fromarray(RNG.integers(0, 255, (12, 13, 3), np.uint8)).save(file, form)
    return file.getvalue()


def write(root: Path, *folders: str, each: int = 3) -> Path:
    for folder in folders:
        (root / folder).mkdir(parents=True)
        for i in range(each):
            (root / folder / f"{i}.png").write_bytes(picture())
    return root


def config(source: Path, **keys: object) -> configuration.Config:
    given = {"data.source": f"folder:{source}", "partition.clients": 1, "partition.min_examples": 1, **keys}
    return configuration.resolve(configuration.Config, {}, [(key, str(value)) for key, value in given.items()])


def sides_by_name(source) -> dict[str, str]:
    return {source.name(i): SIDES[side] for i, side in enumerate(source.sides)}


@pytest.mark.parametrize(
    "names", [("train", "test"), ("train", "val", "test"), ("Train", "valid", "Test"), ("train", "val")]
)
def test_a_folder_of_a_split_is_used_as_it_is_given(tmp_path, names):
    write(tmp_path, *(f"{name}/{kind}" for name in names for kind in ("forest", "river")))
    settings = config(tmp_path)
    source = load_source(settings.data)
    assert source.class_names == ("forest", "river")
    assert {Path(name).parts[-3].lower()[:3] + side[:3] for name, side in sides_by_name(source).items()} <= {
        "tratra",
        "testes",
        "valval",
    }
    train, test = split(settings, source)
    assert {Path(source.name(int(i))).parts[-3] for i in train} == {names[0]}
    assert {Path(source.name(int(i))).parts[-3] for i in test} == {names[-1]}
    assert len(train) == len(test) == 6
    # Another seed draws nothing else, as nothing is drawn.
    assert np.array_equal(split(config(tmp_path, seed=5), source)[1], test)
    assert any("brings a split" in said for said in remarks.of_images(settings, source))
    # Views have the sides of their images.
    assert np.array_equal(sides_of(Subset(source, np.array([1, 0]))), source.sides[[1, 0]])


def test_validation_of_a_given_split(tmp_path):
    write(tmp_path, *(f"{side}/{kind}" for side in ("train", "val", "test") for kind in "ab"))
    settings = config(tmp_path, **{"eval.split": "validation"})
    source = load_source(settings.data)
    train, scored = split(settings, source)
    assert {Path(source.name(int(i))).parts[-3] for i in scored} == {"val"}
    assert {Path(source.name(int(i))).parts[-3] for i in train} == {"train"}
    # Without val/ it is drawn from the training images, and the test images are left alone.
    for path in (tmp_path / "val").rglob("*.png"):
        path.unlink()
    source = load_source(settings.data)
    train, scored = split(settings, source)
    assert {Path(source.name(int(i))).parts[-3] for i in [*train, *scored]} == {"train"}
    assert len(train) + len(scored) == 6
    assert not set(train) & set(scored)


def test_what_draws_a_split_is_refused_where_the_folders_are_one(tmp_path, refused):
    write(tmp_path, *(f"{side}/{kind}" for side in ("train", "test") for kind in "ab"), each=5)
    images, few = frs.load_images(tmp_path), {"clients": 1, "min_examples": 1}
    for key, value in (("test_fraction", 0.4), ("split_seed", 3)):
        with refused(f"{key}: the folders of these images are a split", "split='drawn'"):
            frs.make_clients(images, **few, **{key: value})
        # Validation images are drawn where there is no val/.
        before, after = (frs.make_clients(images, split="validation", **few, **keys) for keys in ({}, {key: value}))
        assert after.digest() != before.digest()
    frs.make_clients(frs.load_images(tmp_path, split="drawn"), test_fraction=0.4, **few)


@pytest.mark.long
def test_validation_images_that_a_run_left_alone_can_be_scored(tmp_path, tiny_folder, capfd):
    """Those of val/ are neither trained nor scored where there is test/; without val/ they were trained on."""
    flags = ["--config.method.name=promptfl", f"--config.backbone={tiny_folder}", "--config.rounds=1", "--quiet"]
    flags += ["--config.partition.clients=1", "--config.partition.min_examples=1"]
    flags += ["--config.seeds=1", "--config.baselines="]
    for sides, code in ((("train", "val", "test"), 0), (("train", "test"), 2)):
        photos, run = tmp_path / f"of{len(sides)}", tmp_path / f"run{len(sides)}"
        write(photos, *(f"{side}/{kind}" for side in sides for kind in "ab"))
        assert cli.main(["train", *flags, f"--config.data.source=folder:{photos}", f"--workdir={run}"]) == 0
        capfd.readouterr()
        assert cli.main(["evaluate", "--quiet", f"--workdir={run}", "--split=validation"]) == code
        out, err = capfd.readouterr()
        assert ("on validation images" in out) == (code == 0)
        assert ("has trained on its validation images" in err) == (code == 2)


def test_a_split_can_be_drawn_or_demanded(tmp_path, refused):
    write(tmp_path / "given", *(f"{side}/{kind}" for side in ("train", "test") for kind in "ab"))
    drawn = config(tmp_path / "given", **{"data.split": "drawn"})
    source = load_source(drawn.data)
    assert len({Path(source.name(int(i))).parts[-3] for i in split(drawn, source)[0]}) == 2
    plain = config(write(tmp_path / "plain", "a", "b"), **{"data.split": "folder"})
    with refused("data.split=folder", "train/", "leave"):
        split(plain, load_source(plain.data))
    joined = Joined([source, load_source(plain.data)], ["folder:given", "folder:plain"])
    with refused("bring a split", str(tmp_path / "plain"), "data.split=drawn"):
        split(config(tmp_path / "given"), joined)


def test_images_on_both_sides_are_told(tmp_path):
    write(tmp_path, *(f"{side}/{kind}" for side in ("train", "test") for kind in "ab"))
    (tmp_path / "test/a/0.png").write_bytes((tmp_path / "train/a/1.png").read_bytes())
    settings = config(tmp_path)

    def warning() -> str:
        return remarks.of_images(settings, load_source(settings.data))[-1]

    assert warning() == "warning: 1 image stands on both sides of that split; data.split=drawn keeps it on one"
    (tmp_path / "test/b/0.png").write_bytes((tmp_path / "train/b/1.png").read_bytes())
    assert warning() == "warning: 2 images stand on both sides of that split; data.split=drawn keeps them on one"


@pytest.mark.parametrize(
    ("folders", "words"),
    [
        (("train", "test"), ("no class folders in test/, train/", "a folder a class")),
        (("train/a", "train/b", "test"), ("no class folders in test/",)),
        (("test/a", "test/b", "val/a", "val/b"), ("no train/",)),
        (("train/a", "train/b", "test/a", "test/b", "harbor"), ("harbor/", "beside", "data.layout=classes")),
        (("train/a", "val/a", "valid/a"), ("two folders for one side",)),
    ],
)
def test_folders_of_a_split_are_never_classes(tmp_path, refused, folders, words):
    with refused(*words):
        Folder(write(tmp_path, *folders))


def test_a_class_that_a_side_lacks(tmp_path, refused):
    write(tmp_path, "train/a", "train/b", "test/a")
    settings = config(tmp_path)
    with refused("'b'", "test side", "data.split=drawn"):
        split(settings, load_source(settings.data))


def test_classes_may_be_called_train_and_test(tmp_path):
    write(tmp_path / "few", "train", "test")
    assert Folder(tmp_path / "few", "classes").class_names == ("test", "train")
    many = Folder(write(tmp_path / "many", "bus", "train", "ship"))
    assert (many.class_names, many.sides) == (("bus", "ship", "train"), None)


def test_classes_with_folders_of_a_split(tmp_path):
    source = Folder(write(tmp_path, *(f"{kind}/{side}" for kind in "ab" for side in ("train", "test"))))
    assert source.class_names == ("a", "b")
    assert {Path(name).parts[-2]: side for name, side in sides_by_name(source).items()} == {
        "train": "train",
        "test": "test",
    }


def test_a_folder_of_domains(tmp_path):
    sites = [f"{site}/{kind}" for site in ("oslo", "quito") for kind in ("forest", "river", "port")]
    source = Folder(write(tmp_path, *sites))
    assert source.class_names == ("forest", "port", "river")
    assert source.domain_names == ("oslo", "quito")
    for i in range(len(source)):
        site, kind = Path(source.name(int(i))).parts[-3:-1]
        assert source.domain_names[source.domains[i]] == site
        assert source.class_names[source.labels[i]] == kind
    assert any("2 folders are taken for domains" in said and "data.layout=classes" in said for said in source.remarks)
    assert Folder(tmp_path, "classes").class_names == ("oslo", "quito")
    settings = config(tmp_path, **{"partition.kind": "domain", "partition.clients": 2})
    clients = divide_images(settings, load_source(settings.data))
    rows, counts = clients.padded(np.arange(2), "train")
    owned = [set(source.domains[row[:count]]) for row, count in zip(rows, counts, strict=True)]
    assert sorted(map(sorted, owned)) == [[0], [1]]


def test_who_asks_for_clients_by_domain_hears_how_folders_become_domains(tmp_path, refused):
    """Two sites of two classes could as well be two classes, and are taken for these."""
    write(tmp_path, *(f"{site}/{kind}" for site in ("oslo", "quito") for kind in ("forest", "river")))
    keys = {"partition.kind": "domain", "partition.clients": 2}
    settings = config(tmp_path, **keys)
    with refused("at least two sensors", "data.layout=domains"):
        divide_images(settings, load_source(settings.data))
    settings = config(tmp_path, **keys, **{"data.layout": "domains"})
    assert divide_images(settings, load_source(settings.data)).num_clients == 2


@pytest.mark.parametrize("order", ["{side}/{site}/{kind}", "{site}/{side}/{kind}"])
def test_a_split_and_domains_together(tmp_path, order):
    each = [(side, site, kind) for side in ("train", "test") for site in ("x", "y") for kind in ("a", "b", "c")]
    source = Folder(write(tmp_path, *(order.format(side=s, site=d, kind=c) for s, d, c in each), each=1))
    assert source.class_names == ("a", "b", "c")
    found = [(SIDES[source.sides[i]], source.domain_names[source.domains[i]], source.class_names[source.labels[i]])
             for i in range(len(source))]  # fmt: skip
    assert sorted(found) == sorted(each)


def test_parts_of_classes_stay_classes_and_that_is_said(tmp_path):
    source = Folder(write(tmp_path, *(f"{kind}/{part}" for kind in "abc" for part in ("summer", "winter"))))
    assert source.class_names == ("a", "b", "c")
    assert any("taken for classes" in said and "data.layout=domains" in said for said in source.remarks)
    assert Folder(tmp_path, "domains").class_names == ("summer", "winter")
    assert (
        Folder(write(tmp_path / "years", *(f"{kind}/{year}" for kind in "ab" for year in (2019, 2020, 2021)))).remarks
        == []
    )


def test_what_is_left_out_is_named_and_counted(tmp_path, refused, capsys):
    write(tmp_path, "a", "b", each=6)
    for name in ("x.gif", "y.GIF", "z.heic"):
        (tmp_path / "a" / name).write_bytes(b"no kind of ours")
    (tmp_path / "loose.jpg").write_bytes(picture("jpeg"))
    words = ["data", f"--name=folder:{tmp_path}", "--config.partition.clients=1", "--config.partition.min_examples=1"]
    assert cli.main(words) == 0
    said = capsys.readouterr().out
    assert "left out are 2 gif, 1 heic" in said
    assert "left out is loose.jpg, an image that is in no class folder" in said
    (tmp_path / "more.jpg").write_bytes(picture("jpeg"))
    assert any("left out are 2 images that are in no class folder" in said for said in Folder(tmp_path).remarks)
    for path in (tmp_path / "b").iterdir():
        path.rename(path.with_suffix(".gif"))
    with refused("'b'", "0 image", "8 gif, 1 heic in all are left out"):
        Folder(tmp_path)


@pytest.mark.parametrize("form", ["webp", "bmp", "jp2"])
def test_further_kinds_are_read(tmp_path, form):
    # 64 pixels: JPEG 2000 has as many resolutions as its smallest side allows.
    pixels = RNG.integers(0, 255, (64, 70, 3), np.uint8)
    lossless = {"webp": {"lossless": True}, "bmp": {}, "jp2": {"irreversible": False}}[form]
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(2):
            Image.fromarray(pixels + np.uint8(i)).save(
                tmp_path / name / f"{i}.{form}", {"jp2": "JPEG2000"}.get(form, form), **lossless
            )
    source = Folder(tmp_path)
    assert len(source) == 4
    assert np.array_equal(source.image(0), pixels)
    assert source.remarks == []


def test_data_describes_a_set_that_the_default_partition_does_not_fit(tmp_path, capsys):
    write(tmp_path, "a", "b", each=5)  # eight training images, which are no ten clients with eight each
    assert cli.main(["data", f"--name=folder:{tmp_path}"]) == 0
    said = capsys.readouterr().out
    assert "10 images of 2 classes" in said
    assert "the default split and partition do not fit" in said
    assert "partition.clients=10" in said
    assert "a satellite photo of a a." in said
    assert "classnames.txt" in said
    # What a person asks for is refused, and the images are described all the same.
    assert cli.main(["data", f"--name=folder:{tmp_path}", "--config.partition.clients=4"]) == 2
    told = capsys.readouterr()
    assert "10 images of 2 classes" in told.out
    assert told.err.count("\n") == 1
    assert "partition.clients=4" in told.err
