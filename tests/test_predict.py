"""`fedrsclip predict`: pictures, folders and scenes whose classes and coordinates are known."""

import csv
import io
import json
import os
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from fedrsclip_jax import cli, compilation
from fedrsclip_jax.clip.huggingface import TINY
from fedrsclip_jax.clip.preprocess import load_preprocess
from fedrsclip_jax.data.bands import by_names
from fedrsclip_jax.data.decoding import decode
from fedrsclip_jax.data.folder import Folder
from fedrsclip_jax.data.scenes import CLASSES, draw
from fedrsclip_jax.errors import install
from fedrsclip_jax.export.chosen import choose
from fedrsclip_jax.finished import open_run, restore
from fedrsclip_jax.predict.scene import Scene, starts
from tests.runs import CLIENTS, PLAIN, finished

rasterio = pytest.importorskip("rasterio", reason="scenes are read by the extra `geo`")
SIDE = 64


@pytest.fixture(scope="module")
def run(tiny_folder, tmp_path_factory):
    return finished(tmp_path_factory.mktemp("finished") / "run", tiny_folder, silent=(3,))


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A fresh working folder; the cache of compiled programs stays where the tests have it."""
    monkeypatch.setattr(compilation, "keep_on_disk", lambda: None)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def predict(here, run, capfd):
    """Runs the verb and gives exit code, standard output and standard error."""

    def call(*words, workdir=run):
        capfd.readouterr()
        code = cli.main(["predict", "--quiet", f"--workdir={workdir}", *map(str, words)])
        return code, *capfd.readouterr()

    return call


def write_scene(path, pixels, *, crs="EPSG:32633", transform=None, **profile):
    """A GeoTIFF of [height, width, bands]."""
    transform = rasterio.transform.from_origin(500_000.5, 5_400_000.25, 10, 10) if transform is None else transform
    height, width, count = pixels.shape
    shape = {"height": height, "width": width, "count": count, "dtype": pixels.dtype}
    with rasterio.open(path, "w", driver="GTiff", crs=crs, transform=transform, **shape, **profile) as file:
        file.write(np.moveaxis(pixels, -1, 0))
    return path


def noise(*shape, dtype=np.uint8, high=256):
    return np.random.default_rng(0).integers(0, high, shape).astype(dtype)


def rows(text):
    return list(csv.DictReader(io.StringIO(text)))


@pytest.fixture(scope="module")
def certain(tmp_path_factory):
    """A run on the embedded CLIP whose adapter is zero, which is zero-shot CLIP: clean scenes are what it knows."""
    folder = tmp_path_factory.mktemp("certain") / "run"
    return finished(folder, TINY, CLASSES, std=0.0, backbone="tiny", **{"method.name": "fedclip"})


@pytest.mark.long
def test_a_mosaic_comes_back_with_classes_and_coordinates(certain, predict):
    """Drawn scenes side by side, in UTM and with turned axes: every polygon is exact."""
    rng = np.random.default_rng(5)
    names = [["forest", "desert", "parking lot"], ["lake", "baseball diamond", "beach"]]
    mosaic = np.concatenate([np.concatenate([draw(n, rng, SIDE) for n in line], axis=1) for line in names])
    turned = rasterio.Affine(3.0, 0.5, 400_000.125, 0.25, -3.0, 7_000_000.5)
    write_scene("mosaic.tif", mosaic, transform=turned, crs="EPSG:32733")
    code, out, err = predict("mosaic.tif", f"--tile={SIDE}", "--output=answers.csv", workdir=certain)
    assert code == 0, err
    assert out.splitlines() == ["answers.csv", "answers-mosaic.predicted.geojson", "answers-mosaic.predicted.png"]
    found = rows(Path("answers.csv").read_text())
    assert [(int(r["column"]), int(r["row"])) for r in found] == [(c, r) for r in (0, 64) for c in (0, 64, 128)]
    guesses = [r["class"] for r in found]
    truth = [name for line in names for name in line]
    assert guesses == truth
    collection = json.loads(Path("answers-mosaic.predicted.geojson").read_text())
    assert collection["crs"] == {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::32733"}}
    assert [f["properties"]["class"] for f in collection["features"]] == truth
    for feature, row in zip(collection["features"], found, strict=True):
        left, top = int(row["column"]), int(row["row"])
        corners = [(left, top), (left, top + 64), (left + 64, top + 64), (left + 64, top), (left, top)]
        expected = [[400_000.125 + 3 * x + 0.5 * y, 7_000_000.5 + 0.25 * x - 3 * y] for x, y in corners]
        assert feature["geometry"] == {"type": "Polygon", "coordinates": [expected]}
    with Image.open("answers-mosaic.predicted.png") as picture:
        assert picture.format == "PNG"
        assert max(picture.size) < 1400


def test_probabilities_are_the_softmax_of_the_models_own_logits(run, predict, here):
    """Of the federation's and of a client's model, of pictures as training prepares them; in the order given."""
    (here / "more" / "deep").mkdir(parents=True)
    Image.fromarray(noise(40, 50, 3)).save("b.png")
    Image.fromarray(noise(31, 37, 3)).save("more/deep/a.JPG", format="jpeg")
    Image.fromarray(noise(50, 33)).save("more/grey.tif")
    opened = open_run(run, [])
    paths = ["b.png", "more/deep/a.JPG", "more/grey.tif"]
    pixels = load_preprocess(opened.task.folder)([decode((here / p).read_bytes()) for p in paths])
    features = np.asarray(opened.task.clip.encode_image(jnp.asarray(pixels)))
    for client in (None, 2):
        logits = choose(opened, restore(opened), client).logits(features)
        odds = np.exp(logits - logits.max(axis=1, keepdims=True))
        expected = odds / odds.sum(axis=1, keepdims=True)
        flags = [] if client is None else [f"--client={client}"]
        code, out, err = predict("b.png", "more", "--format=jsonl", *flags)
        assert (code, err) == (0, "")
        lines = [json.loads(line) for line in out.splitlines()]
        assert [line["path"] for line in lines] == paths
        for line, row in zip(lines, expected, strict=True):
            order = np.argsort(-row)
            assert [entry["class"] for entry in line["top"]] == [PLAIN[c] for c in order]
            np.testing.assert_allclose([entry["probability"] for entry in line["top"]], row[order], atol=2e-5)
            assert (line["class"], line["probability"]) == (line["top"][0]["class"], line["top"][0]["probability"])
        code, out, _ = predict("b.png", "more", *flags)
        assert [r["class"] for r in rows(out)] == [line["class"] for line in lines]
        assert [r["third"] for r in rows(out)] == [line["top"][2]["class"] for line in lines]
        assert {r["column"] for r in rows(out)} == {""}


@pytest.mark.parametrize("method", ["linear_probe", "local_coop"])
def test_every_method_predicts_or_says_why_not(method, tiny_folder, predict, tmp_path):
    workdir = finished(tmp_path / "run", tiny_folder, **{"method.name": method})
    Image.fromarray(noise(40, 50, 3)).save("a.png")
    for flags, there in (((), method == "linear_probe"), (("--client=2",), method == "local_coop")):
        code, out, err = predict("a.png", *flags, workdir=workdir)
        assert (code, len(rows(out))) == ((0, 1) if there else (2, 0)), err
        assert there or (err.count("\n") == 1 and method in err)


def test_images_that_cannot_be_read_are_named_and_the_others_go_on(predict, here):
    Image.fromarray(noise(40, 50, 3)).save("good.png")
    (here / "bad.png").write_bytes(b"no picture")
    (here / "torn.tif").write_bytes((here / "good.png").read_bytes()[:100])
    code, out, err = predict("bad.png", "good.png", "torn.tif")
    assert code == 0
    assert [r["path"] for r in rows(out)] == ["good.png"]
    assert "cannot read image bad.png (not an image of a known format)" in err
    assert "cannot read image torn.tif" in err
    assert "2 of 3 images cannot be read and are left out" in err
    code, out, err = predict("bad.png", "--output=answers.csv")
    assert (code, out) == (1, "")
    assert "cannot read image bad.png" in err
    assert not (here / "answers.csv").exists()
    code, _, err = predict("bad.png", "--tile=16")
    assert code == 1
    assert "cannot read image bad.png" in err


@pytest.mark.parametrize("client", [1, 3], ids=["never drawn", "drawn, without an answer"])
def test_a_client_that_took_no_part_is_warned_of(predict, client):
    Image.fromarray(noise(40, 50, 3)).save("a.png")
    code, out, err = predict("a.png", f"--client={client}")
    assert (code, len(rows(out))) == (0, 1)
    assert f"warning: client {client} never took part" in err


# Scenes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "tile", "stride", "expected"),
    [
        (64, 16, 16, [0, 16, 32, 48]),
        (60, 16, 16, [0, 16, 32, 44]),
        (16, 16, 4, [0]),
        (10, 16, 16, [0]),
        (17, 16, 8, [0, 1]),
        (40, 16, 8, [0, 8, 16, 24]),
    ],
)
def test_tiles_cover_a_side_and_stay_inside(size, tile, stride, expected):
    assert starts(size, tile, stride) == expected
    assert {p for s in expected for p in range(s, min(s + tile, size))} == set(range(size))


def test_bands_scaling_and_missing_data(here):
    raw = noise(40, 50, 4, dtype=np.uint16, high=12_000) + np.uint16(1)
    raw[:20, :20] = 0  # a tile without data
    raw[20:30, :20] = 0  # and one with half of it
    raw[30:, :20] = 5000
    write_scene("raw.tif", raw, nodata=0)
    with Scene(here / "raw.tif", 20, 20, (4, 2, 1)) as scene:
        assert len(scene.tiles) == 2 * 3
        assert scene.picture(scene.tiles[0]) == (None, 0.0)
        half = scene.picture(scene.tiles[3])[0]
        assert half is not None
        assert (half[:10] == half[10:]).all()  # the mean of pixels that are all alike
        valid = (raw != 0).all(axis=-1)
        low, high = np.percentile(raw[valid][:, [3, 1, 0]], (2, 98), axis=0)
        expected = np.clip((raw[:20, 20:40][..., [3, 1, 0]] - low) / (high - low), 0, 1) * 255
        np.testing.assert_allclose(scene.picture(scene.tiles[1])[0], expected, atol=0.51)
        # The last tile of a line is shifted inside.
        assert [tile.column for tile in scene.tiles[:3]] == [0, 20, 30]
        assert (scene.overview()[:20, :20] == 0).all()
    eight = noise(40, 50, 2)
    write_scene("eight.tif", eight)
    with Scene(here / "eight.tif", 64, 64, None) as scene:
        (tile,) = scene.tiles
        assert (scene.picture(tile)[0] == eight[..., :1]).all()  # as it is, and one band for all colours
    real = np.where(noise(40, 50, 1) < 9, np.nan, noise(40, 50, 1) / 255).astype(np.float32)
    write_scene("real.tif", real)
    with Scene(here / "real.tif", 40, 40, None) as scene:
        assert all(np.ptp(scene.picture(tile)[0]) == 255 for tile in scene.tiles)


def test_a_scene_with_a_damaged_block_keeps_its_answers(predict, here):
    scene = write_scene(here / "torn.tif", noise(128, 128, 3), tiled=True, blockxsize=64, blockysize=64)
    scene.write_bytes(scene.read_bytes()[:-2000])
    Image.fromarray(noise(40, 50, 3)).save("good.png")
    code, _, err = predict("good.png", "torn.tif", "--tile=64", "--output=answers.csv")
    assert (code, err.count("Traceback")) == (0, 0), err
    answers = rows((here / "answers.csv").read_text())
    assert {row["path"] for row in answers} == {"good.png", "torn.tif"}
    assert "1 of 4 tiles cannot be read" in err
    assert "torn.tif: no overlay" in err
    assert (here / "answers-torn.predicted.geojson").is_file()
    assert not (here / "answers-torn.predicted.png").exists()


def test_names_that_are_formulas_or_no_text_at_all(predict, here):
    """A dollar starts no formula in the overlay; a file's name may be in an encoding of long ago."""
    write_scene(here / "5$ and $6^.tif", noise(300, 300, 3))
    old = b"for\xeat.png"
    Image.fromarray(noise(40, 50, 3)).save("new.png")
    os.rename(b"new.png", old)
    code, _, err = predict("5$ and $6^.tif", os.fsdecode(old), "--output=answers.csv")
    assert code == 0, err
    assert old in (here / "answers.csv").read_bytes()


