"""Preprocessing is that of transformers' own processor, channel-last."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from transformers.models.clip import CLIPImageProcessorPil

from fedrsclip_jax.clip.preprocess import MEAN, STD, load_preprocess, normalise, save_preprocess, settings_digest

SIZES = [(32, 32), (33, 71), (64, 47), (7, 5), (1, 90), (300, 200)]


def pictures(sizes=SIZES) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (*size, 3), np.uint8) for size in sizes]


def test_equals_the_processor_of_transformers_channel_last(tiny_folder):
    preprocess = load_preprocess(tiny_folder)
    made = preprocess(pictures())
    assert made.shape == (len(SIZES), 32, 32, 3)
    assert made.dtype == np.float32
    processor = CLIPImageProcessorPil.from_pretrained(tiny_folder)
    for image, picture in zip(made, pictures(), strict=True):
        expected = processor(Image.fromarray(picture), return_tensors="np")["pixel_values"][0]
        np.testing.assert_array_equal(image, expected.transpose(1, 2, 0))


def test_openai_settings(clip_tokenizer_folder):
    preprocess = load_preprocess(clip_tokenizer_folder)
    made = preprocess(pictures([(256, 300), (50, 40)]))
    processor = CLIPImageProcessorPil.from_pretrained(clip_tokenizer_folder)
    expected = processor(pictures([(256, 300), (50, 40)]), return_tensors="np", input_data_format="channels_last")
    np.testing.assert_array_equal(made, expected["pixel_values"].transpose(0, 2, 3, 1))
    assert made.shape == (2, 224, 224, 3)


def test_written_settings_are_openais(tmp_path):
    save_preprocess(tmp_path, 224)
    preprocess = load_preprocess(tmp_path)
    picture = pictures([(250, 240)])
    expected = CLIPImageProcessorPil()(picture, return_tensors="np", input_data_format="channels_last")
    np.testing.assert_array_equal(preprocess(picture), expected["pixel_values"].transpose(0, 2, 3, 1))


def test_greyscale_is_three_equal_channels(tiny_folder):
    grey = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50), np.uint8))
    preprocess = load_preprocess(tiny_folder)
    (made,) = preprocess([np.asarray(grey.convert("RGB"))])
    (expected,) = CLIPImageProcessorPil.from_pretrained(tiny_folder)(grey, return_tensors="np")["pixel_values"]
    np.testing.assert_array_equal(made, expected.transpose(1, 2, 0))
    values = made * np.float32(STD) + np.float32(MEAN)
    assert np.ptp(values, axis=-1).max() < 1e-6  # values to 1 in fp32


def test_a_picture_of_the_right_size_is_only_normalised(tiny_folder):
    preprocess = load_preprocess(tiny_folder)
    exact = np.stack(pictures([(32, 32), (32, 32)]))
    # Values to 2.7 in fp32, through two orders of the same three operations.
    np.testing.assert_allclose(preprocess(list(exact)), normalise(exact), rtol=0, atol=1e-6)
    by_hand = (exact[0, 3, 4].astype(np.float64) / 255 - MEAN) / STD
    np.testing.assert_allclose(normalise(exact)[0, 3, 4], by_hand, atol=1e-6)


def test_digest_is_of_the_settings(tiny_folder, tmp_path):
    digest = settings_digest(tiny_folder)
    shutil.copy(tiny_folder / "preprocessor_config.json", tmp_path)
    assert settings_digest(tmp_path) == digest
    path = tmp_path / "preprocessor_config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps(dict(reversed(settings.items()))))
    assert settings_digest(tmp_path) == digest
    path.write_text(json.dumps(settings | {"image_mean": [0.5, 0.5, 0.5]}))
    assert settings_digest(tmp_path) != digest


@pytest.mark.parametrize("written", [None, "{", "[1]", '{"size": "large"}'])
def test_settings_that_cannot_be_used(tmp_path, refused, written):
    if written is not None:
        (tmp_path / "preprocessor_config.json").write_text(written)
    with refused(tmp_path, "preprocessor_config.json", "download"):
        load_preprocess(tmp_path)
    if written != '{"size": "large"}':  # which transformers alone finds
        with refused(tmp_path, "preprocessor_config.json", "download"):
            settings_digest(tmp_path)


def test_images_in_the_cache_need_no_processor(tiny_folder, monkeypatch):
    """Its import takes seconds where PyTorch is installed."""
    from fedrsclip_jax.clip import preprocess
    from fedrsclip_jax.config import Config, resolve
    from fedrsclip_jax.progress import Progress
    from fedrsclip_jax.task import encode_images, load_task

    keys = {"backbone": str(tiny_folder), "data.scenes.count": "32", "data.image_size": "16", "data.scenes.seed": "7"}
    config = resolve(Config, {}, [*keys.items()])
    task = load_task(config)
    first = encode_images(config, task, Progress(quiet=True))

    def never(folder):
        raise AssertionError("loaded for nothing")

    monkeypatch.setattr(preprocess, "load_preprocess", never)
    np.testing.assert_array_equal(encode_images(config, task, Progress(quiet=True)).plain, first.plain)
