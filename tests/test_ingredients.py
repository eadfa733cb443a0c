"""What a notebook's federation is made of: every key that is accepted changes something, and all others are refused."""

import re
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image
from safetensors.numpy import save_file

import fedrsclip_jax as frs
from fedrsclip_jax import config as configuration
from fedrsclip_jax.config import Config
from fedrsclip_jax.methods import METHODS
from fedrsclip_jax.methods.base import needs_patches

ALL = {name: (kind, field) for name, kind, field in configuration.keys(Config)}
SMALL = {"local__batch_size": 8, "spmd__devices": 1}


@pytest.fixture(scope="module")
def backbone(tiny_folder):
    return frs.load_backbone(tiny_folder)


@pytest.fixture(scope="module")
def images():
    return frs.load_images("scenes", scenes__count=64, image_size=32)


@pytest.fixture(scope="module")
def clients(images):
    return frs.make_clients(images, clients=2, min_examples=1)


def another(name):
    """A value that is not the default."""
    kind, field = ALL[name]
    special = {
        "cohort": 1,
        "dropout": 0.5,
        "eval.clients": 1,
        "data.half": "federate",
        "data.half_seed": 2,
        "data.classes": "intersection",
        "data.split": "drawn",
        "data.layout": "classes",
        "backbone_templates": ("a {}.",),
        "data.scenes.domains": ("dust",),
        "partition.kind": "iid",
        "method.patch_grid": 2,
        "method.context_init": "a photo of a",
        "spmd.devices": 2,
        "spmd.clients_per_device": 2,
        "spmd.features": "streamed",
        "server.aggregator": "median",
    }
    if name in special:
        return special[name]
    if field.metadata["among"]:
        return next(value for value in field.metadata["among"] if value != field.default)
    if kind is bool:
        return not field.default
    if kind is int:
        return field.default + 1
    return field.default / 2 + 0.01 if kind is float else "x"


def attempt(call, *arguments, **keys):
    """What a call gives, or what it says instead."""
    try:
        return call(*arguments, **keys), None
    except frs.InputError as error:
        return None, str(error)


def underscored(name):
    return name.replace(".", "__")


def bytes_of(tree):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def settled(federation):
    """All that decides what the rounds and scores of a federation are, as they stand before the first."""
    own = federation._engine
    window, plan = own.window(1, 3), own.plan
    return repr(
        (
            (plan.local, plan.server, plan.mesh.size, plan.cohort, plan.ordered, plan.streamed),
            (own.lanes, own._planner.room, own.scored.tolist(), own._tuning and own._tuning.plan),
            (window.cohorts.tolist(), window.answering.tolist(), len(federation._features.views)),
            bytes_of((own.server, own.hyper, jax.random.key_data(own.key), own.population.gather(np.arange(2)))),
        )
    )


@pytest.fixture(scope="module")
def plain(backbone, images, clients):
    return settled(frs.Federation(frs.make_method("promptfl"), backbone, images, clients, **SMALL))


@pytest.mark.parametrize("name", [name for name in ALL if name != "backbone"])  # which is an argument
def test_a_key_of_a_federation_changes_it_or_is_refused(name, backbone, images, clients, plain, tmp_path, broken):
    key, value, others = underscored(name), another(name), dict(SMALL)
    if name == "init_from":
        value = f"safetensors:{tmp_path / 'prompt.safetensors'}"
        save_file({"shared": np.ones((4, 32), np.float32)}, tmp_path / "prompt.safetensors")
    others.pop(key, None)
    if name == "data.skip_unreadable":
        with pytest.raises(frs.InputError, match="cannot read image"):
            frs.Federation(frs.make_method("promptfl"), backbone, *broken, **SMALL)
        assert frs.Federation(frs.make_method("promptfl"), backbone, *broken, **{key: True}, **SMALL).history == []
        return
    given = {key: value} | others
    made, said = attempt(frs.Federation, frs.make_method("promptfl"), backbone, images, clients, **given)
    if made is None:
        assert said.startswith(f"{key}: Federation does not read it; "), said
    else:
        assert settled(made) != plain


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    """Images of which one cannot be read, and clients that do not own it."""
    folder = tmp_path_factory.mktemp("broken")
    rng = np.random.default_rng(0)
    for name in ("river", "lake"):
        (folder / name).mkdir()
        for i in range(4):
            Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(folder / name / f"{i}.png")
    (folder / "lake" / "3.png").write_bytes(b"no picture")
    images = frs.load_images(f"folder:{folder}")
    return images, frs.make_clients(images, owner={"lake/0.png": 0, "lake/1.png": 0, "river/0.png": 0}, train=[0, 4])