def test_a_scene_larger_than_its_overview_is_read_by_windows(here):
    """Tiles hold the pixels of their place, though percentiles come from a decimated overview."""
    down, across = np.mgrid[:1500, :2100]
    raw = (down * 10 + across)[..., None].astype(np.uint16)
    write_scene("wide.tif", raw, tiled=True, blockxsize=256, blockysize=256)
    with Scene(here / "wide.tif", 256, 256, None) as scene:
        overview = scene.overview()
        assert max(overview.shape) == 1024
        tile = scene.tiles[-1]
        assert (tile.column + tile.width, tile.row + tile.height) == (2100, 1500)
        low, high = np.percentile(raw, (2, 98))
        window = raw[tile.row :, tile.column :].astype(float)
        expected = np.repeat(np.clip((window - low) / (high - low), 0, 1) * 255, 3, axis=-1)
        np.testing.assert_allclose(scene.picture(tile)[0], expected, atol=1)  # half a grey level, and the overview's


def test_which_files_are_scenes(predict, here):
    """TIFFs with coordinates that are larger than a tile; all images, where a tile or bands are given."""
    pixels = noise(40, 50, 3)
    write_scene("small.tif", pixels)
    Image.fromarray(pixels).save("plain.png")
    code, out, err = predict("small.tif", "plain.png")
    assert (code, err) == (0, "")
    first, second = rows(out)
    assert first["probability"] == second["probability"]  # the same pixels, in any file
    assert not list(here.glob("*.predicted.*"))
    code, out, err = predict("small.tif", "plain.png", "--tile=30", "--stride=15")
    assert code == 0
    answers = rows(out)
    assert [r["path"] for r in answers] == ["small.tif"] * 6 + ["plain.png"] * 6
    assert [r["class"] for r in answers[:6]] == [r["class"] for r in answers[6:]]
    without = json.loads((here / "plain.predicted.geojson").read_text())
    assert "crs" not in without
    assert without["features"][1]["geometry"]["coordinates"][0][0] == [15, 0]  # pixels
    write_scene(
        "world.tif", noise(300, 40, 3), crs="EPSG:4326", transform=rasterio.transform.from_origin(10, 50, 1e-4, 1e-4)
    )
    code, out, err = predict("world.tif", "--format=jsonl")
    assert [json.loads(line)["row"] for line in out.splitlines()] == [0, 44]
    named = json.loads((here / "world.predicted.geojson").read_text())["crs"]["properties"]["name"]
    assert named == "urn:ogc:def:crs:OGC:1.3:CRS84"
    assert err.count("wrote ") == 2


