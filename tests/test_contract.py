"""A class of one's own that is no method is refused in a line, before anything runs."""

import numpy as np
import pytest
from flax import nnx

import fedrsclip_jax as frs
from fedrsclip_jax.config import MethodConfig
from fedrsclip_jax.methods import METHODS
from fedrsclip_jax.methods.base import needs_patches
from fedrsclip_jax.methods.contract import check_class, check_module


class Sound(nnx.Module):
    """Offsets of the logits of zero-shot CLIP."""

    def __init__(self, config, backbone, key, start=None):
        self.offsets = frs.Shared(np.zeros(backbone.num_classes, np.float32))

    def loss(self, batch, backbone, weights):
        logits = self.personal_logits(batch.features, backbone)
        return frs.cross_entropy(logits, batch), {"accuracy": frs.accuracy(logits, batch)}

    def global_logits(self, features, backbone):
        return backbone.scale * frs.cosines(features, backbone.zero_shot) + self.offsets[...][None]

    def personal_logits(self, features, backbone):
        return self.global_logits(features, backbone)


class Nobodys(Sound):
    def __init__(self, config, backbone, key, start=None):
        self.offsets = nnx.Param(np.zeros(backbone.num_classes, np.float32))


class Nothing(Sound):
    def __init__(self, config, backbone, key, start=None):
        self.width = 3


class Scalar(Sound):
    def loss(self, batch, backbone, weights):
        return super().loss(batch, backbone, weights)[0]


class Unreduced(Sound):
    def loss(self, batch, backbone, weights):
        return self.global_logits(batch.features, backbone), {}


class Counts(Sound):
    def loss(self, batch, backbone, weights):
        return super().loss(batch, backbone, weights)[0], {"right": 1}


class Features(Sound):
    def global_logits(self, features, backbone):
        return features


class Fails(Sound):
    def personal_logits(self, features, backbone):
        return self.offset


class Unscored(nnx.Module):
    loss = Sound.loss
    personal_logits = Sound.personal_logits


class Lonely(Sound):
    def __init__(self, config):
        pass


@pytest.fixture(scope="module")
def task(tiny_folder):
    return frs.load_backbone(tiny_folder).task(frs.load_images("scenes", scenes__count=32, image_size=32))


@pytest.mark.parametrize("method", [Sound, *METHODS.values()], ids=lambda method: method.__name__)
def test_a_method_is_one(method, task):
    settings = MethodConfig(patch_grid=2)
    check_class(method)
    check_module(method, settings, task.backbone(settings), None, 16 * (5 if needs_patches(method) else 1))


@pytest.mark.parametrize(
    ("method", "words"),
    [
        (Unscored, ("Unscored has no global_logits",)),
        (Lonely, ("Lonely cannot be made from (config, backbone, key, start)",)),
        (3, ("3 is neither a name nor a class",)),
        (dict, ("neither a name nor a class",)),
        (nnx.Linear(1, 1, rngs=nnx.Rngs(0)), ("object of Linear", "give the class itself")),
    ],
    ids=lambda value: None,
)
def test_what_is_seen_without_a_backbone(method, words, refused):
    with refused("method: ", *words):
        frs.make_method(method)


@pytest.mark.parametrize(
    ("method", "words"),
    [
        (Nobodys, ("variable 'offsets' of Nobodys is Param", "frs.Shared", "frs.Private")),
        (Nothing, ("Nothing has nothing to train",)),
        (Scalar, ("loss of Scalar returns an array of shape ()", "return two things")),
        (Unreduced, ("the loss that Unreduced returns is an array of shape (3, 16)",)),
        (Counts, ("figure 'right' that Counts returns is an array of shape () and type int32",)),
        (Features, ("Features", "(3, 16)", "3 images of 16 classes")),
        (Fails, ("of Fails fails (AttributeError: ", "mend it")),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_what_is_seen_at_the_door(method, words, task, refused):
    chosen = frs.make_method(method)
    with refused("method: ", *words):
        check_module(
            chosen.make, chosen.settings, task.backbone(chosen.settings), None, 16 if method is not Features else 8
        )


def test_a_federation_looks_before_it_encodes(tiny_folder, refused, monkeypatch):
    images = frs.load_images("scenes", scenes__count=32, image_size=32)
    monkeypatch.setattr(images.source, "image", lambda i: pytest.fail("an image was opened"))
    clients = frs.make_clients(images, clients=2, min_examples=1)
    with refused("loss of Scalar"):
        frs.Federation(frs.make_method(Scalar), frs.load_backbone(tiny_folder), images, clients)
