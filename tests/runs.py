"""Finished runs made by hand: configuration, summary and checkpoint of any shape, without training."""

import json
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from PIL import Image

from fedrsclip_jax import config as configuration
from fedrsclip_jax.checkpoint import Checkpoints
from fedrsclip_jax.clip.huggingface import save_clip, weights_digest
from fedrsclip_jax.clip.model import CLIP, CLIPConfig
from fedrsclip_jax.clip.preprocess import save_preprocess
from fedrsclip_jax.clip.tokenizer import load_tokenizer
from fedrsclip_jax.clip.transformer import TowerConfig
from fedrsclip_jax.federated.aggregate import ServerPlan, start_server
from fedrsclip_jax.federated.initial import initial
from fedrsclip_jax.methods import find_method
from fedrsclip_jax.prompts import imported, keep, starting_from
from fedrsclip_jax.task import load_task

PLAIN = ("forest", "storage tank", "river")
ACCENTS = ("forêt d'été", "Fährhafen", "São João", "łąka", "harbor")
# With the fitted tokenizer, 30 tokens and more.
LONG = ("river", "a medium residential area with detached houses along winding streets")
CLIENTS = 4
TOOK_PART = (0, 2)
ROUNDS = 7


def photographs(folder: Path, names: Sequence[str]) -> Path:
    """Two pictures of noise a class, of odd sizes; names in `classnames.txt`."""
    rng = np.random.default_rng(0)
    lines = []
    for number, name in enumerate(names):
        place = folder / f"class{number}"
        place.mkdir(parents=True)
        lines.append(f"{place.name} = {name}")
        for i in range(2):
            Image.fromarray(rng.integers(0, 256, (41 + i, 50, 3), np.uint8)).save(place / f"{i}.png")
    (folder / "classnames.txt").write_text("\n".join(lines), encoding="utf-8")
    return folder


def another_clip(folder: Path, words: Path, width: int) -> Path:
    """A random CLIP of another width with the tokenizer of a folder."""
    from transformers import AutoTokenizer

    fitted = AutoTokenizer.from_pretrained(words)
    tower = TowerConfig(width=width, layers=2, heads=4, mlp_width=2 * width)
    config = CLIPConfig(
        text=tower,
        vision=tower,
        embed=24,
        vocabulary=len(fitted),
        positions=77,
        image_size=32,
        patch_size=8,
        sos_id=fitted.bos_token_id,
        eos_id=fitted.eos_token_id,
    )
    graph, weights = nnx.split(CLIP(config, rngs=nnx.Rngs(2)))
    leaves, tree = jax.tree.flatten(weights)
    keys = jax.random.split(jax.random.key(3), len(leaves))
    leaves = [leaf + 0.1 * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys, strict=True)]
    save_clip(nnx.merge(graph, jax.tree.unflatten(tree, leaves)), config, folder)
    fitted.save_pretrained(folder)
    save_preprocess(folder, config.image_size)
    assert load_tokenizer(folder, config) is not None
    return folder


def finished(
    workdir: Path,
    clip: Path,
    names: Sequence[str] = PLAIN,
    *,
    checkpoints: Sequence[int] = (ROUNDS,),
    std: float = 0.3,
    silent: Sequence[int] = (),
    **overrides: object,
) -> Path:
    """A run's folder after `ROUNDS` rounds, in which the clients `TOOK_PART`.

    Prompts are random, of deviation `std`, by default as large as embedded words, and others in every checkpoint.
    Clients that are `silent` were drawn and never answered: older versions kept their initial draw in checkpoints.
    """
    photos = photographs(workdir / "photos", names)
    base = {"backbone": clip, "data.source": f"folder:{photos}", "partition.clients": CLIENTS, "rounds": ROUNDS}
    written = {**base, **overrides}
    config = configuration.resolve(configuration.Config, {}, [(key, str(value)) for key, value in written.items()])
    task = load_task(config)
    prompts = imported(config, task.clip_config)
    keep(prompts, workdir)
    _, shared, population = initial(
        config,
        starting_from(prompts, find_method(config.method.name)),
        task.backbone(config.method),
        task.context_start(config.method),
        CLIENTS,
    )
    rng = np.random.default_rng(1)

    def another(tree):
        return jax.tree.map(lambda leaf: rng.normal(0, std, leaf.shape).astype(np.float32), tree)

    with Checkpoints(workdir, keep=len(checkpoints)) as kept:
        for number in checkpoints:
            if silent:
                population.scatter(np.asarray(silent), population.gather(np.asarray(silent)))
            ids = np.asarray(TOOK_PART)
            population.scatter(ids, another(population.gather(ids)))
            kept.save(number, start_server(ServerPlan.of(config), another(shared)), population)
    (workdir / "config.json").write_text(json.dumps(configuration.to_dict(config)))
    summary = {
        "rounds": ROUNDS,
        "split": "test",
        "num_classes": len(names),
        "num_clients": CLIENTS,
        "backbone_sha256": weights_digest(clip),
        "config_sha256": configuration.digest(config),
        "initial_prompts_sha256": prompts.digest,
        "global": {"accuracy": 0.5, "macro_f1": 0.4},
        "personalised": {"per_client": [0.6, None, 0.7, 0.8]},
    }
    (workdir / "summary.json").write_text(json.dumps(summary))
    return workdir
