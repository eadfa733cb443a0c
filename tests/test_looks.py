"""Looks: what each property does to the pixels, and that captions say it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedrsclip_jax.data import looks
from fedrsclip_jax.data.looks import DOMAINS, FEDERATION, PRETRAINING, Domain, Look, alter, caption
from fedrsclip_jax.errors import InputError

BARE = "a satellite photo of a {}."


def picture(seed: int = 0, height: int = 48, width: int = 64) -> np.ndarray:
    """Blocks of random mid-range colour: contrast at every scale above 8 pixels, and room up and down."""
    blocks = np.random.default_rng(seed).integers(50, 200, (height // 8, width // 8, 3))
    return np.kron(blocks, np.ones((8, 8, 1), int)).astype(np.uint8)


def altered(image: np.ndarray, seed: int = 0, **fields) -> np.ndarray:
    """As float, so that differences do not wrap around."""
    return alter(image, Look(**fields), np.random.default_rng(seed)).astype(float)


def roughness(image: np.ndarray) -> float:
    """Energy of the differences between neighbours, within the 8-pixel blocks of `picture`."""
    return float(np.square(np.diff(image.astype(float), axis=1)[:, :7]).mean())


fields_of_any_kind = st.fixed_dictionaries(
    {
        "haze": st.floats(0, 1),
        "light": st.floats(-1, 1),
        "cast": st.sampled_from(sorted(looks.CASTS)),
        "cast_strength": st.floats(0, 1),
        "season": st.sampled_from(looks.SEASONS),
        "blur": st.floats(0, 0.1),
        "noise": st.floats(0, 0.5),
        "resolution": st.floats(0.02, 1),
    }
)


def test_neutral_look_is_the_identity():
    image = np.random.default_rng(0).integers(0, 256, (37, 50, 3), np.uint8)
    np.testing.assert_array_equal(alter(image, Look(), np.random.default_rng(0)), image)


@settings(max_examples=50, deadline=None)
@given(fields=fields_of_any_kind, height=st.integers(1, 40), width=st.integers(1, 40))
def test_any_look_keeps_shape_and_type_and_is_deterministic(fields, height, width):
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    before = image.copy()
    first, second = (alter(image, Look(**fields), np.random.default_rng(7)) for _ in range(2))
    assert first.shape == image.shape
    assert first.dtype == np.uint8
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(image, before)


def test_haze_lowers_contrast_the_more_the_thicker():
    spreads = [altered(picture(), haze=haze).std() for haze in (0.0, 0.3, 0.6, 0.9)]
    assert spreads == sorted(spreads, reverse=True)
    # 0.9 of haze leaves 1 - 0.9 * 0.9 = 0.19 of the contrast; 0.25 allows for the veil's own colour.
    assert spreads[-1] < 0.25 * spreads[0]


def test_light_changes_brightness():
    means = [altered(picture(), light=light).mean() for light in (-0.8, -0.3, 0.0, 0.3, 0.8)]
    assert means == sorted(means)


@pytest.mark.parametrize(("cast", "channel"), [("red", 0), ("green", 1), ("blue", 2)])
def test_cast_favours_its_channel(cast, channel):
    share = [
        altered(picture(), cast=cast, cast_strength=s)[..., channel].sum()
        / altered(picture(), cast=cast, cast_strength=s).sum()
        for s in (0.0, 0.4, 0.8)
    ]
    assert share == sorted(share)
    assert share[2] > share[0] + 0.05


def test_yellow_cast_removes_blue_only():
    plain, yellow = altered(picture()), altered(picture(), cast="yellow", cast_strength=0.8)
    ratio = yellow.mean((0, 1)) / plain.mean((0, 1))
    assert ratio[2] < 0.6 < 0.95 < min(ratio[:2])


def test_seasons_change_plants_and_spare_water():
    grass = np.full((16, 16, 3), (84, 112, 58), np.uint8)
    water = np.full((16, 16, 3), (34, 66, 90), np.uint8)
    winter, autumn, dry = (altered(grass, season=season)[0, 0] for season in ("winter", "autumn", "dry"))
    assert winter.min() > 150, "snow is light in every channel"
    assert autumn[0] > autumn[1] > autumn[2], "leaves turn brown"
    assert dry.mean() > grass.mean(), "straw is lighter than grass"
    assert dry[0] > dry[2], "and yellow"
    for season in ("winter", "autumn", "dry"):
        assert np.abs(altered(water, season=season) - water).max() <= 2


def test_blur_removes_edges():
    edges = [np.abs(np.diff(altered(picture(), blur=blur), axis=1)).max() for blur in (0.0, 0.02, 0.05)]
    assert edges == sorted(edges, reverse=True)
    assert edges[2] < edges[0] / 2


def test_noise_adds_high_frequencies_of_the_stated_size():
    image = np.full((64, 64, 3), 128, np.uint8)
    noisy = altered(image, noise=0.1)
    # 12,288 independent samples: the standard error of the deviation is below 1 %; 5 % is no chance.
    assert noisy.std() == pytest.approx(25.5, rel=0.05)
    assert roughness(altered(picture(), noise=0.1)) > 100 * (1 + roughness(altered(picture())))


def test_resolution_makes_blocks():
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    coarse = alter(image, Look(resolution=0.25), np.random.default_rng(0))
    blocks = coarse.reshape(16, 4, 16, 4, 3)
    np.testing.assert_array_equal(blocks, np.broadcast_to(blocks[:, :1, :, :1], blocks.shape))


# Domains ----------------------------------------------------------------------------------------------


def test_domains_are_named_once_and_all_of_them():
    assert set(DOMAINS) == {*PRETRAINING, *FEDERATION}
    assert len(DOMAINS) == len(PRETRAINING) + len(FEDERATION)
    assert len(FEDERATION) >= 4
    assert all(DOMAINS[name].name == name for name in DOMAINS)


@pytest.mark.parametrize("new", FEDERATION)
@pytest.mark.parametrize("old", PRETRAINING)
def test_federation_domains_are_disjoint_from_pretraining(new, old):
    assert not DOMAINS[new].overlaps(DOMAINS[old])
    assert not DOMAINS[old].overlaps(DOMAINS[new])


def test_federation_domains_lie_on_axes_that_pretraining_has_words_for():
    rng = np.random.default_rng(0)
    said = {word for name in PRETRAINING for _ in range(200) for word in looks.strengths(DOMAINS[name].sample(rng))}
    for name in FEDERATION:
        seen = [looks.strengths(DOMAINS[name].sample(rng)) for _ in range(50)]
        assert set().union(*seen) <= said
        assert all(len(strengths) >= 3 for strengths in seen), "three properties at once are new"


def test_overlap_is_of_all_fields():
    assert Domain("a", haze=(0.0, 0.5)).overlaps(Domain("b", haze=(0.4, 0.9)))
    assert not Domain("a", haze=(0.0, 0.3)).overlaps(Domain("b", haze=(0.4, 0.9)))
    blue = Domain("a", casts=("none", "blue"), cast_strength=(0.4, 0.6))
    assert blue.overlaps(Domain("b")), "both may have no cast at all"
    assert not blue.overlaps(Domain("b", casts=("blue",), cast_strength=(0.7, 0.9)))


@pytest.mark.parametrize("name", DOMAINS)
def test_samples_stay_in_their_domain(name):
    domain, rng = DOMAINS[name], np.random.default_rng(0)
    for _ in range(50):
        look = domain.sample(rng)
        for field in ("haze", "light", "blur", "noise", "resolution"):
            low, high = getattr(domain, field)
            assert low <= getattr(look, field) <= high
        assert look.cast in domain.casts
        assert look.season in domain.seasons
    assert domain.sample(np.random.default_rng(3)) == domain.sample(np.random.default_rng(3))


def test_federation_strength_zero_is_neutral():
    strong = Domain(
        "x",
        haze=(0.5, 0.7),
        light=(-0.7, -0.4),
        casts=("red",),
        cast_strength=(0.5, 0.8),
        blur=(0.01, 0.02),
        noise=(0.05, 0.1),
        resolution=(0.3, 0.5),
    )
    look = looks._scaled(strong, 0.0).sample(np.random.default_rng(0))
    assert (look.haze, look.light, look.cast_strength, look.blur, look.noise, look.resolution) == (
        0,
        0,
        0,
        0,
        0,
        1,
    )
    assert looks._scaled(strong, 1.0).resolution == pytest.approx((0.3, 0.5))


# Captions ---------------------------------------------------------------------------------------------

STRONG = [
    (Look(haze=0.9), ("haz", "fog")),
    (Look(light=-0.9), ("dark", "dim")),
    (Look(light=0.9), ("bright", "overexposed")),
    (Look(cast="yellow", cast_strength=0.9), ("yellow",)),
    (Look(cast="blue", cast_strength=0.9), ("blu",)),
    (Look(season="winter"), ("winter", "snow")),
    (Look(season="autumn"), ("autumn",)),
    (Look(season="dry"), ("dry",)),
    (Look(blur=0.04), ("blur", "focus")),
    (Look(noise=0.2), ("nois", "grain")),
    (Look(resolution=0.2), ("coarse", "resolution")),
]


@pytest.mark.parametrize(("look", "words"), STRONG, ids=lambda value: str(value)[:40])
def test_captions_say_a_strong_property_or_are_bare(look, words):
    rng = np.random.default_rng(0)
    said = [caption("storage tanks", look, rng) for _ in range(200)]
    bare = BARE.format("storage tanks")
    assert all(text == bare or any(word in text for word in words) for text in said)
    # A quarter of 200 is 50, with a standard deviation of 6; four of them either way.
    assert 26 <= said.count(bare) <= 74


def test_captions_say_every_strong_property_together():
    look, rng = (
        Look(haze=0.9, cast="red", cast_strength=0.9, season="winter", noise=0.2),
        np.random.default_rng(0),
    )
    for text in {caption("lake", look, rng) for _ in range(100)} - {BARE.format("lake")}:
        for words in (("haz", "fog"), ("red",), ("winter", "snow"), ("nois", "grain")):
            assert any(word in text for word in words), text


def test_words_grow_with_strength():
    rng = np.random.default_rng(0)
    slight, strong = ({caption("lake", Look(haze=haze), rng) for _ in range(100)} for haze in (0.2, 0.9))
    assert any("slightly hazy" in text for text in slight)
    assert any("very hazy" in text for text in strong)
    assert not any("slightly" in text for text in strong)


def test_captions_are_short_lower_case_ascii_varied_sentences_with_few_words():
    rng = np.random.default_rng(0)
    said = [caption("Dense Residential", DOMAINS[name].sample(rng), rng) for name in DOMAINS for _ in range(150)]
    for text in said:
        assert text.isascii()
        assert text == text.lower()
        assert text.endswith(".")
        assert "dense residential" in text
        assert len(text.split()) <= 20, text
        assert "{" not in text
        assert "  " not in text
        assert not {"a aerial", "a overhead", "a out", "a overexposed", "a autumn"} & {
            " ".join(pair) for pair in zip(text.split(), text.split()[1:], strict=False)
        }
    vocabulary = {word.strip(".,") for text in said for word in text.split()}
    assert len(vocabulary) < 150
    assert len(set(said)) > 0.5 * len(said)
    before = [text for text in said if text.endswith("dense residential.")]
    assert len(before) > 0.8 * len(said), "a learned context stands before the name, so the words do too"


def test_captions_are_deterministic():
    look = DOMAINS["dust"].sample(np.random.default_rng(0))
    assert caption("lake", look, np.random.default_rng(5)) == caption("lake", look, np.random.default_rng(5))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"season": "wintre"}, "'wintre'.*'winter'"),
        ({"cast": "yelow"}, "'yelow'.*'yellow'"),
        ({"haze": 1.5}, "1.5"),
    ],
)
def test_bad_looks_are_refused_by_name(fields, message):
    with pytest.raises(InputError, match=message):
        Look(**fields)