def _in_folders(root):
    """Class folders in folders of a split."""
    for side in ("train", "test"):
        for name in ("river", "lake"):
            (root / side / name).mkdir(parents=True)
            Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(root / side / name / "0.png")
    return root


def test_templates_of_a_backbone_change_zero_shot(images, tiny_folder):
    plain, other = (
        frs.load_backbone(tiny_folder),
        frs.load_backbone(tiny_folder, templates=["a {}.", "{} seen from above"]),
    )
    method = frs.make_method("promptfl").settings
    zero_shot = [np.asarray(each.task(images).backbone(method).zero_shot) for each in (plain, other)]
    assert np.abs(zero_shot[0] - zero_shot[1]).max() > 1e-3
    np.testing.assert_allclose(np.linalg.norm(zero_shot[1], axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize("name", [name for name in ALL if name.startswith("data.") and name != "data.source"])
@pytest.mark.parametrize("kind", ["scenes", "folder", "several"])
def test_a_key_of_images_changes_them_or_is_refused(kind, name, tmp_path, broken):
    folder = f"folder:{Path(broken[0].name(0)).parent.parent}"
    if name in ("data.split", "data.layout"):
        folder = f"folder:{_in_folders(tmp_path / 'laid_out')}"
    source = {"scenes": "scenes", "folder": folder, "several": f"scenes,{folder}"}[kind]
    key, value = underscored(name.removeprefix("data.")), another(name)
    given = {} if kind == "folder" else {"scenes__count": 32}
    if name == "data.half_seed":
        given["half"] = "federate"
    if name == "data.merge":
        (tmp_path / "merge.txt").write_text("water = river\n")
        value = str(tmp_path / "merge.txt")
    before = frs.load_images(source, **given)
    after, said = attempt(frs.load_images, source, **(given | {key: value}))
    if after is None:
        assert re.match(rf"{key}: .* (say it to|leave it out)", said), said
    else:
        told = [(images.digests, images.class_names, images.sides is None) for images in (before, after)]
        assert told[0] != told[1]


def test_a_seed_of_halves_needs_halves(refused):
    with refused("half_seed: half = 'all' does not read it"):
        frs.load_images("scenes", half_seed=3)


@pytest.mark.parametrize("kind", ["iid", "dirichlet", "classes"])
@pytest.mark.parametrize("name", [name for name in ALL if name.startswith("partition.") and name != "partition.kind"])
def test_a_key_of_clients_changes_them_or_is_refused(kind, name, images):
    key, value = name.removeprefix("partition."), another(name)
    value = {"min_examples": 12, "clients": 5, "held_out": 1, "classes_per_client": 5}.get(key, value)
    few = {"clients": 4, "min_examples": 1, "classes_per_client": 4}
    given = {name: value for name, value in few.items() if kind == "classes" or name != "classes_per_client"}
    before = frs.make_clients(images, kind, **given)
    after, said = attempt(frs.make_clients, images, kind, **(given | {key: value}))
    if after is None:
        assert re.match(rf"{key}: clients of kind = .* do not read it", said), said
    elif key == "min_examples" and kind != "dirichlet":
        assert min(before.counts(np.arange(4), "train")) >= 12, "nobody has less, so there is nothing to change"
    else:
        assert after.digest() != before.digest()


def test_other_keys_of_clients_change_them(images):
    before = frs.make_clients(images, clients=2, min_examples=1)
    for keys in ({"seed": 1}, {"kind": "iid"}, {"test_fraction": 0.4}, {"split": "validation"}):
        after = frs.make_clients(images, clients=2, min_examples=1, **keys)
        assert after.digest() != before.digest()


@pytest.mark.parametrize("method", METHODS)
def test_a_key_of_a_method_changes_it_or_is_refused(method, backbone, images):
    """What it reads is what changes its variables, the program of its loss, or the loss by a weight."""
    task = backbone.task(images)

    def told(chosen):
        settings = chosen.settings
        text, key = task.backbone(settings), jax.random.key(0)
        graph, state = nnx.split(chosen.make(settings, text, key, task.context_start(settings)))
        width = 16 * (1 + task.patch_grid(settings) ** 2 if needs_patches(chosen.make) else 1)
        rows = np.random.default_rng(0).normal(size=(4, width)).astype(np.float32)
        batch = frs.Batch(jnp.asarray(rows), jnp.arange(4), jnp.ones(4, bool))

        def loss(state, weights):
            return nnx.merge(graph, state).loss(batch, text, weights)[0]

        weights = [settings.pacl_weight, settings.cmfac_weight, settings.contrastive_weight, settings.temperature]
        program = jax.make_jaxpr(loss)(state, frs.Weights(*map(jnp.float32, weights)))
        return repr((str(program), bytes_of((state, program.consts)))), partial(loss, state), weights

    program, loss, weights = told(frs.make_method(method))
    # A weight that the loss does not read has no slope.
    read = jax.jit(jax.grad(lambda weights: loss(frs.Weights(*weights))))([jnp.float32(weight) for weight in weights])
    slopes = dict(zip(("pacl_weight", "cmfac_weight", "contrastive_weight", "temperature"), read, strict=True))
    for name in (name for name in ALL if name.startswith("method.") and name != "method.name"):
        key = name.removeprefix("method.")
        chosen, said = attempt(frs.make_method, method, **{key: another(name)})
        if chosen is None:
            assert said.startswith(f"{key}: {method} does not read it"), said
            assert slopes.get(key, 0) == 0
        else:
            assert slopes[key] != 0 if key in slopes else told(chosen)[0] != program, key


def test_scores_of_a_split_are_of_that_split(backbone, images):
    """Clients of `split="validation"` are scored on training images, and the configuration says so."""
    keys = {"clients": 2, "min_examples": 1}
    clients = frs.make_clients(images, split="validation", **keys)
    federation = frs.Federation(frs.make_method("promptfl"), backbone, images, clients, **SMALL)
    assert federation.config.eval.split == "validation"
    of_test = frs.make_clients(images, **keys)
    assert not set(clients.pooled.tolist()) & set(of_test.pooled.tolist())
    assert set(clients.pooled.tolist()) <= {int(i) for k in range(2) for i in of_test.partition.train_of(k)}, (
        "validation images come from the training images"
    )


def test_the_configuration_describes_what_there_is(backbone, images, clients):
    made = frs.Federation(frs.make_method("promptfl"), backbone, images, clients, data__views=2, **SMALL)
    assert made.config.data.scenes.count == 64
    assert made.config.data.image_size == 32
    assert made.config.data.views == 2
    assert (made.config.partition.kind, made.config.partition.clients) == ("dirichlet", 2)
    other = frs.Federation(frs.make_method("promptfl"), backbone, images, clients, seed=1, **SMALL)
    assert other.config.partition.kind == "given", "its seed would draw other clients"


def test_what_is_printed(backbone, images, clients):
    assert repr(images) == "64 images of 16 classes, from scenes"
    assert repr(clients) == "2 clients with 48 images to train on and 16 to be scored on"
    federation = frs.Federation(frs.make_method("promptfl"), backbone, images, clients, **SMALL)
    assert repr(federation) == f"promptfl after 0 rounds: {clients!r}, of 64 images of 16 classes"
    assert repr(frs.make_method("promptfl")) == "method promptfl"
    assert str(backbone).startswith("CLIP ")
    virtual = frs.load_config(partition__kind="virtual", partition__clients=10**6, cohort=2)
    from fedrsclip_jax.task import divide_images

    assert "1,000,000 virtual clients" in repr(divide_images(virtual, images))


def test_arguments_of_the_wrong_kind(refused, backbone, images, clients):
    method = frs.make_method("promptfl")
    with refused("method: 'promptfl' is given; give frs.make_method('promptfl')"):
        frs.Federation("promptfl", backbone, images, clients)
    with refused("backbone: 'tiny' is given", "frs.load_backbone"):
        frs.Federation(method, "tiny", images, clients)
    with refused("images: 'folder:x' is given", "frs.load_images('folder:x')"):
        frs.make_clients("folder:x")
    with refused("images: an object of PartitionedClients is given"):
        frs.Federation(method, backbone, clients, images)
    with refused("clients: 10 is given", "frs.make_clients(images)"):
        frs.Federation(method, backbone, images, 10)
    with refused("cohort = 3 of 2 clients"):
        frs.Federation(method, backbone, images, clients, cohort=3)
    with refused("eval__clients = 3 of 2 clients"):
        frs.Federation(method, backbone, images, clients, eval__clients=3)
