"""Pretraining a small CLIP: its loss, its tokenizer, its batches, and the folder that it leaves."""

import json
from contextlib import contextmanager

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from PIL import Image

from fedrsclip_jax import cli
from fedrsclip_jax.clip import huggingface, preprocess, tokenizer
from fedrsclip_jax.clip.model import CLIP, CLIPConfig
from fedrsclip_jax.clip.transformer import TowerConfig
from fedrsclip_jax.config import Config, PretrainConfig, TowersConfig, resolve, to_dict
from fedrsclip_jax.data import scenes, sources
from fedrsclip_jax.errors import InputError
from fedrsclip_jax.progress import Bar, Progress
from fedrsclip_jax.task import load_source

SMALL = {
    "epochs": 2,
    "batch_size": 16,
    "data": {"image_size": 32, "scenes": {"count": 64, "seed": 3}},
    "model": {
        "width": 32,
        "vision_layers": 1,
        "text_layers": 1,
        "heads": 2,
        "embed": 16,
        "vocabulary": 300,
        "positions": 60,
    },
}
QUIET = Progress(quiet=True)


@pytest.fixture(autouse=True)
def few_captions(monkeypatch):
    """The tokenizer of a test is fitted to few captions, and compiled programs stay where the tests have them."""
    from fedrsclip_jax import compilation, pretrain

    monkeypatch.setattr(pretrain, "CAPTION_SAMPLE", 300)
    monkeypatch.setattr(compilation, "keep_on_disk", lambda: None)


@pytest.fixture
def photos(tmp_path):
    """Two classes of 14 pictures of noise each, of which one is a copy of another."""
    rng = np.random.default_rng(0)
    for name in ("BareLand", "river"):
        folder = tmp_path / "photos" / name
        folder.mkdir(parents=True)
        for i in range(13):
            Image.fromarray(rng.integers(0, 256, (40, 30, 3), np.uint8)).save(folder / f"{i}.png")
        (folder / "13.png").write_bytes((folder / "4.png").read_bytes())
    return tmp_path / "photos"


def small(**changes) -> PretrainConfig:
    return resolve(PretrainConfig, SMALL, [(name.replace("__", "."), str(value)) for name, value in changes.items()])


# The loss ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny():
    """A CLIP of random weights, with pictures and texts for it."""
    tower = TowerConfig(width=16, layers=1, heads=2, mlp_width=32)
    config = CLIPConfig(tower, tower, 8, vocabulary=20, positions=6, image_size=8, patch_size=4, sos_id=0, eos_id=1)
    rng = np.random.default_rng(1)
    images = rng.standard_normal((5, 8, 8, 3), np.float32)
    tokens = rng.integers(2, 20, (5, 6)).astype(np.int32)
    tokens[:, 0], tokens[:, -1] = 0, 1
    return CLIP(config, rngs=nnx.Rngs(0)), config, jnp.asarray(images), jnp.asarray(tokens)


def plain_loss(clip: CLIP, images, tokens, captions) -> float:
    """Row by row, as one would write it on paper."""
    image, text = (np.asarray(x, np.float64) for x in (clip.encode_image(images), clip.encode_text(tokens)))
    logits = np.exp(float(clip.logit_scale[...])) * image @ text.T
    total = 0.0
    for matrix in (logits, logits.T):
        for i, row in enumerate(matrix):
            log_p = row - np.log(np.sum(np.exp(row)))
            total -= np.mean([log_p[j] for j in range(len(row)) if captions[j] == captions[i]])
    return total / (2 * len(logits))


@pytest.mark.parametrize("captions", [(0, 1, 2, 3, 4), (0, 1, 0, 2, 0), (3, 3, 3, 3, 3)])
def test_loss_is_the_plain_one(tiny, captions):
    from fedrsclip_jax.pretrain import contrastive_loss

    clip, _, images, tokens = tiny
    loss = contrastive_loss(clip, images, tokens, jnp.array(captions, jnp.int32))
    # Cosines times 14 in single precision.
    np.testing.assert_allclose(float(loss), plain_loss(clip, images, tokens, captions), rtol=1e-5)


def test_loss_depends_on_which_captions_are_equal_and_not_on_their_numbers(tiny):
    from fedrsclip_jax.pretrain import contrastive_loss

    clip, _, images, tokens = tiny
    loss = [
        float(contrastive_loss(clip, images, tokens, jnp.array(captions, jnp.int32)))
        for captions in ((0, 1, 0, 2, 0), (7, 3, 7, 0, 7), (0, 1, 2, 3, 4))
    ]
    assert loss[0] == loss[1] != loss[2]


# The tokenizer ----------------------------------------------------------------------------------------