def test_tiles_without_data_are_skipped_and_said(predict):
    pixels = noise(40, 40, 3) | np.uint8(1)
    pixels[:20, :20] = 0
    write_scene("scene.tif", pixels, nodata=0)
    code, out, err = predict("scene.tif", "--tile=20")
    assert code == 0
    assert [(r["column"], r["row"]) for r in rows(out)] == [("20", "0"), ("0", "20"), ("20", "20")]
    assert "scene.tif: 1 of 4 tiles hold no data and are skipped" in err


def test_shares_of_data_are_told(predict, here):
    """A tile with a third of its data is not one without data, and tiles with answers say how much they hold."""
    pixels = noise(20, 40, 3) | np.uint8(1)
    pixels[:14, :20] = 0
    pixels[:5, 20:] = 0
    write_scene("scene.tif", pixels, nodata=0)
    code, out, err = predict("scene.tif", "--tile=20")
    assert code == 0
    assert [(r["column"], r["valid"]) for r in rows(out)] == [("20", "0.7500")]
    assert "1 of 2 tiles hold data in less than 50 % of their pixels (at most 30.0 %) and are skipped" in err
    (feature,) = json.loads((here / "scene.predicted.geojson").read_text())["features"]
    assert feature["properties"]["valid"] == 0.75
    code, out, _ = predict("scene.tif", "--tile=20", "--format=jsonl", "--overwrite")
    assert json.loads(out)["valid"] == 0.75


