"""Contrastive training of a small CLIP from images with class names.

Captions say how a picture looks (haze, light, season, ...) and pictures are altered to match. With bare
templates the text tower learns to ignore everything but the class name, and a learned context then has
nothing to steer. Pictures and captions of a step are a pure function of (seed, step).
"""

import json
import shutil
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, Int, UInt8
from PIL import Image

from fedrsclip_jax.clip import huggingface, preprocess, tokenizer
from fedrsclip_jax.clip.model import CLIP, CLIPConfig
from fedrsclip_jax.clip.precision import FULL
from fedrsclip_jax.clip.templates import TEMPLATE, sentence
from fedrsclip_jax.clip.transformer import TowerConfig
from fedrsclip_jax.config import PretrainConfig, digest, to_dict
from fedrsclip_jax.data import looks, scenes
from fedrsclip_jax.data.sources import Subset, sides_of
from fedrsclip_jax.data.split import given_sides, stratified_split
from fedrsclip_jax.errors import InputError
from fedrsclip_jax.files import check_new
from fedrsclip_jax.progress import Progress
from fedrsclip_jax.task import load_source

MAX_LOGIT_SCALE = 100.0  # as in OpenAI's training
CAPTION_SAMPLE = 20_000  # captions that the tokenizer is fitted to
CROP_MARGIN = 1.25  # pictures are kept this much larger than the tower reads, so that a crop loses no detail


class Pictures(NamedTuple):
    """Pictures in memory, unaltered.

    Attributes:
      pixels: [count, side, side, 3], 0 to 255.
      labels: [count].
      class_names: readable.
    """

    pixels: UInt8[np.ndarray, "count side side 3"]
    labels: Int[np.ndarray, " count"]
    class_names: tuple[str, ...]


def pretrain(config: PretrainConfig, workdir: Path, progress: Progress) -> dict[str, Any]:
    """Trains a small CLIP and writes it to `workdir` as a Hugging Face folder; returns what `pretrain.json` says.

    Raises:
      InputError: the data cannot be used, or `workdir` exists and is not empty.
    """
    check_new(workdir)
    _check_towers(config)
    began = time.perf_counter()
    pictures, digests = _gather(config, progress)
    eligible = np.ones(len(digests), bool)
    train, held_out = stratified_split(
        pictures.labels, digests, config.validation_fraction, config.seed, eligible, pictures.class_names
    )

    examples = _sample_captions(pictures.class_names, config.seed)
    fitted = fit_tokenizer(examples, config.model)
    model_config = _model_config(config, fitted)
    # Before the training: names that are too long for the tower are refused now, not at its end.
    try:
        texts = [sentence(TEMPLATE, name) for name in pictures.class_names]
        templates = tokenizer.tokenize(fitted, texts, model_config)
    except InputError as error:
        raise InputError(f"model.positions = {config.model.positions} is too small: {error}") from error
    clip = CLIP(model_config, rngs=nnx.Rngs(config.seed))
    steps = config.epochs * max(1, len(train) // config.batch_size)
    graph, weights = nnx.split(clip)
    optimizer = _optimizer(config, steps)
    opt_state = optimizer.init(weights)

    @jax.jit
    def step(weights: Any, opt_state: Any, images, tokens, captions):
        loss, gradient = jax.value_and_grad(lambda w: contrastive_loss(nnx.merge(graph, w), images, tokens, captions))(
            weights
        )
        updates, opt_state = optimizer.update(gradient, opt_state, weights)
        weights = cast(Any, optax.apply_updates(weights, updates))
        weights["logit_scale"] = jax.tree.map(
            lambda s: jnp.minimum(s, jnp.log(MAX_LOGIT_SCALE)), weights["logit_scale"]
        )
        return weights, opt_state, loss

    # One length for all steps, so that nothing recompiles; rare longer captions lose their end.
    length = tokenizer.tokenize(fitted, examples, model_config, truncate=True).shape[1]
    batches = _batches(config, pictures, train, fitted, model_config, length, steps)
    prepared = time.perf_counter()
    with progress.track("pretraining", steps, unit="steps") as bar:
        for number, batch in enumerate(batches):
            weights, opt_state, loss = step(weights, opt_state, *batch)
            if number % 10 == 9 or number == steps - 1:
                bar.advance_to(number + 1, loss=float(loss), images_per_second=_rate(number, config, prepared))
                if not np.isfinite(float(loss)):
                    raise InputError(
                        f"pretraining diverged at step {number} (loss {float(loss)}); lower "
                        f"learning_rate = {config.learning_rate}"
                    )
    clip = nnx.merge(graph, weights)
    accuracy = _zero_shot(clip, templates, pictures, held_out, model_config.image_size)
    result = {
        "zero_shot_accuracy_held_out": accuracy,
        "chance": 1 / len(pictures.class_names),
        "images": len(train),
        "held_out": len(held_out),
        "steps": steps,
        "seconds": round(time.perf_counter() - began, 1),
        "classes": list(pictures.class_names),
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(weights)),
        "config": to_dict(config),
        "config_digest": digest(config),
    }
    _write(workdir, clip, model_config, fitted, config, result)
    return result