def test_tokenizer_reads_any_text_and_is_the_same_from_disk(tmp_path):
    from transformers import AutoTokenizer

    from fedrsclip_jax.pretrain import fit_tokenizer

    captions = ["an aerial photo of a dense forest in winter.", "a satellite photo of a storage tank."]
    fitted = fit_tokenizer(captions, TowersConfig(vocabulary=300, positions=40))
    assert len(fitted) <= 300
    assert (fitted.bos_token, fitted.eos_token) == ("<|startoftext|>", "<|endoftext|>")
    fitted.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    for text in ("a dense forest", "São Paulo: château, naïve œuvre", "Ærø №5 – 東京 🛰", "  spaces\tand\nlines "):
        ids = fitted(text).input_ids
        assert ids[0] == fitted.bos_token_id
        assert ids[-1] == fitted.eos_token_id
        assert max(ids) < len(fitted)
        assert loaded(text).input_ids == ids
        # A byte-level BPE loses nothing but case, and puts one space in front.
        assert loaded.decode(ids[1:-1]).strip() == text.lower().strip()
    # What it was fitted to is cheaper than bytes.
    assert len(tokenizer.words(loaded, "photo of a")) < len("photo of a") / 2


def test_equal_captions_give_equal_tokenizers():
    from fedrsclip_jax.pretrain import fit_tokenizer

    captions = ["a hazy photo of a river.", "a bright photo of a lake."]
    first, second = (fit_tokenizer(captions, TowersConfig(vocabulary=300)) for _ in range(2))
    assert first.get_vocab() == second.get_vocab()


# Batches ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def batches():
    """`_batches` of drawn pictures: a function of the configuration and the number of steps."""
    from fedrsclip_jax import pretrain

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretrain, "CAPTION_SAMPLE", 300)
        pictures, _ = pretrain._gather(small(), QUIET)
        fitted = pretrain.fit_tokenizer(pretrain._sample_captions(pictures.class_names, 0), small().model)
    model = pretrain._model_config(small(), fitted)
    train = np.arange(40)

    def make(config: PretrainConfig, steps: int):
        return list(pretrain._batches(config, pictures, train, fitted, model, 50, steps))

    return make


def test_batches_are_a_function_of_seed_and_step(batches):
    first, second, longer = batches(small(), 3), batches(small(), 3), batches(small(), 7)
    for one, other, more in zip(first, second, longer, strict=False):
        for a, b, c in zip(one, other, more, strict=True):
            np.testing.assert_array_equal(a, b)
            np.testing.assert_array_equal(a, c)
    assert len(longer) == 7
    other_seed = batches(small(seed=1), 1)[0]
    assert not np.array_equal(first[0][0], other_seed[0])
    assert not np.array_equal(longer[0][0], longer[2][0])  # 40 images are 2 batches: step 2 is the next epoch


def test_batches_are_what_the_towers_read(batches):
    for images, tokens, captions in batches(small(), 2):
        assert images.shape == (16, 32, 32, 3)
        assert images.dtype == np.float32
        assert tokens.shape == (16, 50)
        # Equal captions, and only these, have equal numbers.
        same_tokens = (tokens[:, None] == tokens[None]).all(-1)
        np.testing.assert_array_equal(same_tokens, captions[:, None] == captions[None])


# Whole runs -------------------------------------------------------------------------------------------


@pytest.fixture
def adam_may_promote():
    """Adam of optax takes a float to the power of a whole number; only its own arithmetic is let off."""
    from fedrsclip_jax import pretrain

    make = pretrain._optimizer

    def lenient(config, steps):
        strict = make(config, steps)

        def update(*arguments):
            with jax.numpy_dtype_promotion("standard"):
                return strict.update(*arguments)

        return optax.GradientTransformation(strict.init, update)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretrain, "_optimizer", lenient)
        yield


@pytest.mark.long
@pytest.mark.parametrize("source", ["scenes", "folder"])
def test_the_command_writes_a_folder_that_everything_reads(
    tmp_path, photos, monkeypatch, capsys, adam_may_promote, source
):
    (tmp_path / "mine.py").write_text(f"def get_config():\n    return {SMALL!r}\n")
    monkeypatch.chdir(tmp_path)
    arguments = ["pretrain", "--config=mine.py", "--workdir=deep/clip", "--quiet"]
    if source == "folder":
        arguments += [f"--config.data.source=folder:{photos}", "--config.data.half=pretrain", "--config.batch_size=4"]
    assert cli.main(arguments) == 0
    out, err = capsys.readouterr()
    assert "backbone in deep/clip" in out
    assert err == ""

    folder = tmp_path / "deep" / "clip"
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["clip"]  # no .partial beside it
    clip, config = huggingface.load_clip(folder)
    words, prepare = tokenizer.load_tokenizer(folder, config), preprocess.load_preprocess(folder)
    assert (config.image_size, config.embed, config.text.layers) == (32, 16, 1)
    image = clip.encode_image(jnp.asarray(prepare([np.full((50, 40, 3), 99, np.uint8)])))
    text = clip.encode_text(jnp.asarray(tokenizer.tokenize(words, ["a satellite photo of a river."], config)))
    for features in (image, text):
        np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, rtol=1e-5)

    said = json.loads((folder / "pretrain.json").read_text())
    assert resolve(PretrainConfig, said["config"]).model == small().model
    assert said["classes"] == (list(scenes.CLASSES) if source == "scenes" else ["bare land", "river"])
    used = 64 if source == "scenes" else len(sources.half(sources.Folder(photos), "pretrain", 0))
    assert said["images"] + said["held_out"] == used
    assert 0 <= said["zero_shot_accuracy_held_out"] <= 1


