"""The text tower: the shared-prefix path equals the plain path, in values and in gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fedrsclip_jax.clip.huggingface import load_clip
from fedrsclip_jax.clip.model import unit
from fedrsclip_jax.clip.text import Suffixes, TextTower
from fedrsclip_jax.clip.transformer import TowerConfig

# (context tokens, tokens of each name with its full stop). EOS follows, so a row has one token more.
CASES = [
    (1, (2,)),
    (4, (2, 5, 3)),
    (16, (3, 2, 7, 4, 2)),
    (60, (15, 2)),  # fills all 77 positions
]
# Both paths do the same sums in another order: single precision to the fourth digit through the whole tower.
RELATIVE = 1e-4


prompted, read = jax.jit(TextTower.prompted), jax.jit(TextTower.__call__)


@pytest.fixture(scope="module")
def tower(tiny_folder) -> TextTower:
    return load_clip(tiny_folder)[0].text


def random_suffixes(lengths: tuple[int, ...], tower: TextTower, padding: int = 0, seed: int = 0) -> Suffixes:
    """Rows of random words that end in EOS, with random words behind it."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(2, tower.token.shape[0], (len(lengths), max(lengths) + 1 + padding), np.int32)
    tokens[np.arange(len(lengths)), lengths] = tower.eos_id
    return Suffixes(jnp.asarray(tokens), jnp.asarray(lengths, jnp.int32))


def context_of(tower: TextTower, length: int, seed: int = 0):
    return 0.3 * jax.random.normal(jax.random.key(seed), (length, tower.width))


def written_out(tower: TextTower, context, suffixes: Suffixes, length: int | None = None):
    """`[SOS] context name . [EOS]` a class, each a whole sequence, through the plain path."""
    token, classes = tower.token[...], suffixes.tokens.shape[0]
    first = jnp.concatenate([token[tower.sos_id][None], context])
    first = jnp.broadcast_to(first, (classes, *first.shape))
    sequence = jnp.concatenate([first, token[suffixes.tokens]], axis=1)
    if length is not None:
        filler = jnp.broadcast_to(token[tower.eos_id], (classes, length - sequence.shape[1], tower.width))
        sequence = jnp.concatenate([sequence, filler], axis=1)
    return tower.plain(sequence, suffixes.eos + 1 + len(context))


def value_and_gradient(encode, tower: TextTower, context, suffixes: Suffixes):
    """Features, and the gradient of a fixed random combination of their unit-norm form."""

    @jax.jit
    def run(tower, context, suffixes):
        def score(context):
            features = encode(tower, context, suffixes)
            return jnp.sum(unit(features) * jax.random.normal(jax.random.key(7), features.shape)), features

        return jax.value_and_grad(score, has_aux=True)(context)

    (_, features), gradient = run(tower, context, suffixes)
    return features, gradient


