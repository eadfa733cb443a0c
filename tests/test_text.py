"""The text tower: the shared-prefix path equals the plain path, in values and in gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fedrsclip_jax.clip.huggingface import load_clip
from fedrsclip_jax.clip.model import unit
from fedrsclip_jax.clip.suffixes import Suffixes, pack
from fedrsclip_jax.clip.text import TextTower
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


read = jax.jit(TextTower.__call__)


@jax.jit
def prompted(tower: TextTower, context, suffixes: Suffixes, transposed=None):
    """The shared-prefix path for one context."""
    return tower.prompted(context[None], suffixes, transposed)[0]


@pytest.fixture(scope="module")
def tower(tiny_folder) -> TextTower:
    return load_clip(tiny_folder)[0].text


def random_rows(lengths: tuple[int, ...], tower: TextTower, seed: int = 0) -> list[list[int]]:
    """Random words, and EOS behind them."""
    rng = np.random.default_rng(seed)
    return [[*rng.integers(2, tower.token.shape[0] - 4, length).tolist(), tower.eos_id] for length in lengths]


def random_suffixes(lengths: tuple[int, ...], tower: TextTower) -> Suffixes:
    return pack(random_rows(lengths, tower))


def context_of(tower: TextTower, length: int, seed: int = 0):
    return 0.3 * jax.random.normal(jax.random.key(seed), (length, tower.width))


def written_out(tower: TextTower, context, suffixes: Suffixes, length: int | None = None):
    """`[SOS] context name . [EOS]` a class, each a whole sequence, through the plain path."""
    token, classes = tower.token[...], suffixes.path.shape[0]
    first = jnp.concatenate([token[tower.sos_id][None], context])
    first = jnp.broadcast_to(first, (classes, *first.shape))
    sequence = jnp.concatenate([first, token[suffixes.rows]], axis=1)
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
    features, gradient = value_and_gradient(prompted, tower, prompt, suffixes)
    expected, expected_gradient = value_and_gradient(written_out, tower, prompt, suffixes)
    assert_near(features, expected)
    assert_near(gradient, expected_gradient)
    # A gradient of zero would be equal too.
    assert np.abs(expected_gradient).min(axis=1).max() > 1e-6
    assert np.all(np.abs(np.asarray(gradient)).max(axis=1) > 1e-4)


def test_shared_prefix_equals_plain_padded_to_all_positions(tower):
    suffixes, prompt = random_suffixes((2, 6, 3), tower), context_of(tower, 16)
    features, gradient = value_and_gradient(prompted, tower, prompt, suffixes)
    padded = lambda tower, context, suffixes: written_out(tower, context, suffixes, 77)  # noqa: E731
    expected, expected_gradient = value_and_gradient(padded, tower, prompt, suffixes)
    assert_near(features, expected)
    assert_near(gradient, expected_gradient)


def test_shared_prefix_equals_plain_at_real_width():
    config = TowerConfig(width=512, layers=2, heads=8, mlp_width=2048)
    tower = TextTower(config, vocabulary=100, positions=40, embed=512, sos_id=0, eos_id=1, rngs=nnx.Rngs(3))
    suffixes, prompt = random_suffixes((3, 5, 2, 4), tower), 0.02 * context_of(tower, 16)
    features, gradient = value_and_gradient(prompted, tower, prompt, suffixes)
    expected, expected_gradient = value_and_gradient(written_out, tower, prompt, suffixes)
    assert_near(features, expected)
    assert_near(gradient, expected_gradient)


BEGINNINGS = {
    "shared": [[5, 6, 7, 300], [5, 6, 8, 9, 300], [5, 10, 300], [11, 300]],
    "one begins the other": [[5, 300], [5, 6, 300], [5, 6, 7, 300]],
    "equal names": [[5, 6, 300], [7, 300], [5, 6, 300]],
    "equal words behind other words": [[5, 8, 9, 300], [6, 8, 9, 300]],
    "one class": [[5, 6, 300]],
    "one token": [[300]],
}


@pytest.mark.parametrize("rows", BEGINNINGS.values(), ids=BEGINNINGS.keys())
def test_names_that_begin_alike(tower, rows):
    rows = [[tower.eos_id if token == 300 else token for token in row] for row in rows]
    suffixes, prompt = pack(rows), context_of(tower, 4)
    assert suffixes.tokens.size == len({tuple(row[:end]) for row in rows for end in range(1, len(row) + 1)})
    features, gradient = value_and_gradient(prompted, tower, prompt, suffixes)
    expected, expected_gradient = value_and_gradient(written_out, tower, prompt, suffixes)
    assert_near(features, expected)
    assert_near(gradient, expected_gradient)


@pytest.mark.parametrize("contexts", [1, 2])
def test_names_in_several_blocks(tower, contexts):
    rows = random_rows((2, 5, 3, 1, 4, 2, 7, 3, 2, 2, 6), tower)
    rows += [[*row[:1], *other] for row, other in zip(rows, random_rows((1, 2, 3), tower, seed=1), strict=False)]
    one, several = pack(rows), pack(rows, nodes_a_block=14)
    assert len(one.tokens) == 1
    assert len(several.tokens) >= 3
    np.testing.assert_array_equal(one.rows, several.rows)
    prompts = jnp.stack([context_of(tower, 4, seed) for seed in range(contexts)])
    features, gradient = value_and_gradient(TextTower.prompted, tower, prompts, several)
    expected, expected_gradient = value_and_gradient(TextTower.prompted, tower, prompts, one)
    assert_near(features, expected)
    assert_near(gradient, expected_gradient)


def test_blocks_are_about_even_and_hold_whole_names(tower):
    rows = random_rows((3,) * 100, tower)
    suffixes = pack(rows, nodes_a_block=64)
    blocks, nodes = suffixes.tokens.shape
    assert blocks == 7  # 400 nodes or a few less
    assert nodes <= 64
    assert blocks * nodes < 1.1 * 400
    assert np.all(np.asarray(suffixes.path // nodes) == np.asarray(suffixes.path[:, :1] // nodes))


def test_several_contexts_at_once(tower):
    suffixes = random_suffixes((2, 4, 3), tower)
    prompts = jnp.stack([context_of(tower, 4, seed) for seed in range(3)])

    def one_by_one(tower, contexts, suffixes):
        return jnp.stack([written_out(tower, context, suffixes) for context in contexts])

    features, gradient = value_and_gradient(TextTower.prompted, tower, prompts, suffixes)
    expected, expected_gradient = value_and_gradient(one_by_one, tower, prompts, suffixes)
    assert_near(features, expected)
    assert_near(gradient, expected_gradient)


@pytest.mark.parametrize("turned", [False, True])
def test_under_vmap_over_lanes(tower, turned):
    """A lane has several contexts; lanes share names and weights."""
    suffixes = random_suffixes((2, 4, 3), tower)
    prompts = jnp.stack([context_of(tower, 4, seed) for seed in range(6)]).reshape(3, 2, 4, -1)

    def together(tower, lanes, suffixes):
        transposed = tower.transposed() if turned else None
        return jax.vmap(lambda contexts: tower.prompted(contexts, suffixes, transposed))(lanes)

    def one_by_one(tower, lanes, suffixes):
        return jnp.stack([jnp.stack([written_out(tower, c, suffixes) for c in contexts]) for contexts in lanes])

    features, gradient = value_and_gradient(together, tower, prompts, suffixes)
    expected, expected_gradient = value_and_gradient(one_by_one, tower, prompts, suffixes)
    assert_near(features, expected)
    assert_near(gradient, expected_gradient)


def plain_rows(tower, context, suffixes, transposed=None):
    rows = jnp.broadcast_to(context, (3, *context.shape))
    return tower.plain(rows, jnp.asarray([3, 1, 2]), transposed)


@pytest.mark.parametrize("path", [prompted, plain_rows])
def test_matrices_turned_round_change_nothing(tower, path):
    suffixes, prompt = random_suffixes((2, 5, 3), tower), context_of(tower, 4)
    turned = lambda tower, *arguments: path(tower, *arguments, tower.transposed())  # noqa: E731
    features, gradient = value_and_gradient(turned, tower, prompt, suffixes)
    expected, expected_gradient = value_and_gradient(path, tower, prompt, suffixes)
    assert_near(features, expected)
    assert_near(gradient, expected_gradient)


def test_what_stands_behind_eos_changes_nothing(tower):
    """Exactly: masked weights are zero, and zero times any finite value adds nothing."""
    one = np.asarray([[0, 5, 6, tower.eos_id, 7, 8], [0, 5, 6, 7, 8, tower.eos_id]], np.int32)
    other = one.copy()
    other[0, 4:] = 11, tower.eos_id
    np.testing.assert_array_equal(read(tower, one), read(tower, other))


def test_filler_changes_nothing(tower):
    """Blocks are filled up to one size; nobody sees what stands there."""
    prompt, suffixes = context_of(tower, 4), pack(random_rows((2, 5, 3), tower), nodes_a_block=7)
    used = np.zeros(suffixes.tokens.size, bool)
    used[np.asarray(suffixes.path)] = True
    assert not used.all()
    other = suffixes._replace(tokens=jnp.where(used.reshape(suffixes.tokens.shape), suffixes.tokens, 9))
    np.testing.assert_array_equal(prompted(tower, prompt, suffixes), prompted(tower, prompt, other))


def test_features_are_read_at_the_first_eos(tower):
    words = jnp.asarray([[0, 5, 6, 7, tower.eos_id]])
    padded = jnp.asarray([[0, 5, 6, 7, tower.eos_id, tower.eos_id, tower.eos_id]])
    # Other shapes, so other kernels: last bits may differ.
    np.testing.assert_allclose(read(tower, words), read(tower, padded), rtol=1e-5, atol=1e-5)
    assert np.abs(np.asarray(read(tower, words) - read(tower, words.at[0, 1].set(9)))).max() > 1e-2


def test_classes_do_not_see_each_other(tower):
    prompt, rows = context_of(tower, 4), random_rows((3, 3, 3), tower)
    suffixes = pack(rows)
    changed = suffixes._replace(tokens=suffixes.tokens.at[0, suffixes.path[1, 0]].set(rows[1][0] + 1))
    before, after = (np.asarray(prompted(tower, prompt, s)) for s in (suffixes, changed))
    np.testing.assert_array_equal(before[[0, 2]], after[[0, 2]])
    assert np.abs(before[1] - after[1]).max() > 1e-3


def test_bfloat16_weights_give_nearby_features(tiny_folder, tower):
    suffixes, prompt = random_suffixes((2, 5, 3), tower), context_of(tower, 4)
    wide, wide_gradient = value_and_gradient(prompted, tower, prompt, suffixes)
    # flax's LayerNorm itself mixes bfloat16 with float32.
    with jax.numpy_dtype_promotion("standard"):
        half = load_clip(tiny_folder, "bfloat16")[0].text
        features, gradient = value_and_gradient(prompted, half, prompt, suffixes)
    assert half.token.dtype == jnp.bfloat16
    assert features.dtype == gradient.dtype == jnp.float32
    # bfloat16 keeps 8 bits, an error of 2^-9 a rounding; about a dozen roundings follow each other in 2 layers.
    assert np.abs(np.asarray(unit(features)) - np.asarray(unit(wide))).max() < 12 * 2**-9
    cosine = jnp.sum(gradient * wide_gradient) / jnp.linalg.norm(gradient) / jnp.linalg.norm(wide_gradient)
    assert cosine > 0.99  # the same direction to within 8 degrees
