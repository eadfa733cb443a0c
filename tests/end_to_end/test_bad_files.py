"""Files that are odd, broken or meant to do harm, through the real command line."""

import json
import os
import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedrsclip_jax import cli
from tests.conftest import REPOSITORY
from tests.end_to_end.conftest import photographs

BOMB_SIDE = 50_000
# Of a process that opens one image of the folder it is given, and says what came of it and how much memory it took.
OPENS = """
import resource, sys
from fedrsclip_jax.data.folder import Folder
from fedrsclip_jax.errors import InputError
import PIL.Image
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    Folder(sys.argv[1]).image(0)
except InputError as error:
    print(error)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bomb(path: Path) -> None:
    """A sound PNG of 50,000 x 50,000 pixels, 7.5 GB once it is decoded, in a few hundred kilobytes."""
    row = bytes(1 + -(-BOMB_SIDE // 8))
    packer = zlib.compressobj(9)
    pixels = b"".join(packer.compress(row * 1000) for _ in range(BOMB_SIDE // 1000)) + packer.flush()
    header = struct.pack(">IIBBBBB", BOMB_SIDE, BOMB_SIDE, 1, 0, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b""))


def test_an_image_bomb_is_refused_in_bounded_memory(refused, here, federation):
    photographs(here / "photos", {"river": 4, "lake": 4})
    bomb(here / "photos" / "lake" / "0.png")
    line = refused("train", *federation, "--config.data.source=folder:photos")
    assert os.path.join("photos", "lake", "0.png") in line
    assert "2500000000 pixels" in line
    done = subprocess.run(
        [sys.executable, "-c", OPENS, str(here / "photos")], capture_output=True, text=True, cwd=REPOSITORY
    )
    said, kilobytes = done.stdout.splitlines()
    assert "pixels" in said
    assert int(kilobytes) < 100_000


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_every_kind_of_picture_is_trained_on(here, federation):
    photographs(here / "photos", {"river": 4, "lake": 4})
    rng = np.random.default_rng(0)
    colours = Image.fromarray(rng.integers(0, 256, (20, 20, 3), np.uint8))
    colours.convert("CMYK").save(here / "photos" / "river" / "cmyk.jpg")
    colours.convert("P").save(here / "photos" / "river" / "palette.png")
    colours.convert("L").save(here / "photos" / "river" / "grey.tif")
    colours.convert("RGBA").save(here / "photos" / "lake" / "alpha.png")
    Image.fromarray(rng.integers(0, 65536, (20, 20), np.uint16)).save(here / "photos" / "lake" / "16bit.tif")
    Image.fromarray(rng.integers(0, 256, (1, 1, 3), np.uint8)).save(here / "photos" / "lake" / "pixel.png")
    assert cli.main(["train", *federation, "--config.data.source=folder:photos"]) == 0
    summary = json.loads((here / "out" / "summary.json").read_text())
    assert (summary["num_images"], summary["unreadable_images"]) == (14, 0)


def test_class_folders_that_are_not_named_in_text(refused, here, federation):
    photographs(here / "photos", {"river": 3, "lake": 3})
    (here / "photos" / "lake").rename(os.fsdecode(os.fsencode(here / "photos") + b"/l\xe4ke"))
    line = refused("train", *federation, "--config.data.source=folder:photos")
    assert r"'l\udce4ke'" in line
    assert "rename it" in line


def test_class_names_in_another_encoding(refused, here, federation):
    photographs(here / "photos", {"river": 3, "lake": 3})
    (here / "photos" / "classnames.txt").write_bytes("lake = Mälarsee".encode("latin-1"))
    line = refused("train", *federation, "--config.data.source=folder:photos")
    assert "classnames.txt is not UTF-8" in line
    assert "save it as UTF-8" in line


@pytest.mark.parametrize("names", [("BareLand", "bare_land"), ("Bare Land", "bareLand")])
def test_classes_of_one_name(refused, here, federation, names):
    photographs(here / "photos", dict.fromkeys(names, 3))
    line = refused("train", *federation, "--config.data.source=folder:photos")
    assert "are both called 'bare land'" in line


def test_links_in_a_circle_are_no_images(here, federation):
    photographs(here / "photos", {"river": 4, "lake": 4})
    (here / "photos" / "river" / "again").symlink_to(here / "photos", target_is_directory=True)
    (here / "photos" / "river" / "self.png").symlink_to("self.png")
    (here / "photos" / "circle").symlink_to("circle")
    assert cli.main(["train", *federation, "--config.data.source=folder:photos"]) == 0
    assert json.loads((here / "out" / "summary.json").read_text())["num_images"] == 8


def test_a_file_where_a_folder_is_expected(refused, here, federation):
    (here / "file").write_text("no folder")
    assert "is a file" in refused("train", *federation, "--config.data.source=folder:file")
    assert "backbone: 'file' is n" in refused("train", *federation, "--config.backbone=file")


@pytest.mark.parametrize("length", [2**62, 2**40, 2**20], ids=["4 EiB", "1 TiB", "1 MiB"])
def test_weights_with_a_forged_header_length(refused, here, federation, tiny_folder, length):
    shutil.copytree(tiny_folder, here / "clip")
    weights = here / "clip" / "model.safetensors"
    weights.write_bytes(struct.pack("<Q", length) + weights.read_bytes()[8:])
    line = refused("train", *federation, "--config.backbone=clip")
    assert os.path.join("clip", "model.safetensors") in line
    assert "download it again" in line


def test_shards_outside_the_folder_are_not_opened(refused, here, federation, tiny_folder):
    shutil.copytree(tiny_folder, here / "clip")
    (here / "clip" / "model.safetensors").rename(here / "elsewhere.safetensors")
    index = {"weight_map": {"logit_scale": "../elsewhere.safetensors"}}
    (here / "clip" / "model.safetensors.index.json").write_text(json.dumps(index))
    line = refused("train", *federation, "--config.backbone=clip")
    assert "'../elsewhere.safetensors', which is outside its folder" in line


class Harm:
    """What a pickle of it would do on being loaded."""

    def __reduce__(self):
        return (os.system, ("touch harmed",))


@pytest.mark.parametrize("place", ["backbone", "prompt"])
def test_nothing_in_a_pickle_is_executed(refused, here, federation, tiny_folder, place):
    torch = pytest.importorskip("torch")
    if place == "backbone":
        shutil.copytree(tiny_folder, here / "clip")
        (here / "clip" / "model.safetensors").unlink()
        torch.save({"logit_scale": Harm()}, here / "clip" / "pytorch_model.bin")
        line = refused("train", *federation, "--config.backbone=clip")
    else:
        torch.save({"state_dict": {"ctx": Harm()}}, here / "prompt.pth.tar")
        line = refused("train", *federation, "--config.init_from=coop:prompt.pth.tar")
    assert not (here / "harmed").exists()
    assert "backbone" in line or "init_from" in line


def test_a_workdir_that_cannot_be_written(refused, federation):
    """Not even by root, for whom permissions are no obstacle."""
    assert "--workdir: /proc/run cannot be made" in refused("train", *federation, "--workdir=/proc/run")


def test_checkpoints_of_something_else(refused, here, federation):
    assert cli.main(["train", *federation]) == 0
    shutil.rmtree(here / "out" / "checkpoints")
    assert "holds no checkpoint" in refused("evaluate", "--workdir=out", "--quiet")
    (here / "out" / "checkpoints" / "1").mkdir(parents=True)
    assert "no checkpoint can be read" in refused("evaluate", "--workdir=out", "--quiet")
    assert "--checkpoint=7" in refused(
        "export", "--workdir=out", "--format=safetensors", "--output=given", "--checkpoint=7", "--quiet"
    )


def test_the_traceback_is_for_who_asks(here, federation, capfd):
    from fedrsclip_jax.errors import InputError

    with pytest.raises(InputError, match="nowhere"):
        cli.main(["train", *federation, "--config.data.source=folder:nowhere", "--debug"])
