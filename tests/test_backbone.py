"""The frozen text side bound to class names: where the name stands to the context."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedrsclip_jax.clip import tokenizer
from fedrsclip_jax.clip.backbone import Backbone, interleave
from fedrsclip_jax.clip.huggingface import load_clip
from fedrsclip_jax.clip.model import unit
from fedrsclip_jax.clip.text import TextTower

NAMES = ("forest", "storage tank", "dense residential area")
encode, plain = jax.jit(Backbone.encode), jax.jit(TextTower.plain)


CLASS_POSITIONS = ("end", "middle", "front")


@pytest.fixture(scope="module")
def parts(tiny_folder):
    clip, config = load_clip(tiny_folder)
    words = tokenizer.load_tokenizer(tiny_folder, config)
    return clip, tokenizer.suffixes(words, NAMES, config, 5)


def bind(parts, position: str) -> Backbone:
    clip, suffixes = parts
    return Backbone(clip.text, jnp.exp(clip.logit_scale[...]), suffixes, jnp.zeros((len(NAMES), 16)), position)


def context_of(clip, length: int):
    return 0.3 * jax.random.normal(jax.random.key(length), (length, clip.text.width))


def by_hand(clip, context, suffixes, before: int) -> list[np.ndarray]:
    """`[SOS] context[:before] name context[before:] . [EOS]` a class, none longer than it is."""
    token, context = np.asarray(clip.text.token[...]), np.asarray(context)
    sequences = []
    for row, eos in zip(np.asarray(suffixes.rows), np.asarray(suffixes.eos), strict=True):
        name, stop, end = token[row[: eos - 1]], token[row[eos - 1 : eos]], token[row[eos : eos + 1]]
        start = token[clip.text.sos_id][None]
        sequences.append(np.concatenate([start, context[:before], name, context[before:], stop, end]))
    return sequences


@pytest.mark.parametrize("length", [1, 4, 5])
def test_interleaved_sequences_are_those_written_by_hand(parts, length):
    clip, suffixes = parts
    context = context_of(clip, length)
    for before in (0, length // 2, length):
        sequences, eos = interleave(clip.text, context, suffixes, before)
        assert sequences.shape == (len(NAMES), 1 + length + suffixes.path.shape[1], clip.text.width)
        for sequence, expected, end in zip(
            np.asarray(sequences), by_hand(clip, context, suffixes, before), eos, strict=True
        ):
            np.testing.assert_array_equal(sequence[: len(expected)], expected)
            assert end == len(expected) - 1


@pytest.mark.parametrize("position", CLASS_POSITIONS)
def test_encode_at_every_class_position(parts, position):
    clip, suffixes = parts
    context = context_of(clip, 5)
    features = encode(bind(parts, position), context)
    before = {"front": 0, "middle": 2, "end": 5}[position]
    for feature, sequence in zip(features, by_hand(clip, context, suffixes, before), strict=True):
        alone = unit(plain(clip.text, jnp.asarray(sequence)[None], jnp.asarray([len(sequence) - 1])))[0]
        # The same sums in other shapes, through two layers in fp32.
        np.testing.assert_allclose(feature, alone, rtol=0, atol=1e-5)
    # Unit norm to the rounding of a sum of 16 squares.
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, atol=1e-6)


def test_class_positions_differ_and_all_have_gradients(parts):
    context = context_of(parts[0], 5)
    features = {}
    for position in CLASS_POSITIONS:
        backbone = bind(parts, position)
        features[position] = np.asarray(encode(backbone, context))
        gradient = jax.jit(jax.grad(lambda c, b: jnp.sum(b.encode(c)[:, :3])))(context, backbone)
        assert np.all(np.abs(np.asarray(gradient)).max(axis=1) > 1e-5)
    assert np.abs(features["front"] - features["middle"]).max() > 1e-3
    assert np.abs(features["end"] - features["middle"]).max() > 1e-3


@pytest.mark.parametrize("position", CLASS_POSITIONS)
def test_encode_several_contexts_and_under_vmap(parts, position):
    backbone = bind(parts, position)
    contexts = jnp.stack([context_of(parts[0], 5), -context_of(parts[0], 5)])
    one_by_one = jnp.stack([encode(backbone, c) for c in contexts])
    lanes = jax.jit(lambda backbone, contexts: jax.vmap(backbone.encode)(contexts))(backbone, contexts)
    for together in (encode(backbone, contexts), lanes):
        assert together.shape == (2, len(NAMES), 16)
        # The same sums in other shapes, through two layers in fp32.
        np.testing.assert_allclose(together, one_by_one, rtol=0, atol=1e-5)


def test_scale(parts):
    backbone = bind(parts, "end")
    assert float(backbone.scale) == pytest.approx(float(np.exp(parts[0].logit_scale[...])))


def test_unit_of_a_zero_row_is_zero_with_a_finite_gradient():
    rows = jnp.asarray([[3.0, 4.0], [0.0, 0.0]])
    np.testing.assert_allclose(unit(rows), [[0.6, 0.8], [0, 0]], atol=1e-7)
    assert np.all(np.isfinite(jax.grad(lambda x: jnp.sum(unit(x)))(rows)))
