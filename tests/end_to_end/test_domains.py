"""Two folders and the drawn scenes as three institutions, from the command line to the folder of results."""

import json

import numpy as np
import pytest
from PIL import Image

from fedrsclip_jax import cli, formats
from fedrsclip_jax import config as configuration
from fedrsclip_jax.data.joined import SHIPPED_MERGE
from fedrsclip_jax.data.partition import Partition
from fedrsclip_jax.data.sources import fingerprint
from fedrsclip_jax.task import load_source

DOMAINS = ["north", "south", "scenes"]


@pytest.fixture
def federation(here, tiny_folder):
    """Arguments of a run on three sources: sizes, file types and names of classes differ."""
    rng = np.random.default_rng(0)
    for folder, side, form, classes in (
        ("north", 24, "png", ("highway", "river", "glacier")),
        ("south", 40, "tif", ("freeway", "Port", "storage_tank")),
    ):
        for name in classes:
            (here / folder / name).mkdir(parents=True)
            for i in range(10):
                pixels = rng.integers(0, 256, (side, side, 3), np.uint8)
                Image.fromarray(pixels).save(here / folder / name / f"{i}.{form}")
    return (
        "--config.data.source=folder:north,folder:south,scenes",
        "--config.data.scenes.count=64",
        "--config.data.image_size=16",
        "--config.partition.kind=domain",
        "--config.partition.clients=6",
        "--config.partition.min_examples=4",
        "--config.rounds=1",
        "--config.seeds=1",
        "--config.baselines=",
        "--config.spmd.devices=1",
        "--config.local.batch_size=8",
        f"--config.backbone={tiny_folder}",
        "--workdir=out",
        "--quiet",
    )


@pytest.mark.long
def test_each_client_has_images_of_one_source(here, federation, capsys):
    assert cli.main(["train", *federation]) == 0
    summary = json.loads((here / "out" / "summary.json").read_text())
    assert summary["client_domains"] == [name for name in DOMAINS for _ in range(2)]
    assert summary["num_classes"] == 17  # sixteen of the scenes, of which four are met in the folders, and glacier
    assert {"freeway", "harbor", "storage tanks", "glacier"} < set(summary["class_names"])
    assert "highway" not in summary["class_names"]
    assert '<th>2</th><td data-column="source">south</td>' in (here / "out" / "report.html").read_text()

    written = formats.read(here / "out" / "config.json")
    source = load_source(configuration.resolve(configuration.Config, written).data)
    assert summary["data_sha256"] == fingerprint(source)
    partition = Partition.load(here / "out" / "partition.npz")
    for client, name in enumerate(summary["client_domains"]):
        for images in (partition.train_of(client), partition.test_of(client)):
            assert len(images)
            assert {source.domain_names[domain] for domain in source.domains[images]} == {name}
    assert sorted([*partition.train_order, *partition.test_order]) == list(range(124)), "the pooled test set is all"

    # By another table of names it is another run; the same table elsewhere is the same.
    (here / "mine.txt").write_text("freeway = highway\n")
    capsys.readouterr()
    assert cli.main(["train", *federation, "--config.data.merge=mine.txt"]) == 2
    assert "--workdir holds another run: data (another digest)" in capsys.readouterr().err
    (here / "mine.txt").write_text(SHIPPED_MERGE.read_text())
    assert cli.main(["train", *federation, "--config.data.merge=mine.txt"]) == 0


def test_only_what_all_have(here, federation, capsys):
    common = ("--config.data.classes=intersection", "--config.partition.clients=3", "--config.partition.min_examples=1")
    words = [word for word in federation if "backbone" not in word and "workdir" not in word]
    assert cli.main(["data", *words, *common]) == 2
    assert "data.classes=intersection leaves 1" in capsys.readouterr().err
    (here / "mine.txt").write_text("freeway = highway\nwater = river = port = harbor\n")
    # Scenes tell river and harbor apart.
    assert cli.main(["data", *words, *common, "--config.data.merge=mine.txt"]) == 2
    assert "scenes tells 'river' and 'harbor' apart" in capsys.readouterr().err
    (here / "mine.txt").write_text("freeway = highway\nriver = port\n")
    assert cli.main(["data", *words, *common, "--config.data.merge=mine.txt"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("folder:north,folder:south,scenes: 48 images of 2 classes\n")
    assert [line.split() for line in said.splitlines() if "=" in line and "classnames.txt" not in line] == [
        ["freeway", "24", "highway", "=", "="],
        ["river", "24", "=", "port", "="],
    ]


def test_one_source_twice(refused, here, federation):
    line = refused("train", *federation, "--config.data.source=folder:north,folder:north")
    assert "names folder:north twice" in line


def test_a_source_with_too_few_images_is_named(refused, here, federation):
    line = refused("train", *federation, "--config.partition.clients=24")
    assert "partition.min_examples=4 with partition.clients=24: sensor north has 2" in line


def test_a_half_of_each_source_is_the_half_of_the_source_alone(here, federation):
    """So that what a CLIP was trained on stays out of a federation that has other sources beside."""

    def digests(source: str, half: str) -> set[str]:
        return set(load_source(configuration.DataConfig(source=source, half=half)).digests)

    both = digests("folder:north,folder:south", "federate")
    assert both == digests("folder:north", "federate") | digests("folder:south", "federate")
    assert both.isdisjoint(digests("folder:north", "pretrain"))