class Recorder(Progress):
    """Keeps the figures of the bars."""

    def __init__(self):
        super().__init__(quiet=True)
        self.losses: list[float] = []

    @contextmanager
    def track(self, name: str, total: int, unit: str):
        yield Bar(lambda done, figures: self.losses.append(figures["loss"]) if "loss" in figures else None)


@pytest.mark.long
def test_the_loss_goes_down(tmp_path, adam_may_promote):
    from fedrsclip_jax.pretrain import pretrain

    recorder = Recorder()
    config = small(epochs=20, learning_rate=0.003, data__scenes__count=128)
    result = pretrain(config, tmp_path / "clip", recorder)
    assert result["config"] == to_dict(config)
    # 16 pairs at random: log 16 = 2.77. With this seed the loss ends near 2.4; a batch strays by 0.2 from the next.
    first, last = np.mean(recorder.losses[:4]), np.mean(recorder.losses[-4:])
    assert first < 3.2
    assert last < first - 0.2


# Halves -----------------------------------------------------------------------------------------------


def test_the_halves_of_pretraining_and_federation_share_no_image(photos, monkeypatch):
    from fedrsclip_jax import pretrain

    opened = []
    decode = sources.Folder.image
    monkeypatch.setattr(sources.Folder, "image", lambda self, i: opened.append(self.name(i)) or decode(self, i))
    settings = [("data.source", f"folder:{photos}"), ("data.half_seed", "5")]
    config = resolve(PretrainConfig, SMALL, [*settings, ("data.half", "pretrain")])
    pictures, digests = pretrain._gather(config, QUIET)
    other = load_source(resolve(Config, {}, [*settings, ("data.half", "federate")]).data)

    assert len(pictures.pixels) == len(pictures.labels) == len(digests) == len(opened)
    assert not set(digests) & set(other.digests)
    assert set(digests) | set(other.digests) == set(sources.Folder(photos).digests)
    assert not set(opened) & {other.name(i) for i in range(len(other))}
    assert len(digests) + len(other) == 28


@pytest.mark.parametrize("scenes_alone", [True, False])
def test_a_split_of_folders_that_is_none_is_refused(photos, refused, scenes_alone):
    from fedrsclip_jax import pretrain

    source = "scenes" if scenes_alone else f"folder:{photos}"
    config = resolve(PretrainConfig, SMALL, [("data.source", source), ("data.split", "folder")])
    with refused("data.split=folder: the images bring no split"):
        pretrain._gather(config, QUIET)


def test_pictures_are_the_middle_of_the_photographs(photos):
    from fedrsclip_jax import pretrain

    config = resolve(PretrainConfig, SMALL, [("data.source", f"folder:{photos}"), ("data.image_size", "24")])
    pictures, _ = pretrain._gather(config, QUIET)
    assert pictures.pixels.shape == (28, 30, 30, 3)  # a quarter larger than the tower reads
    # Photographs are 40 high and 30 wide: at a side of 30 the middle is copied as it is.
    np.testing.assert_array_equal(pictures.pixels[3], sources.Folder(photos).image(3)[5:35])


# Folders ----------------------------------------------------------------------------------------------


def test_a_folder_with_something_in_it_is_refused_before_any_work(tmp_path, monkeypatch):
    from fedrsclip_jax import pretrain

    monkeypatch.setattr(pretrain, "_gather", lambda *_: pytest.fail("worked before it looked"))
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(InputError, match="is not an empty folder"):
        pretrain.pretrain(small(), tmp_path, QUIET)


def test_an_interrupted_write_leaves_no_folder_and_the_next_one_cleans_up(tmp_path, tiny, monkeypatch):
    from fedrsclip_jax.pretrain import _write, fit_tokenizer

    clip, config, *_ = tiny
    fitted = fit_tokenizer(["a photo of a river."], TowersConfig(vocabulary=300))
    workdir = tmp_path / "clip"
    with monkeypatch.context() as broken:
        broken.setattr(preprocess, "save_preprocess", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            _write(workdir, clip, config, fitted, small(), {"steps": 1})
    assert not workdir.exists()
    workdir.mkdir()  # an empty one is as good as none
    _write(workdir, clip, config, fitted, small(), {"steps": 1})
    assert [path.name for path in tmp_path.iterdir()] == ["clip"]
    assert json.loads((workdir / "pretrain.json").read_text()) == {"steps": 1}