def contrastive_loss(
    clip: CLIP,
    images: Float[Array, "batch height width 3"],
    tokens: Int[Array, "batch length"],
    captions: Int[Array, " batch"],
) -> Float[Array, ""]:
    """Symmetric InfoNCE (Radford et al. 2021) in which pairs with equal captions are positives.

    `captions` numbers the distinct captions of the batch; rows of equal number share their target evenly.
    """
    image, text = clip.encode_image(images), clip.encode_text(tokens)
    logits = jnp.matmul(jnp.exp(clip.logit_scale[...]) * image, text.T, precision=FULL)
    same = (captions[:, None] == captions[None]).astype(jnp.float32)
    target = same / same.sum(axis=1, keepdims=True)
    by_image = optax.softmax_cross_entropy(logits, target)
    by_text = optax.softmax_cross_entropy(logits.T, target)
    return 0.5 * (by_image.mean() + by_text.mean())


def fit_tokenizer(captions: Sequence[str], model: Any) -> Any:
    """A byte-level BPE fitted to captions, as a `transformers` tokenizer; reads any text."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    sos, eos = "<|startoftext|>", "<|endoftext|>"
    bpe = Tokenizer(models.BPE())
    bpe.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=model.vocabulary,
        special_tokens=[sos, eos],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(captions, trainer)
    bpe.post_processor = processors.TemplateProcessing(
        single=f"{sos} $A {eos}", special_tokens=[(t, bpe.token_to_id(t)) for t in (sos, eos)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token=sos, eos_token=eos, pad_token=eos, model_max_length=model.positions
    )


def _gather(config: PretrainConfig, progress: Progress) -> tuple[Pictures, list[str]]:
    """All pictures in memory, and their digests."""
    side = round(config.data.image_size * CROP_MARGIN)
    if config.data.split == "folder":
        given_sides(config.data.split, load_source(config.data))  # refuses images without a split, as `train` does
    if config.data.source == "scenes":
        count = config.data.scenes.count
        labels = np.arange(count, dtype=np.int32) % len(scenes.CLASSES)
        pixels = np.empty((count, side, side, 3), np.uint8)
        with progress.track("drawing scenes", count, unit="images") as bar:
            for i, label in enumerate(labels):
                rng = np.random.default_rng((config.data.scenes.seed, i))
                pixels[i] = scenes.draw(scenes.CLASSES[label], rng, side)
                bar.advance_to(i + 1)
        return Pictures(pixels, labels, scenes.CLASSES), [str(i) for i in range(count)]
    source = load_source(config.data)
    sides = sides_of(source)
    if sides is not None and config.data.split != "drawn":
        source = Subset(source, np.flatnonzero(sides <= 0))  # those to train on, and of sources without a split all
        progress.say(f"{len(source)} of {len(sides)} images are trained on: those of train/")

    def read(i: int) -> np.ndarray | None:
        try:
            return _squared(source.image(i), side)
        except InputError:
            if config.data.skip_unreadable:
                return None
            raise

    pixels = np.empty((len(source), side, side, 3), np.uint8)
    readable = np.ones(len(source), bool)
    with progress.track("reading images", len(source), unit="images") as bar, ThreadPoolExecutor(4) as pool:
        for i, picture in enumerate(pool.map(read, range(len(source)))):
            readable[i] = picture is not None
            pixels[i] = 0 if picture is None else picture
            bar.advance_to(i + 1)
    if not readable.all():
        progress.say(f"{int(np.sum(~readable))} of {len(source)} images could not be read and are left out")
    digests = [digest for digest, keep in zip(source.digests, readable, strict=True) if keep]
    return Pictures(pixels[readable], source.labels[readable], source.class_names), digests


def _squared(image: UInt8[np.ndarray, "height width 3"], side: int) -> UInt8[np.ndarray, "side side 3"]:
    """The central square of an image at `side` pixels."""
    height, width, _ = image.shape
    edge = min(height, width)
    left, top = (width - edge) // 2, (height - edge) // 2
    box = (left, top, left + edge, top + edge)
    return np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC, box=box))


def _sample_captions(class_names: Sequence[str], seed: int) -> list[str]:
    rng = np.random.default_rng((seed, 1))
    return [_caption(class_names[i % len(class_names)], rng)[0] for i in range(CAPTION_SAMPLE)]


def _caption(name: str, rng: np.random.Generator) -> tuple[str, looks.Look]:
    domain = looks.DOMAINS[looks.PRETRAINING[rng.integers(len(looks.PRETRAINING))]]
    look = domain.sample(rng)
    return looks.caption(name, look, rng), look


def _batches(
    config: PretrainConfig,
    pictures: Pictures,
    train: np.ndarray,
    fitted: Any,
    model: CLIPConfig,
    length: int,
    steps: int,
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(images, tokens, caption numbers) of every step, made a little ahead in threads."""
    per_epoch = max(1, len(train) // config.batch_size)
    size = config.data.image_size

    def picture(i: int, rng: np.random.Generator) -> tuple[np.ndarray, str]:
        side = pictures.pixels.shape[1]
        edge = round(side * np.sqrt(rng.uniform(config.min_crop, 1)))
        left, top = rng.integers(0, side - edge + 1, 2)
        crop = Image.fromarray(pictures.pixels[i]).resize(
            (size, size), Image.Resampling.BICUBIC, box=(left, top, left + edge, top + edge)
        )
        # Seen from above a scene has no upright: all eight orientations are the same scene.
        turned = np.rot90(np.asarray(crop), int(rng.integers(4)))
        turned = turned[:, ::-1] if rng.integers(2) else turned
        text, look = _caption(pictures.class_names[pictures.labels[i]], rng)
        return looks.alter(np.ascontiguousarray(turned), look, rng), text

    def batch(step: int):
        epoch, place = divmod(step, per_epoch)
        order = np.random.default_rng((config.seed, 2, epoch)).permutation(train)
        chosen = order[place * config.batch_size : (place + 1) * config.batch_size]
        rng = np.random.default_rng((config.seed, 3, step))
        made = [picture(i, rng) for i in chosen.tolist()]
        texts = [text for _, text in made]
        tokens = np.full((len(texts), length), model.eos_id, np.int32)
        short = tokenizer.tokenize(fitted, texts, model, truncate=True)[:, :length]
        tokens[:, : short.shape[1]] = short
        tokens[:, -1] = model.eos_id
        _, numbers = np.unique(texts, return_inverse=True)
        return preprocess.normalise(np.stack([image for image, _ in made])), tokens, numbers.astype(np.int32)

    ahead = 4
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(batch, step) for step in range(min(ahead, steps))]
        for step in range(steps):
            yield waiting.pop(0).result()
            if step + ahead < steps:
                waiting.append(pool.submit(batch, step + ahead))