def test_a_second_answer_does_not_collide_with_the_first(predict, here):
    write_scene("scene.tif", noise(20, 20, 3))
    for name in ("first", "second"):
        code, _, err = predict("scene.tif", "--tile=20", f"--output={name}.csv")
        assert code == 0, err
    assert sorted(path.name for path in here.glob("*.geojson")) == [
        "first-scene.predicted.geojson",
        "second-scene.predicted.geojson",
    ]


def test_files_that_are_no_images_are_named(predict, here):
    (here / "folder").mkdir()
    Image.fromarray(noise(40, 50, 3)).save("folder/a.webp")
    (here / "folder" / "b.gif").write_bytes(b"no kind of ours")
    code, out, err = predict("folder")
    assert code == 0
    assert len(rows(out)) == 1
    assert "folder: left out are 1 gif" in err


def named(path, pixels, *names, **profile):
    write_scene(path, pixels, **profile)
    with rasterio.open(path, "r+") as file:
        for number, name in enumerate(names, 1):
            file.set_band_description(number, name)
    return path


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_bands_are_taken_by_their_names_or_the_order_is_said(predict, here, kind):
    pixels = noise(20, 20, 4, dtype=kind, high=250) + kind(1)
    pixels[..., 3] = 0  # near infrared of water, which GDAL takes for a transparent fourth byte
    order = [2, 1, 0]
    named("bgrn.tif", pixels, "blue", "green", "red", "nir")
    write_scene("rgb.tif", pixels[..., order])
    code, out, err = predict("bgrn.tif", "rgb.tif", "--tile=20")
    assert code == 0, err
    one, other = rows(out)
    assert one["probability"] == other["probability"]
    assert "bgrn.tif: its bands" not in err
    # As images to train on they are read in the same order.
    assert np.array_equal(decode(Path("bgrn.tif").read_bytes()), decode(Path("rgb.tif").read_bytes()))
    write_scene("many.tif", noise(20, 20, 5, dtype=kind, high=250))
    code, _, err = predict("many.tif", "--tile=20")
    assert code == 0
    assert "many.tif: its bands have no names; 1, 2, 3 are taken for red, green, blue; others by --bands" in err
    code, _, err = predict("many.tif", "--tile=20", "--bands=3,2,1", "--overwrite")
    assert "have no names" not in err
    for folder in ("a", "b"):
        (here / "set" / folder).mkdir(parents=True)
        for i in range(2):
            write_scene(here / "set" / folder / f"{i}.tif", noise(20, 20, 5, dtype=kind, high=250))
    assert any("1, 2, 3 are taken for red, green, blue" in said for said in Folder(here / "set").remarks)


