"""Splits and owners of one's own: by position, path or mask, and what cannot be meant."""

import numpy as np
import pytest
from PIL import Image

import fedrsclip_jax as frs


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Six images of two classes: lake 0 to 2, river 3 to 5."""
    folder = tmp_path_factory.mktemp("given")
    rng = np.random.default_rng(0)
    for name in ("river", "lake"):
        (folder / name).mkdir()
        for i in range(3):
            Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(folder / name / f"{i}.png")
    return frs.load_images(folder)


def owned(clients, split):
    part = clients.partition
    of = part.train_of if split == "train" else part.test_of
    return [of(k).tolist() for k in range(clients.num_clients)]


def test_a_split_and_owners_in_any_form(images):
    owner = ["b", "a", "a", "b", None, "a"]
    clients = frs.make_clients(images, train=[0, 1, 5], test=[2, 3], owner=owner)
    assert owned(clients, "train") == [[1, 5], [0]], "numbered by the order of the names"
    assert owned(clients, "test") == [[2], [3]]
    paths = [images.name(i) for i in (0, 1, 5)]
    by_path = {f"{'lake' if i < 3 else 'river'}/{i % 3}.png": name for i, name in enumerate(owner) if name}
    mask = np.isin(np.arange(6), [2, 3])
    for train, test, owners in (
        (paths, ["lake/2.png", "river/0.png"], by_path),
        (np.array([5, 0, 1]), mask, owner),
        (None, [2, 3], owner),
    ):
        assert frs.make_clients(images, train=train, test=test, owner=owners).digest() == clients.digest()
    assert clients.made_by.partition.kind == "given"
    assert clients.names == ("a", "b")


def test_owners_of_a_drawn_split_and_a_split_of_drawn_owners(images):
    owners = frs.make_clients(images, owner=[0, 1] * 3, test_fraction=0.4)
    both = [train + test for train, test in zip(owned(owners, "train"), owned(owners, "test"), strict=True)]
    assert [sorted(images) for images in both] == [[0, 2, 4], [1, 3, 5]]
    assert owners.names == (), "they are called by their numbers"
    assert frs.make_clients(images, owner=[7, 9] * 3).names == ("7", "9")
    drawn = frs.make_clients(images, "iid", test=[2, 5], clients=2, min_examples=1)
    assert sorted(drawn.pooled.tolist()) == [2, 5]
    assert sorted(np.concatenate(owned(drawn, "train")).tolist()) == [0, 1, 3, 4]


def test_what_cannot_be_meant(images, refused):
    with refused("train and test: image", "lake/0.png", "in both"):
        frs.make_clients(images, train=[0, 1], test=[0])
    with refused("train: there is no image 6", "0 to 5"):
        frs.make_clients(images, train=[6])
    with refused("test: sea/0.png", "no such image", "lake/0.png"):
        frs.make_clients(images, test=["sea/0.png"])
    with refused("test: 0.png", "2 images end so"):
        frs.make_clients(images, test=["0.png"])
    with refused("train", "given twice"):
        frs.make_clients(images, train=[0, 0, 1])
    with refused("test: there are no images"):
        frs.make_clients(images, train=range(6))
    with refused("train: 'lake/0.png' is one path; give a list"):
        frs.make_clients(images, train="lake/0.png")
    with refused("owner: 2 are given for 6 images"):
        frs.make_clients(images, owner=["a", "b"])
    with refused("owner: client 'b' has no training image"):
        frs.make_clients(images, test=[0], owner=["b", "a", "a", "a", "a", "a"])
    with refused("owner: the clients have no test image"):
        frs.make_clients(images, test=[0], owner=[None, "a", "a", "a", "a", "a"])
    with refused("clients: the owners are given"):
        frs.make_clients(images, owner=[0, 1] * 3, clients=2)
    with refused("seed = 3: the owners are given, and nothing is drawn"):
        frs.make_clients(images, owner=[0, 1] * 3, seed=3)
    with refused("test_fraction: the split is given"):
        frs.make_clients(images, test=[0], test_fraction=0.5)
    with pytest.raises(frs.InputError) as caught:
        frs.make_clients(images, train=[0])
    remedy = "give more images to train on, or at most 1 client with partition.min_examples=1"
    assert str(caught.value).endswith(f"and there are 1; {remedy}"), "virtual clients would draw the split"
    with refused("split: the split is given"):
        frs.make_clients(images, test=[0], split="validation")
