"""Features of patches, beside those of the whole image."""

import jax
import numpy as np

from fedrsclip_jax.clip.huggingface import load_clip


def test_patches_stand_behind_the_image_and_are_averages(tiny_folder):
    clip, _ = load_clip(tiny_folder)
    images = jax.random.normal(jax.random.key(0), (3, 32, 32, 3))
    whole, fine, coarse = (np.asarray(clip.encode_images(images, grid)).reshape(3, -1, 16) for grid in (None, 4, 2))
    assert (whole.shape[1], fine.shape[1], coarse.shape[1]) == (1, 17, 5)
    for each in (fine, coarse):
        np.testing.assert_allclose(each[:, :1], whole, rtol=0, atol=1e-5)
    tokens = np.asarray(clip.vision.tokens(images))[:, 1:].reshape(3, 4, 4, 16)
    lower_left = tokens[:, 2:, :2].mean(axis=(1, 2))
    lower_left /= np.linalg.norm(lower_left, axis=1, keepdims=True)
    np.testing.assert_allclose(coarse[:, 3], lower_left, rtol=0, atol=1e-5)
