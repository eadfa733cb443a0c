"""Procedural scenes: the same pixels for the same numbers, and every class and sensor equally often."""

import numpy as np
import pytest

from fedrsclip_jax.data import scenes
from fedrsclip_jax.data.looks import DOMAINS, FEDERATION
from fedrsclip_jax.data.scenes import CLASSES, Scenes, draw
from fedrsclip_jax.errors import InputError


@pytest.mark.parametrize("name", CLASSES)
def test_every_class_can_be_drawn_and_is_a_function_of_the_generator(name):
    for seed in range(12):  # the painters branch by chance; twelve seeds reach all but the rarest branches
        image = draw(name, np.random.default_rng(seed))
        assert image.shape == (64, 64, 3)
        assert image.dtype == np.uint8
        # Of 255 grey levels: a flat picture would have less than 3 of texture alone.
        assert image.std() > 5
    np.testing.assert_array_equal(image, draw(name, np.random.default_rng(11)))
    assert (image != draw(name, np.random.default_rng(12))).mean() > 0.5


@pytest.mark.parametrize("size", [16, 33, 96])
def test_any_size(size):
    for name in CLASSES:
        assert draw(name, np.random.default_rng(0), size).shape == (size, size, 3)


def test_no_two_classes_have_the_same_mean_image():
    means = np.array(
        [np.mean([draw(name, np.random.default_rng((1, i)), 32) for i in range(8)], 0) for name in CLASSES]
    )
    gaps = np.abs(means[:, None] - means).mean((2, 3, 4))
    # Means of eight random scenes differ by some levels anyway: this only finds a class entered twice.
    assert gaps[~np.eye(len(CLASSES), dtype=bool)].min() > 2


def test_there_are_sixteen_readable_classes():
    assert len(set(CLASSES)) == 16
    assert all(name == name.lower() and name.isascii() and "_" not in name for name in CLASSES)


# The source -------------------------------------------------------------------------------------------


def test_image_does_not_depend_on_the_order_of_calls():
    first, second = Scenes(40, seed=3), Scenes(40, seed=3)
    forwards = [first.image(i) for i in range(8)]
    backwards = [second.image(i) for i in reversed(range(8))][::-1]
    np.testing.assert_array_equal(forwards, backwards)
    np.testing.assert_array_equal(forwards[5], first.image(5))
    assert first.look(5) == second.look(5)


def test_image_does_not_depend_on_the_count():
    np.testing.assert_array_equal(Scenes(7).image(6), Scenes(700).image(6))
    assert Scenes(7).digests[6] == Scenes(700).digests[6]


def test_labels_and_domains_are_balanced_and_independent():
    source = Scenes(16 * len(FEDERATION) * 5)
    assert source.labels.dtype == source.domains.dtype == np.int32
    assert len(source) == len(source.labels) == len(source.domains) == len(source.digests)
    table = np.zeros((len(source.class_names), len(source.domain_names)), int)
    np.add.at(table, (source.labels, source.domains), 1)
    np.testing.assert_array_equal(table, 5)


def test_looks_come_from_the_domain_of_the_image():
    source = Scenes(16 * len(FEDERATION))
    for i in range(0, len(source), 7):
        domain, look = DOMAINS[source.domain_names[source.domains[i]]], source.look(i)
        assert look.cast in domain.casts
        assert look.season in domain.seasons
        assert domain.haze[0] <= look.haze <= domain.haze[1]


def test_another_sensor_sees_the_same_scene():
    clear, hazy = (Scenes(4, domains=(name,)).image(2).astype(float) for name in ("clear", "haze"))
    # A veil over the same ground is nearly linear in the pixels; two different scenes correlate at random.
    assert np.corrcoef(clear.ravel(), hazy.ravel())[0, 1] > 0.8


def test_digests_name_the_content(monkeypatch):
    digests = Scenes(50).digests
    assert len(set(digests)) == 50
    assert all(len(digest) == 64 and int(digest, 16) >= 0 for digest in digests)
    for other in (Scenes(50, seed=1), Scenes(50, size=32), Scenes(50, domains=("clear",))):
        assert not set(digests) & set(other.digests)
    monkeypatch.setattr(scenes, "VERSION", scenes.VERSION + 1)
    assert not set(digests) & set(Scenes(50).digests)


def test_names_are_for_error_messages():
    assert Scenes(20).name(17) == "scenes image 17"


def test_bad_input_is_refused_by_name():
    with pytest.raises(InputError, match=r"'rivver'.*'river'"):
        draw("rivver", np.random.default_rng(0))
    with pytest.raises(InputError, match=r"'dsut'.*'dust'"):
        Scenes(4, domains=("dsut",))
    with pytest.raises(InputError, match="'dust'"):
        Scenes(4, domains="dust")
    for wrong in ({"count": 0}, {"count": 4, "size": 8}, {"count": 4, "seed": -1}):
        with pytest.raises(InputError, match="at least"):
            Scenes(**wrong)
    with pytest.raises(IndexError, match="scenes image 4 of 4"):
        Scenes(4).image(4)
