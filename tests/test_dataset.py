"""`fedrsclip data`: tables that agree with the clients, a picture, and refusals before anything is written."""

import io
import re

import numpy as np
import pytest
from PIL import Image

from fedrsclip_jax import cli
from fedrsclip_jax import config as configuration
from fedrsclip_jax.report.dataset import describe, picture
from fedrsclip_jax.task import client_domains, divide_images, load_source

SMALL = ("--name=scenes", "--config.data.scenes.count=192", "--config.data.image_size=16")
FEW = ("--config.partition.clients=3", "--config.partition.min_examples=2")


def test_tables_and_picture(tmp_path, capsys):
    output = tmp_path / "clients.png"
    assert cli.main(["data", *SMALL, *FEW, f"--output={output}"]) == 0
    said = capsys.readouterr().out
    assert "scenes: 192 images of 16 classes" in said
    assert "16 x 16 (192)" in said
    assert re.search(r"storage tanks +12", said)
    rows = re.findall(r"^ (\d+) +([\d,]+) +(\d+) +(\d+) ", said, re.MULTILINE)
    assert [row[0] for row in rows] == ["0", "1", "2"]
    # A fifth of each class of twelve, rounded, is tested on.
    assert (sum(int(row[1]) for row in rows), sum(int(row[2]) for row in rows)) == (160, 32)
    with Image.open(output) as drawn:
        assert drawn.format == "PNG"


def described(**written):
    nested = {"data": {"scenes": {"count": 192}, "image_size": 16}, **written}
    config = configuration.resolve(configuration.Config, nested)
    source = load_source(config.data)
    clients = divide_images(config, source)
    return source, clients, describe(config, source, clients, client_domains(config, source, clients))


def test_counts_are_those_of_the_partition():
    source, clients, found = described(partition={"clients": 3, "min_examples": 2})
    train, test = clients.partition.counts(source.labels, 16)
    assert np.array_equal(found.images["train"], train)
    assert np.array_equal(found.images["test"], test)


def test_sensors_have_colours():
    _, _, found = described(partition={"kind": "domain", "clients": 6, "min_examples": 2})
    assert found.client_domains == list(found.domain_names)
    with Image.open(io.BytesIO(picture(found))) as drawn:
        pixels = np.asarray(drawn.convert("HSV")).reshape(-1, 3)
    hues = pixels[pixels[:, 1] > 100, 0]
    # Blue, orange, green, red, purple and brown; of one colour there would be one hue.
    assert len(np.unique(hues // 16)) >= 5


def test_a_million_clients(tmp_path, capsys):
    virtual = ("--config.partition.kind=virtual", "--config.partition.clients=1000000", "--config.cohort=4")
    assert cli.main(["data", *SMALL, *virtual, f"--output={tmp_path / 'some.png'}"]) == 0
    assert "and 999,960 more clients" in capsys.readouterr().out
    with Image.open(tmp_path / "some.png") as drawn:
        assert max(drawn.size) < 6000


def test_pictures_that_cannot_be_read(tmp_path, capsys):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(6):
            Image.fromarray(np.full((4, 5, 3), 20 * i + ord(name), np.uint8)).save(tmp_path / name / f"{name}{i}.png")
    (tmp_path / "a" / "a0.png").write_bytes(b"no picture")
    words = ["data", f"--name=folder:{tmp_path}", "--config.partition.clients=1", "--config.partition.min_examples=1"]
    assert cli.main(words) == 2
    assert "a0.png" in capsys.readouterr().err
    assert cli.main([*words, "--config.data.skip_unreadable=True"]) == 0
    said = capsys.readouterr().out
    assert "of 12 images looked at: 5 x 4 (11)" in said
    assert "cannot be read, and are left out: 1" in said


def test_copies_are_said_to_stay_together_only_where_they_do(tmp_path, capsys):
    rng = np.random.default_rng(0)
    for place in ("train/a", "train/b", "test/a", "test/b"):
        (tmp_path / place).mkdir(parents=True)
        for i in range(3):
            Image.fromarray(rng.integers(0, 255, (4, 5, 3), np.uint8)).save(tmp_path / place / f"{i}.png")
    (tmp_path / "test/a/0.png").write_bytes((tmp_path / "train/a/0.png").read_bytes())
    words = ["data", f"--name=folder:{tmp_path}", "--config.partition.clients=1", "--config.partition.min_examples=1"]
    assert cli.main(words) == 0
    said = capsys.readouterr().out
    assert "\ncopies of another image: 1\n" in said
    assert "warning: 1 image stands on both sides of that split" in said
    assert cli.main([*words, "--config.data.split=drawn"]) == 0
    said = capsys.readouterr().out
    assert "\ncopies of another image, which stay on its side of the split: 1\n" in said
    assert "both sides" not in said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--output=there/it.png",), ("--output", "there/it.png", "in a folder that is there")),
        (("--output=it.jpg",), ("--output", "it.jpg", "FILE.png")),
        (("--name=uc_mercd",), ("uc_mercd", "'uc_merced'")),
        (("--name=folder:nowhere",), ("nowhere", "does not exist")),
        (("--name=",), ("data.source", "folder:PATH")),
        (("--name=scenes,",), ("'tfds:'", "folder:PATH")),
        (("--name=scenes", "--config.data.clases=union"), ("'data.clases'", "'data.classes'")),
    ],
)
def test_refused(tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["data", *arguments]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert all(word in line for word in words), line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["iid", "dirichlet", "classes", "domain"])
def test_clients_that_are_held_out_own_what_the_others_do_not(kind):
    given = [("data.scenes.count", "320"), ("partition.kind", kind), ("partition.classes_per_client", "4")]
    given += [("partition.clients", "5"), ("partition.held_out", "3"), ("partition.min_examples", "1")]
    config = configuration.resolve(configuration.Config, {}, given)
    source = load_source(config.data)
    clients = divide_images(config, source)
    assert (clients.num_clients, clients.unseen.num_clients) == (5, 3)
    owned = [
        table[np.arange(table.shape[1]) < counts[:, None]]
        for of in (clients, clients.unseen)
        for table, counts in (of.padded(np.arange(of.num_clients), split) for split in ("train", "test"))
    ]
    assert np.sort(np.concatenate(owned)).tolist() == list(range(320))
    assert len(client_domains(config, source, clients) or range(5)) == 5
    assert np.sort(clients.pooled).tolist() == np.sort(owned[1]).tolist()
