"""What a method says of its logits, held against them; nothing here needs PyTorch."""

import numpy as np
import pytest

from fedrsclip_jax.config import Config
from fedrsclip_jax.errors import CheckError
from fedrsclip_jax.experiment import check_method
from fedrsclip_jax.export import linear
from fedrsclip_jax.export.chosen import choose
from fedrsclip_jax.export.exporter import Request, export
from fedrsclip_jax.export.formats import MODELS
from fedrsclip_jax.finished import open_run, restore
from fedrsclip_jax.methods import METHODS
from fedrsclip_jax.methods.base import Head, head_of
from fedrsclip_jax.methods.fedclip import FedCLIP
from fedrsclip_jax.methods.linear_probe import LinearProbe
from fedrsclip_jax.progress import Progress
from tests.runs import PLAIN, finished

QUIET = Progress(quiet=True)


@pytest.fixture(scope="module")
def model(tiny_folder, tmp_path_factory):
    """The federation's model of a finished run of a method."""

    def of(name: str):
        workdir = finished(tmp_path_factory.mktemp(name) / "run", tiny_folder, PLAIN, **{"method.name": name})
        run = open_run(workdir, [], images=False)
        return choose(run, restore(run), None)

    return of


@pytest.mark.parametrize("name", ["linear_probe", "fedrsclip"])
def test_weights_and_bias_are_all_of_a_linear_head(model, name):
    chosen = model(name)
    head, scale = linear.read_off(chosen), float(chosen.backbone.scale)
    features = np.random.default_rng(0).normal(size=(20, 16)).astype(np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    # Logits to about 100, in single precision.
    np.testing.assert_allclose(head.logits(scale, features), chosen.logits(features), rtol=0, atol=1e-4)
    if name == "linear_probe":
        np.testing.assert_allclose(head.bias, chosen.module.bias[...], atol=1e-6)
        assert np.abs(head.bias).max() > 0.1
        np.testing.assert_allclose(head.weights, chosen.module.kernel[...], atol=1e-5)
    else:
        assert not head.bias.any()


@pytest.mark.parametrize(("method", "said"), [(FedCLIP, Head(linear=True)), (LinearProbe, Head(linear=True))])
def test_a_head_that_is_not_what_it_says_is_found_out_without_pytorch(model, monkeypatch, method, said, tmp_path):
    """A product of the feature with itself, and a bias that nobody mentions: `safetensors` alone would tell nothing."""
    (name,) = (name for name, known in METHODS.items() if known is method)
    chosen = model(name)
    monkeypatch.setattr(method, "head", said)
    with pytest.raises(CheckError, match=f"{name} says that its logits are linear") as caught:
        MODELS["classifier"].check(chosen)
    assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(CheckError):
        export(Request(chosen.run.workdir, "classifier", tmp_path / "out"), [], QUIET)
    assert not (tmp_path / "out").exists()


REFUSED = [
    ("fedclip", "classifier", "not linear"),
    ("fedclip", "safetensors", "trains something else; use `fedrsclip predict`"),
    ("fedotp", "classifier", "patches; use --format=fedotp or safetensors"),
    ("linear_probe", "safetensors", "trains something else; use --format=classifier"),
]


@pytest.mark.parametrize(("name", "kind", "words"), REFUSED)
def test_what_cannot_be_exported_is_refused_before_any_work(refused, tmp_path, monkeypatch, name, kind, words):
    """The run has neither images nor backbone nor checkpoint, of which another message would speak."""
    import json

    (tmp_path / "config.json").write_text(
        json.dumps({"method": {"name": name}, "backbone": "/nowhere", "data": {"source": "folder:/nowhere"}})
    )
    summary = {"backbone_sha256": "", "num_clients": 4, "num_classes": 3, "personalised": {}}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    with refused(f"--format={kind}", name, words):
        export(Request(tmp_path, kind, tmp_path / "out"), [], QUIET)
    assert not (tmp_path / "out").exists()


def test_every_method_says_what_its_head_is():
    assert {name for name, method in METHODS.items() if head_of(method).own_classes} == {"linear_probe"}
    assert {name for name, method in METHODS.items() if not head_of(method).linear} == {"fedclip", "fedotp"}
    for name, method in METHODS.items():
        assert "head" in vars(method), f"{name} says nothing"


def test_a_method_that_says_nothing_promises_nothing(refused, monkeypatch):
    class Silent:
        pass

    class Older:
        per_class = True

    assert head_of(Silent) == Head(linear=False, bias=False, own_classes=False)
    assert head_of(Older) == Head(own_classes=True)
    monkeypatch.setitem(METHODS, "older", Older)
    config = Config(eval=type(Config().eval)(base_to_new=True))
    with refused("eval.base_to_new = True", "older has variables of each class"):
        check_method(config, "older")
    check_method(config, "promptfl")