def _optimizer(config: PretrainConfig, steps: int) -> optax.GradientTransformation:
    warmup = max(1, steps // 20)
    schedule = optax.warmup_cosine_decay_schedule(0.0, config.learning_rate, warmup, max(steps, warmup + 1))
    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(
            schedule,
            b2=0.98,
            weight_decay=config.weight_decay,
            mask=lambda weights: jax.tree.map(lambda w: w.ndim > 1, weights),
        ),
    )


def _check_towers(config: PretrainConfig) -> None:
    model = config.model
    if model.width % model.heads:
        raise InputError(f"model.heads = {model.heads} does not divide model.width = {model.width}")
    if config.data.image_size % model.patch_size:
        raise InputError(
            f"model.patch_size = {model.patch_size} does not divide data.image_size = {config.data.image_size}"
        )


def _model_config(config: PretrainConfig, fitted: Any) -> CLIPConfig:
    model = config.model

    def tower(layers: int) -> TowerConfig:
        return TowerConfig(model.width, layers, model.heads, 4 * model.width)

    return CLIPConfig(
        text=tower(model.text_layers),
        vision=tower(model.vision_layers),
        embed=model.embed,
        vocabulary=len(fitted),
        positions=model.positions,
        image_size=config.data.image_size,
        patch_size=model.patch_size,
        sos_id=fitted.bos_token_id,
        eos_id=fitted.eos_token_id,
    )


def _zero_shot(
    clip: CLIP, templates: Int[np.ndarray, "classes length"], pictures: Pictures, rows: np.ndarray, size: int
) -> float:
    """Share of unaltered held-out pictures, at `size` pixels, that the template finds."""
    text = clip.encode_text(jnp.asarray(templates))
    graph, weights = nnx.split(clip)
    encode = jax.jit(lambda weights, images: nnx.merge(graph, weights).encode_image(images))
    right = 0
    for start in range(0, len(rows), 256):
        chosen = rows[start : start + 256]
        images = np.stack([_squared(pictures.pixels[i], size) for i in chosen])
        features = encode(weights, preprocess.normalise(images))
        guess = jnp.argmax(jnp.matmul(features, text.T, precision=FULL), axis=1)
        right += int(np.sum(np.asarray(guess) == pictures.labels[chosen]))
    return right / len(rows)


def _rate(number: int, config: PretrainConfig, since: float) -> float:
    return (number + 1) * config.batch_size / (time.perf_counter() - since)


def _write(workdir: Path, clip: CLIP, model: CLIPConfig, fitted: Any, config: PretrainConfig, result: dict) -> None:
    """All files beside `workdir` first, then one rename: nobody finds half a backbone."""
    partial = workdir.with_name(workdir.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    huggingface.save_clip(clip, model, partial, config.save_dtype)
    fitted.save_pretrained(partial)
    preprocess.save_preprocess(partial, model.image_size)
    (partial / "pretrain.json").write_text(json.dumps(result, indent=2) + "\n")
    if workdir.exists():
        workdir.rmdir()
    partial.rename(workdir)
