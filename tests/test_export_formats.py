"""Every method in every format: what is written gives our logits, or it is refused."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="exports are held against PyTorch")  # what follows needs it
# ruff: noqa: E402

from contextlib import suppress

import jax.numpy as jnp
from flax import nnx

from fedrsclip_jax.errors import InputError
from fedrsclip_jax.export.chosen import choose, logits_of
from fedrsclip_jax.export.exporter import torch_clip
from fedrsclip_jax.export.figures import Figures
from fedrsclip_jax.export.formats import MODELS
from fedrsclip_jax.export.layouts import file_of
from fedrsclip_jax.export.pictures import take
from fedrsclip_jax.finished import open_run, restore
from fedrsclip_jax.methods import METHODS
from fedrsclip_jax.prompts import read
from tests.runs import PLAIN, finished

NEAR = 1e-3  # of logits of about 100, as a certificate asks
PROMPTS = {"promptfl", "local_coop", "fedpgp", "fedrsclip", "fedotp"}
HOLDS = {
    "coop": PROMPTS,
    "flip": PROMPTS,
    "fedtpg": PROMPTS,
    "safetensors": PROMPTS,
    "fedotp": {"fedrsclip", "fedotp"},
    "classifier": {"promptfl", "local_coop", "fedpgp", "fedrsclip", "linear_probe"},
    "onnx": {"promptfl", "local_coop", "fedpgp", "fedrsclip", "linear_probe"},
}


@pytest.fixture(scope="module")
def opened(tiny_folder, tmp_path_factory):
    """By method: the models of the federation and of a client, as far as there are, pictures, and CLIP in PyTorch."""
    found = {}

    def of(name: str):
        if name not in found:
            workdir = finished(tmp_path_factory.mktemp(name) / "run", tiny_folder, PLAIN, **{"method.name": name})
            run = open_run(workdir, [], images=False)
            restored, models = restore(run), []
            for client in (None, 2):
                with suppress(InputError):  # of a method that shares nothing, or everything
                    models.append(choose(run, restored, client))
            assert models
            found[name] = models, restored.module(1), take(run), torch_clip(run)
        return found[name]

    return of


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("name", METHODS)
def test_every_method_in_every_format_gives_our_logits_or_is_refused(opened, tmp_path, name, kind):
    if kind == "onnx":
        for module in MODELS[kind].needs:
            pytest.importorskip(module)
    models, other, pictures, clip = opened(name)
    written = 0
    for model in models:
        folder = tmp_path / str(model.client)
        folder.mkdir()
        if refusal := refused_by(kind, name, model):
            assert f"--format={kind}" in refusal
            assert len(refusal.splitlines()) == 1
            continue
        MODELS[kind].write(model, folder, Figures("test"), False)
        written += 1
        if model.grid is None:
            theirs, ours = MODELS[kind].run(model, folder, pictures, clip), model.logits(pictures.features)
        else:  # the prompts, read back and put into the method
            theirs, ours = of_patches(model, other, file_of(kind, folder, model.round), kind)
        assert np.ptp(ours) > 100 * NEAR  # or anything would pass
        np.testing.assert_allclose(theirs, ours, rtol=0, atol=NEAR)
    assert (written > 0) == (name in HOLDS[kind])


def refused_by(kind, name, model) -> str:
    """What a format says against a model, if anything."""
    try:
        MODELS[kind].accept(name)
        MODELS[kind].check(model)
    except InputError as error:
        return str(error)
    return ""


def of_patches(model, other, file, kind):
    """Logits of random patches, by the method with the prompts of a file, and by the model itself."""
    prompts = read(f"{'coop' if kind == 'fedtpg' else kind}:{file}")
    state = nnx.state(other)
    for owner, prompt in prompts.present.items():
        state[owner] = state[owner].replace(jnp.asarray(prompt))
    nnx.update(other, state)
    rows = np.random.default_rng(0).normal(size=(5, 1 + model.grid**2, 16)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=-1, keepdims=True)
    features = rows.reshape(5, -1)
    return logits_of(other, model.client is None, model.backbone, features), model.logits(features)