def assert_near(actual, expected, relative: float = RELATIVE):
    """Largest difference against the largest value: entries near zero have no digits of their own."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape
    assert np.abs(actual - expected).max() <= relative * np.abs(expected).max()


@pytest.mark.parametrize(("context", "lengths"), CASES)
def test_shared_prefix_equals_plain(tower, context, lengths):
    suffixes, prompt = random_suffixes(lengths, tower), context_of(tower, context)
    features, gradient = value_and_gradient(TextTower.prompted, tower, prompt, suffixes)
    expected, expected_gradient = value_and_gradient(written_out, tower, prompt, suffixes)
    assert_near(features, expected)
    assert_near(gradient, expected_gradient)
    # A gradient of zero would be equal too.
    assert np.abs(expected_gradient).min(axis=1).max() > 1e-6
    assert np.all(np.abs(np.asarray(gradient)).max(axis=1) > 1e-4)


def test_shared_prefix_equals_plain_padded_to_all_positions(tower):
    suffixes, prompt = random_suffixes((2, 6, 3), tower), context_of(tower, 16)
    features, gradient = value_and_gradient(TextTower.prompted, tower, prompt, suffixes)
    padded = lambda tower, context, suffixes: written_out(tower, context, suffixes, 77)  # noqa: E731
    expected, expected_gradient = value_and_gradient(padded, tower, prompt, suffixes)
    assert_near(features, expected)
    assert_near(gradient, expected_gradient)


def test_shared_prefix_equals_plain_at_real_width():
    config = TowerConfig(width=512, layers=2, heads=8, mlp_width=2048)
    tower = TextTower(config, vocabulary=100, positions=40, embed=512, sos_id=0, eos_id=1, rngs=nnx.Rngs(3))
    suffixes, prompt = random_suffixes((3, 5, 2, 4), tower), 0.02 * context_of(tower, 16)
    features, gradient = value_and_gradient(TextTower.prompted, tower, prompt, suffixes)
    expected, expected_gradient = value_and_gradient(written_out, tower, prompt, suffixes)
    assert_near(features, expected)
    assert_near(gradient, expected_gradient)


def test_under_vmap_over_contexts(tower):
    suffixes = random_suffixes((2, 4, 3), tower)
    prompts = jnp.stack([context_of(tower, 4, seed) for seed in range(2)])

    def together(tower, contexts, suffixes):
        return jax.vmap(lambda context: tower.prompted(context, suffixes))(contexts)

    def one_by_one(tower, contexts, suffixes):
        return jnp.stack([written_out(tower, context, suffixes) for context in contexts])

    features, gradient = value_and_gradient(together, tower, prompts, suffixes)
    expected, expected_gradient = value_and_gradient(one_by_one, tower, prompts, suffixes)
    assert_near(features, expected)
    assert_near(gradient, expected_gradient)


def test_what_stands_behind_eos_changes_nothing(tower):
    """Exactly: masked weights are zero, and zero times any finite value adds nothing."""
    prompt, lengths = context_of(tower, 4), (2, 5, 3)
    one, other = (random_suffixes(lengths, tower, padding=2, seed=seed) for seed in (0, 1))
    behind = np.arange(one.tokens.shape[1])[None] > np.asarray(one.eos)[:, None]
    other = Suffixes(jnp.where(behind, other.tokens, one.tokens), one.eos)
    assert np.any(one.tokens != other.tokens)
    np.testing.assert_array_equal(prompted(tower, prompt, one), prompted(tower, prompt, other))
    np.testing.assert_array_equal(read(tower, one.tokens), read(tower, other.tokens))


def test_features_are_read_at_the_first_eos(tower):
    words = jnp.asarray([[0, 5, 6, 7, tower.eos_id]])
    padded = jnp.asarray([[0, 5, 6, 7, tower.eos_id, tower.eos_id, tower.eos_id]])
    # Other shapes, so other kernels: last bits may differ.
    np.testing.assert_allclose(read(tower, words), read(tower, padded), rtol=1e-5, atol=1e-5)
    assert np.abs(np.asarray(read(tower, words) - read(tower, words.at[0, 1].set(9)))).max() > 1e-2


def test_classes_do_not_see_each_other(tower):
    prompt, suffixes = context_of(tower, 4), random_suffixes((3, 3, 3), tower)
    changed = Suffixes(suffixes.tokens.at[1, 0].set((suffixes.tokens[1, 0] + 1) % 300), suffixes.eos)
    before, after = (np.asarray(prompted(tower, prompt, s)) for s in (suffixes, changed))
    np.testing.assert_array_equal(before[[0, 2]], after[[0, 2]])
    assert np.abs(before[1] - after[1]).max() > 1e-3


def test_bfloat16_weights_give_nearby_features(tiny_folder, tower):
    suffixes, prompt = random_suffixes((2, 5, 3), tower), context_of(tower, 4)
    wide, wide_gradient = value_and_gradient(TextTower.prompted, tower, prompt, suffixes)
    # flax's LayerNorm itself mixes bfloat16 with float32.
    with jax.numpy_dtype_promotion("standard"):
        half = load_clip(tiny_folder, "bfloat16")[0].text
        features, gradient = value_and_gradient(TextTower.prompted, half, prompt, suffixes)
    assert half.token.dtype == jnp.bfloat16
    assert features.dtype == gradient.dtype == jnp.float32
    # bfloat16 keeps 8 bits, an error of 2^-9 a rounding; about a dozen roundings follow each other in 2 layers.
    assert np.abs(np.asarray(unit(features)) - np.asarray(unit(wide))).max() < 12 * 2**-9
    cosine = jnp.sum(gradient * wide_gradient) / jnp.linalg.norm(gradient) / jnp.linalg.norm(wide_gradient)
    assert cosine > 0.99  # the same direction to within 8 degrees