def test_red_edge_is_not_red():
    assert by_names(["B02 (blue)", "B03 - Green", "B04 red", "B05 red edge"]) == (3, 2, 1)
    assert by_names(["near infra red", "red", "green", "blue", "short-wave infra-red"]) == (2, 3, 4)
    assert by_names(["B", "G", "R"]) == (3, 2, 1)
    assert by_names(["red", "red", "green", "blue"]) is None
    assert by_names([None, "green", "blue"]) is None


# Bad input ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["scene.tif", "--bands=3,2,9"], ("--bands=3,2,9", "scene.tif has bands 1 to 4")),
        (["scene.tif", "--bands=1,2"], ("--bands=1,2", "one or three")),
        (["scene.tif", "--bands=0"], ("--bands=0", "from 1")),
        (["scene.tif", "--tile=0"], ("--tile=0", "1 to 10000")),
        (["scene.tif", "--tile=20", "--stride=21"], ("--stride=21", "1 to 20")),
        (["scene.tif", "--tile=wide"], ("--tile", "'wide'")),
        (["scene.tif", "--format=cvs"], ("--format=cvs", "did you mean 'csv'")),
        (["scene.tif", "--client=4"], ("--client=4", f"clients 0 to {CLIENTS - 1}")),
        (["scene.tif", "--checkpoint=3"], ("--checkpoint=3", "none of round 3")),
        (["scene.tif", "--output=empty"], ("--output=empty is a folder",)),
        (["scene.tif", "--output=old.csv"], ("old.csv exists", "--overwrite")),
        (["scene.tif", "--output=scene.tif", "--overwrite"], ("scene.tif is one of the images",)),
        (["nowhere.png"], ("nowhere.png does not exist",)),
        (["empty"], ("no image in empty", "jpg")),
        (["scene.tif", "--config.rounds=3"], ("--config.rounds", "backbone, data.source")),
        ([], ("PATH",)),
    ],
    ids=lambda value: " ".join(value)[:40],
)
def test_what_cannot_be_predicted(predict, here, words, said):
    write_scene("scene.tif", noise(40, 50, 4))
    (here / "empty").mkdir()
    (here / "old.csv").write_text("years of work")
    before = {path: path.read_bytes() for path in here.rglob("*") if path.is_file()}
    code, out, err = predict(*words)
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert all(word in err for word in said), err
    assert {path: path.read_bytes() for path in here.rglob("*") if path.is_file()} == before


def test_a_folder_without_a_run_and_a_machine_without_rasterio(predict, monkeypatch):
    write_scene("scene.tif", noise(40, 50, 3))
    Image.fromarray(noise(40, 50, 3)).save("a.png")
    code, _, err = predict("a.png", workdir="nowhere")
    assert (code, err.count("\n")) == (2, 1)
    assert "nowhere holds no config.json" in err
    monkeypatch.setitem(sys.modules, "rasterio", None)  # importing it fails
    code, _, err = predict("scene.tif")
    assert (code, err.count("\n")) == (2, 1)
    assert install("geo") in err
    code, out, _ = predict("a.png")
    assert (code, len(rows(out))) == (0, 1)
