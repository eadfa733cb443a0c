"""Prompts imported: what was exported comes back bit for bit, and goes where it belongs."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

torch = pytest.importorskip("torch", reason="most of these files are PyTorch's")  # what follows needs it
# ruff: noqa: E402

from safetensors.numpy import save_file

from fedrsclip_jax.errors import install
from fedrsclip_jax.export.chosen import choose
from fedrsclip_jax.export.exporter import Request, export
from fedrsclip_jax.export.layouts import file_of
from fedrsclip_jax.federated.initial import initial
from fedrsclip_jax.finished import open_run, restore
from fedrsclip_jax.methods import METHODS
from fedrsclip_jax.methods.base import Private, Shared
from fedrsclip_jax.progress import Progress
from fedrsclip_jax.prompts import KEPT, Prompts, imported, keep, kept, read, starting_from
from tests import toy
from tests.runs import ROUNDS, finished

RNG = np.random.default_rng(5)
SHARED, PRIVATE = (RNG.normal(0, 0.02, (4, 32)).astype(np.float32) for _ in range(2))


@pytest.fixture(scope="module")
def workdir(tiny_folder, tmp_path_factory) -> Path:
    return finished(tmp_path_factory.mktemp("finished") / "run", tiny_folder)


@pytest.fixture(scope="module")
def run(workdir):
    return open_run(workdir, [])


def configured(run, init_from: object, **method):
    config = dataclasses.replace(run.config, init_from=str(init_from))
    return dataclasses.replace(config, method=dataclasses.replace(config.method, **method))


def saved(path: Path, value, key: str = "ctx", **more) -> Path:
    torch.save({"state_dict": {key: torch.as_tensor(value)}, "epoch": 3, **more}, path)
    return path


@pytest.mark.parametrize(
    ("kind", "client"), [("coop", None), ("flip", None), ("safetensors", None), ("safetensors", 2), ("fedotp", 2)]
)
def test_export_then_import_is_the_identity(workdir, run, tmp_path, kind, client):
    export(Request(workdir, kind, tmp_path / "out", client=client), [], Progress(quiet=True))
    prompts = imported(configured(run, f"{kind}:{file_of(kind, tmp_path / 'out', ROUNDS)}"), run.task.clip_config)
    expected = choose(run, restore(run), client).prompts
    assert expected is not None
    assert (
        prompts.present.keys() == expected.present.keys() == ({"shared"} if client is None else {"shared", "private"})
    )
    for name, prompt in prompts.present.items():
        assert prompt.dtype == np.float32
        assert prompt.tobytes() == expected.present[name].tobytes()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_widened(tmp_path, dtype):
    narrow = torch.from_numpy(SHARED.copy()).to(getattr(torch, dtype))
    wide = narrow.float().numpy()
    assert np.abs(wide - SHARED).max() > 0
    coop = read(f"coop:{saved(tmp_path / 'a', narrow)}")
    flip = read(f"flip:{saved(tmp_path / 'b', narrow[None])}")
    from safetensors.torch import save_file as save_torch

    save_torch({"private": narrow}, tmp_path / "c")
    tensors = read(f"safetensors:{tmp_path / 'c'}")
    assert tensors.shared is None
    for prompt in (coop.shared, flip.shared, tensors.private):
        assert prompt is not None
        assert prompt.dtype == np.float32
        np.testing.assert_array_equal(prompt, wide)


def test_a_state_dict_alone_and_one_of_the_whole_model_will_do(tmp_path):
    torch.save({"ctx": torch.from_numpy(SHARED.copy())}, tmp_path / "bare")
    np.testing.assert_array_equal(read(f"coop:{tmp_path / 'bare'}").shared, SHARED)
    whole = {"prompt_learner.ctx": torch.from_numpy(SHARED.copy()), "logit_scale": torch.ones(())}
    torch.save(whole, tmp_path / "whole")
    np.testing.assert_array_equal(read(f"coop:{tmp_path / 'whole'}").shared, SHARED)


BOTH, ONE, OTHER = Prompts(SHARED, PRIVATE), Prompts(SHARED), Prompts(private=PRIVATE)


@pytest.mark.parametrize(
    ("method", "prompts", "shared", "private"),
    [
        ("fedrsclip", BOTH, SHARED, PRIVATE),
        ("fedrsclip", ONE, SHARED, None),
        ("fedrsclip", OTHER, None, PRIVATE),
        ("promptfl", ONE, SHARED, None),
        ("promptfl", BOTH, SHARED, None),
        ("promptfl", OTHER, PRIVATE, None),
        ("local_coop", ONE, None, SHARED),
        ("local_coop", BOTH, None, PRIVATE),
        ("local_coop", OTHER, None, PRIVATE),
    ],
)
def test_prompts_go_where_they_belong_and_nothing_is_added(run, method, prompts, shared, private):
    config = configured(run, "", name=method)
    backbone = run.task.backbone(config.method)
    drawn_shared, drawn = started(config, METHODS[method], backbone)
    got_shared, got = started(config, starting_from(prompts, METHODS[method]), backbone)
    for given, before, after in ((shared, drawn_shared, got_shared), (private, drawn, got)):
        for leaf, untouched in zip(jax.tree.leaves(after), jax.tree.leaves(before), strict=True):
            expected = np.asarray(untouched) if given is None else np.broadcast_to(given, leaf.shape)
            np.testing.assert_array_equal(leaf, expected)
    assert bool(jax.tree.leaves(got_shared)) == (method != "local_coop")


def started(config, make, backbone):
    """Shared variables, and the private ones of three clients, as a federation starts."""
    _, shared, population = initial(config, make, backbone, None, 4)
    return shared, population.gather(np.array([0, 1, 3]))


def test_a_module_of_a_method_stays_what_it_was(run):
    """The structure that a round is compiled for does not know where prompts come from."""
    config = configured(run, "")
    backbone = run.task.backbone(config.method)
    plain, given = (
        nnx.split(make(config.method, backbone, jax.random.key(0), None), Shared, Private)[0]
        for make in (METHODS["fedrsclip"], starting_from(BOTH, METHODS["fedrsclip"]))
    )
    assert plain == given


def test_no_file_is_no_change(run):
    assert imported(run.config, run.task.clip_config) == Prompts()
    assert starting_from(Prompts(), METHODS["promptfl"]) is METHODS["promptfl"]


def test_a_run_keeps_what_it_started_from(tiny_folder, tmp_path, refused):
    """A client that was never drawn has the private prompt of the start, whatever has become of the file since."""
    file = tmp_path / "start"
    save_file({"shared": SHARED, "private": PRIVATE}, file)
    workdir = finished(tmp_path / "run", tiny_folder, init_from=f"safetensors:{file}")

    def untouched() -> np.ndarray:
        run = open_run(workdir, [], images=False)
        prompts = choose(run, restore(run), 3).prompts
        assert prompts is not None
        assert prompts.private is not None
        return prompts.private

    np.testing.assert_array_equal(untouched(), PRIVATE)
    save_file({"shared": SHARED, "private": SHARED}, file)
    np.testing.assert_array_equal(untouched(), PRIVATE)
    file.unlink()
    np.testing.assert_array_equal(untouched(), PRIVATE)

    # Nor is another prompt taken for it if its own copy is lost.
    path = workdir / KEPT
    content = path.read_bytes()
    for damaged in (content[:-1] + bytes([content[-1] ^ 1]), content[:100], b""):
        path.write_bytes(damaged)
        with refused(f"--workdir: {path} no longer holds the prompts", "copy it again"):
            untouched()
    path.unlink()
    with refused(f"--workdir: {path} is gone", "copy it again"):
        untouched()
    with refused("--config.init_from", "only backbone"):
        open_run(workdir, [("init_from", f"safetensors:{file}")])


@pytest.mark.parametrize("prompts", [Prompts(SHARED, PRIVATE), Prompts(private=PRIVATE), Prompts(SHARED.T.copy().T)])
def test_what_is_kept_comes_back_bit_for_bit(tmp_path, prompts):
    keep(prompts, tmp_path)
    back = kept(tmp_path, prompts.digest)
    assert back.present.keys() == prompts.present.keys()
    for name, prompt in back.present.items():
        np.testing.assert_array_equal(prompt, prompts.present[name])
    keep(Prompts(), tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert len({prompts.digest, Prompts().digest, Prompts(PRIVATE, SHARED).digest}) == 3


class Payload:
    """What a pickle of a stranger may hold."""

    def __reduce__(self):
        return (print, ("executed",))


def cases(folder: Path):
    yield "satellite", ("'satellite'", "coop:FILE", "safetensors:FILE")
    yield "coop:", ("'coop:'", "coop:FILE")
    yield f"coop:{folder / 'nowhere'}", ("nowhere is no file",)
    learner = folder / "run" / "prompt_learner"
    learner.mkdir(parents=True)
    saved(learner / "model.pth.tar-3", SHARED)
    yield f"coop:{folder / 'run'}", ("is a folder", "model.pth.tar-3")
    (folder / "text").write_text("no prompt")
    yield f"coop:{folder / 'text'}", ("text is no PyTorch file",)
    yield f"safetensors:{folder / 'text'}", ("text cannot be read as safetensors",)
    torch.save({"state_dict": {"ctx": torch.zeros(4, 32)}, "scheduler": Payload()}, folder / "pickle")
    yield f"coop:{folder / 'pickle'}", ("holds more than tensors and numbers",)
    whole = saved(folder / "whole", SHARED)
    whole.with_name("cut").write_bytes(whole.read_bytes()[:300])
    yield f"coop:{folder / 'cut'}", ("cut",)
    yield f"coop:{saved(folder / 'other', SHARED, 'weight')}", ("no tensors called ctx",)
    for name, value in {
        "number": {"state_dict": 3},
        "unnamed": {0: torch.zeros(4, 32)},
        "unnamed inside": {"state_dict": {0: torch.zeros(4, 32)}},
        "alone": torch.zeros(4, 32),
        "listed": [torch.zeros(4, 32)],
    }.items():
        torch.save(value, folder / name)
        yield f"coop:{folder / name}", (f"{folder / name} holds no tensors called ctx", "torch.save(")
    twice = {"ctx": torch.zeros(4, 32), "prompt_learner.ctx": torch.zeros(4, 32)}
    torch.save(twice, folder / "twice")
    yield f"coop:{folder / 'twice'}", (f"{folder / 'twice'} holds 2 tensors called ctx", "torch.save(")
    for name, value in {
        "sparse": torch.zeros(4, 32).to_sparse(),
        "nowhere else": torch.zeros(4, 32, device="meta"),
    }.items():
        torch.save({"state_dict": {"ctx": value}}, folder / name)
        for kind in ("coop", "fedotp", "flip"):
            yield f"{kind}:{folder / name}", (f"ctx in {folder / name} is no dense tensor", "to_dense()")
    torch.save({"ctx": "a photo of a"}, folder / "words")
    yield f"coop:{folder / 'words'}", ("ctx in", "words is str", "save it as a tensor of float32")
    yield f"coop:{saved(folder / 'scalar', np.float32(1))}", ("has shape []", "[tokens, width]")
    yield f"flip:{saved(folder / 'four', SHARED[None, None])}", ("has shape [1, 1, 4, 32]", "[tokens, width]")
    yield f"coop:{saved(folder / 'integers', np.zeros((4, 32), np.int64))}", ("ctx", "int64", "float32")
    yield f"coop:{saved(folder / 'flips', SHARED[None])}", ("[1, 4, 32]", "flip:")
    yield f"coop:{saved(folder / 'two', np.stack([SHARED, PRIVATE]))}", ("[2, 4, 32]", "fedotp:")
    yield f"coop:{saved(folder / 'classes', np.stack([SHARED] * 3))}", ("[3, 4, 32]", "contexts of single classes")
    yield f"flip:{folder / 'whole'}", ("[4, 32]", "coop:")
    yield f"flip:{folder / 'two'}", ("[2, 4, 32]", "fedotp:")
    yield f"fedotp:{folder / 'whole'}", ("[4, 32]", "coop:")
    yield f"coop:{saved(folder / 'nan', SHARED * np.nan)}", ("not finite",)
    yield (
        f"coop:{saved(folder / 'long', np.zeros((16, 32), np.float32))}",
        ("16 tokens", "context_tokens = 16 (it is 4)"),
    )
    yield f"coop:{saved(folder / 'wide', np.zeros((4, 512), np.float32))}", ("width 512", "32 wide")
    yield f"coop:{saved(folder / 'endless', np.zeros((75, 32), np.float32))}", ("75 tokens", "reads 77", "shorter")
    save_file({"weights": SHARED}, folder / "weights")
    yield f"safetensors:{folder / 'weights'}", ("neither `shared` nor `private`",)
    save_file({"shared": SHARED[None]}, folder / "deep")
    yield f"safetensors:{folder / 'deep'}", ("shared", "[1, 4, 32]")


def test_what_cannot_start_a_run_is_refused(run, tmp_path, refused, capsys):
    for spec, words in cases(tmp_path):
        with refused("init_from", *words):
            imported(configured(run, spec), run.task.clip_config)
    with refused("method.context_init", "init_from", "give one of them"):
        imported(configured(run, f"coop:{tmp_path / 'whole'}", context_init="a photo"), run.task.clip_config)
    assert "executed" not in capsys.readouterr().out


def test_without_pytorch_it_says_what_to_install(tmp_path, refused, monkeypatch):
    import sys

    path = saved(tmp_path / "file", SHARED)
    monkeypatch.setitem(sys.modules, "torch", None)
    with refused(path, install("torch"), "safetensors:FILE"):
        read(f"coop:{path}")


@pytest.mark.parametrize(("name", "takes"), [("fedpgp", True), ("fedclip", False), ("linear_probe", False)])
def test_variables_that_are_no_prompts_are_drawn_as_ever(tiny_folder, name, takes):
    config, backbone = toy.settings(**{"method.name": name}), toy.backbone(tiny_folder)
    key = jax.random.key(0)
    module, drawn = (make(config.method, backbone, key) for make in (starting_from(BOTH, METHODS[name]), METHODS[name]))
    same = jax.tree.map(lambda a, b: bool((a == b).all()), nnx.state(module), nnx.state(drawn))
    assert jax.tree.leaves(same).count(False) == takes
    if takes:
        np.testing.assert_array_equal(module.shared[...], BOTH.shared)
