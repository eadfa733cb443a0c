"""The names for notebooks: they come without JAX, their example runs, and they are the engine that the verbs run."""

import json
import os
import re
import subprocess
import sys

import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image

import fedrsclip_jax as frs
from fedrsclip_jax import cli
from fedrsclip_jax.data.scenes import CLASSES
from fedrsclip_jax.data.virtual import virtual_clients
from tests.conftest import REPOSITORY, xla_flags

SCENES = {"scenes__count": 64, "image_size": 32}
CLIENTS = {"clients": 2, "min_examples": 1}
STEPS = {"local__learning_rate": 0.1, "local__batch_size": 8, "spmd__devices": 1}


@pytest.fixture(scope="module")
def backbone(tiny_folder):
    return frs.load_backbone(tiny_folder)


@pytest.fixture(scope="module")
def images():
    return frs.load_images("scenes", **SCENES)


@pytest.fixture(scope="module")
def clients(images):
    return frs.make_clients(images, **CLIENTS)


@pytest.fixture(scope="module")
def federation(backbone, images, clients):
    """After five rounds, in two calls."""
    made = frs.Federation(frs.make_method("fedrsclip"), backbone, images, clients, **STEPS)
    assert len(made.run(2)) == 2
    assert [done.number for done in made.run(3)] == [3, 4, 5]
    return made


def test_names_are_there_and_jax_comes_only_with_them():
    script = (
        "import sys, fedrsclip_jax as frs\n"
        "assert set(frs.__all__) <= set(dir(frs))\n"
        "assert not {'jax', 'numpy', 'flax'} & set(sys.modules)\n"
        "try:\n    frs.load_bakcbone\nexcept AttributeError as error:\n    print(error)\n"
        "assert 'jax' not in sys.modules\n"
        "assert frs.Federation.run and 'jax' in sys.modules\n"
        "assert all(getattr(frs, name).__doc__ for name in frs.__all__)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert done.stdout == "module 'fedrsclip_jax' has no attribute 'load_bakcbone'\n"


@pytest.mark.long
def test_the_example_of_the_readme_runs(tmp_path):
    """In a process of its own, without the tests' eight devices; programs that were compiled before are kept."""
    blocks = re.findall(r"```python\n(.*?)```", (REPOSITORY / "README.md").read_text(), re.DOTALL)
    (lines,) = (block for block in blocks if "import fedrsclip_jax as frs" in block)
    assert len(lines.splitlines()) < 20
    environment = os.environ | {
        "XLA_FLAGS": xla_flags(1),
        "PYTHONPATH": str(REPOSITORY),
    }
    done = subprocess.run(
        [sys.executable, "-c", lines], capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=300
    )
    assert done.returncode == 0, done.stderr
    *rounds, scores, guess = done.stdout.splitlines()
    numbers, losses = zip(*(map(float, line.split()) for line in rounds), strict=True)
    assert numbers == tuple(range(1, 11))
    assert losses[-1] < losses[0]
    zero_shot, personalised = map(float, re.fullmatch(r"zero-shot (\S+) personalised (\S+)", scores).groups())
    assert personalised > zero_shot + 0.05
    name, probability = guess.rsplit(" ", 1)
    assert name in CLASSES
    assert 1 / len(CLASSES) < float(probability) <= 1


@pytest.mark.long
def test_the_same_numbers_as_from_the_command_line(federation, tiny_folder, tmp_path):
    flags = [f"--config.{key.replace('__', '.')}={value}" for key, value in STEPS.items()]
    flags += [f"--config.data.{key.replace('__', '.')}={value}" for key, value in SCENES.items()]
    flags += [f"--config.partition.{key}={value}" for key, value in CLIENTS.items()]
    flags += ["--config.rounds=5", "--config.seeds=1", "--config.baselines=", f"--config.backbone={tiny_folder}"]
    quickstart = f"--config={REPOSITORY / 'configs/quickstart.py'}"
    assert cli.main(["train", "--quiet", quickstart, f"--workdir={tmp_path / 'run'}", *flags]) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    scores = json.loads(json.dumps(federation.evaluate(complete=True)))
    for part in ("zero_shot", "global", "personalised", "global_on_clients", "personal_on_pooled"):
        assert scores[part] == summary[part]


def test_predictions_are_those_that_are_scored(federation, images, clients, tmp_path):
    """Of each client's model on its own test images; and by path as by array."""
    scores = federation.evaluate()["personalised"]["per_client"]
    for client in range(2):
        rows, (count,) = clients.padded(np.array([client]), "test")
        own = rows[0, :count].tolist()
        guesses = federation.predict([images.image(i) for i in own], client=client)
        truth = [images.class_names[images.labels[i]] for i in own]
        right = [guess.class_name == name for guess, name in zip(guesses, truth, strict=True)]
        assert np.mean(right) == pytest.approx(scores[client])
    Image.fromarray(images.image(0)).save(tmp_path / "a.png")
    path = tmp_path / "a.png"
    assert federation.predict([path, str(path)]) == federation.predict([images.image(0)] * 2)
    assert federation.predict([]) == []
    assert federation.predict([Image.fromarray(images.image(0))]) == federation.predict([images.image(0)])


def test_rounds_come_as_they_end(federation, backbone, images, clients):
    """One by one, and as many as are wanted; the same rounds as all at once."""
    made = frs.Federation(frs.make_method("fedrsclip"), backbone, images, clients, **STEPS)
    seen = []
    for done in made.iterate(10):
        assert made.history[-1] == done
        seen.append(done)
        if done.number == 2:
            break
    called = []
    assert made.run(2, callback=called.append) == called
    assert [done.number for done in made.history] == [1, 2, 3, 4]
    assert [done.figures for done in made.history] == [done.figures for done in federation.history[:4]]

    def enough(done):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        made.run(3, callback=enough)
    assert len(made.history) == 5


def test_what_is_saved_is_a_run(federation, images, tiny_folder, tmp_path, refused, capsys):
    """Evaluate, predict, export and report find in its folder what the federation says itself."""
    scores = federation.evaluate()
    folder = federation.save(tmp_path / "run")
    assert (folder / "report.html").is_file()
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["rounds"], summary["local_steps"]) == (5, federation._ledger.steps)
    assert summary["personalised"]["mean"] == scores["personalised"]["mean"]
    assert summary["provenance"]["after_round"] == 0, "all its rounds were run here"
    assert cli.main(["evaluate", "--quiet", f"--workdir={folder}"]) == 0
    assert f"{100 * scores['personalised']['mean']:.1f}" in capsys.readouterr().out
    assert cli.main(["report", f"--workdir={folder}", f"--output={tmp_path / 'again.html'}"]) == 0
    Image.fromarray(images.image(0)).save(tmp_path / "a.png")
    words = ["--quiet", f"--workdir={folder}", "--client=1"]
    assert cli.main(["predict", *words, f"--output={tmp_path / 'answers.csv'}", str(tmp_path / "a.png")]) == 0
    [guess] = federation.predict([tmp_path / "a.png"], client=1)
    assert guess.class_name in (tmp_path / "answers.csv").read_text()
    assert cli.main(["export", *words, "--format=safetensors", f"--output={tmp_path / 'prompts'}"]) == 0
    with refused("holds a run; name a new folder"):
        federation.save(folder)


def test_owners_of_ones_own_are_saved_with_the_run(backbone, images, tmp_path, capsys):
    """They follow from no seed, so that the folder has to keep them."""
    clients = frs.make_clients(images, owner=["<JAXA>" if i % 4 else "ESA" for i in range(64)])
    federation = frs.Federation(frs.make_method("fedrsclip"), backbone, images, clients, **STEPS)
    federation.run(1)
    folder = federation.save(tmp_path / "run")
    assert json.loads((folder / "summary.json").read_text())["client_names"] == ["<JAXA>", "ESA"]
    page = (folder / "report.html").read_text()
    for said in ("Client 1, ESA has the fewest", "), 0, &lt;JAXA&gt; the most", "Names of the clients"):
        assert said in page
    assert cli.main(["evaluate", "--quiet", f"--workdir={folder}"]) == 0
    assert f"{100 * federation.evaluate()['personalised']['mean']:.1f}" in capsys.readouterr().out
    assert cli.main(["train", "--config.partition.kind=given", f"--workdir={tmp_path / 'new'}"]) == 2
    assert "Federation.save" in capsys.readouterr().err
    (folder / "partition.npz").write_bytes(b"")
    assert cli.main(["evaluate", "--quiet", f"--workdir={folder}"]) == 2


def test_a_client_may_be_named_as_its_owner(backbone, images, federation, refused):
    clients = frs.make_clients(images, owner=[("ESA", "JAXA")[i % 2] for i in range(64)])
    named = frs.Federation(frs.make_method("fedrsclip"), backbone, images, clients, **STEPS)
    named.run(1)
    picture = images.image(0)
    assert named.predict([picture], client="JAXA") == named.predict([picture], client=1)
    with refused("client = 'NASA': the clients are ESA, JAXA; give one of these, or a number from 0 to 1"):
        named.predict([picture], client="NASA")
    with refused("client = 'ESA': the clients have no names; give a number from 0 to 1"):
        federation.predict([picture], client="ESA")


def test_a_federation_says_whose_split_its_clients_have(backbone, images):
    """So that a folder that it saves draws the same clients again."""
    clients = frs.make_clients(images, **CLIENTS, seed=2, split_seed=-1)
    same = frs.make_clients(images, **CLIENTS, seed=2, split_seed=2)
    other = frs.make_clients(images, **CLIENTS, seed=2)
    assert clients.digest() == same.digest() != other.digest()
    made = [frs.Federation(frs.make_method("promptfl"), backbone, images, c, seed=2, **STEPS) for c in (clients, other)]
    assert [each.config.data.split_seed for each in made] == [-1, 0]
    assert [each.config.partition.kind for each in made] == ["dirichlet"] * 2
    with pytest.raises(frs.InputError, match="split_seed"):
        frs.Federation(frs.make_method("promptfl"), backbone, images, clients, data__split_seed=2)


@pytest.fixture(scope="module")
def seen():
    """A backbone that knows scenes, some of them, and two clients alike."""
    images = frs.load_images("scenes", scenes__count=160, image_size=64)
    return frs.load_backbone("tiny"), images, frs.make_clients(images, clients=2, alpha=10.0)


@pytest.mark.parametrize("optimizer", ["adam", "yogi"])
def test_adam_and_yogi_on_the_server_learn_at_their_default_rate(seen, optimizer):
    """From 14 right answers of 32 to 22; with a rate of 1 they fall to 13 at once."""
    settings = {**STEPS, "local__batch_size": 16, "server__optimizer": optimizer}
    federation = frs.Federation(frs.make_method("promptfl"), *seen, **settings)
    assert federation.config.server.learning_rate == 0.01
    start = federation.evaluate()["global"]["accuracy"]
    with jax.numpy_dtype_promotion("standard"):  # Optax's Adam mixes types
        federation.run(4)
    assert federation.evaluate()["global"]["accuracy"] > start + 0.1


class Offsets(nnx.Module):
    """A method of a notebook: a shared prompt, and a private offset of each class's logit."""

    def __init__(self, config, backbone, key, start=None):
        self.shared = frs.Shared(frs.draw_prompt(config, backbone, key, start))
        self.offset = frs.Private(np.zeros(backbone.num_classes, np.float32))

    def loss(self, batch, backbone, weights):
        logits = self.personal_logits(batch.features, backbone)
        ce = frs.cross_entropy(logits, batch)
        return ce, {"ce": ce, "accuracy": frs.accuracy(logits, batch)}

    def global_logits(self, features, backbone):
        return backbone.scale * frs.cosines(features, backbone.encode(self.shared[...]))

    def personal_logits(self, features, backbone):
        return self.global_logits(features, backbone) + self.offset[...][None]


def test_a_method_of_ones_own(backbone, images, clients, tmp_path, capsys):
    federation = frs.Federation(frs.make_method(Offsets), backbone, images, clients, **STEPS)
    same = [federation.predict([images.image(0)], client=client) for client in (0, 1)]
    assert same[0] == same[1]
    history = federation.run(4)
    assert history[-1].figures["ce"] < history[0].figures["ce"]
    own = [federation.predict([images.image(0)], client=client) for client in (0, 1)]
    assert own[0] != own[1]  # offsets stayed with their clients
    folder = federation.save(tmp_path / "run")  # for its report: other verbs would have to find the class
    assert "Offsets" in (folder / "report.html").read_text()
    Image.fromarray(images.image(0)).save(tmp_path / "a.png")
    assert cli.main(["predict", f"--workdir={folder}", str(tmp_path / "a.png")]) == 2
    assert "unknown method 'Offsets'" in capsys.readouterr().err


def test_a_whole_configuration(federation, tiny_folder):
    """Its numbers are those of the parts put together by hand."""
    config = frs.load_config(
        REPOSITORY / "configs" / "quickstart.py",
        rounds=3,
        backbone=str(tiny_folder),
        **{f"data__{key}": value for key, value in SCENES.items()},
        **{f"partition__{key}": value for key, value in CLIENTS.items()},
        **STEPS,
    )
    assert (config.rounds, config.partition.clients, config.local.batch_size) == (3, 2, 8)
    whole = frs.Federation.of(config)
    assert whole.config.local == config.local
    assert [done.figures for done in whole.run(3)] == [done.figures for done in federation.history[:3]]


def test_images_that_cannot_be_read_are_nobodys(tiny_folder, tmp_path, refused, backbone):
    from tests.end_to_end.conftest import photographs

    photographs(tmp_path / "photos", {"river": 12, "lake": 12})
    broken = sorted((tmp_path / "photos" / "lake").iterdir())[0]
    broken.write_bytes(broken.read_bytes()[:40])
    keys = {f"partition__{key}": value for key, value in (CLIENTS | {"kind": "iid"}).items()} | STEPS
    config = frs.load_config(
        backbone=str(tiny_folder), data__source=f"folder:{tmp_path / 'photos'}", data__skip_unreadable=True, **keys
    )
    federation = frs.Federation.of(config)
    assert sum(federation.clients.counts(np.arange(2), split).sum() for split in ("train", "test")) == 23
    images = frs.load_images(f"folder:{tmp_path / 'photos'}")
    clients = frs.make_clients(images, kind="iid", **CLIENTS)
    with refused("clients: image", "cannot be read"):
        frs.Federation(frs.make_method(), backbone, images, clients, data__skip_unreadable=True, **STEPS)


def test_clients_of_other_images_are_refused(refused, backbone, images):
    more = frs.load_images("scenes", scenes__count=96, image_size=32)
    with refused("clients: they own image", "make them of these"):
        frs.Federation(frs.make_method(), backbone, images, frs.make_clients(more, **CLIENTS), **STEPS)


def test_bad_input_is_one_line(refused, backbone, images, clients, federation, tmp_path):
    with refused("unknown config key 'local.learning_rat'", "local.learning_rate"):
        frs.Federation(frs.make_method(), backbone, images, clients, local__learning_rat=1)
    with refused("'rounds' = 'many'", "a whole number"):
        frs.load_config(rounds="many")
    with refused("unknown method 'fedrclip'", "did you mean 'fedrsclip'"):
        frs.make_method("fedrclip")
    with refused("method.context_token"):
        frs.make_method(context_token=4)
    with refused("data.source='scene'"):
        frs.load_images("scene")
    with refused("partition.kind", "'dirichlet'"):
        frs.make_clients(images, "dirichlett")
    with refused("no_such_clip"):
        frs.load_backbone(tmp_path / "no_such_clip")
    with refused("clients 0 to 1"):
        federation.predict([images.image(0)], client=2)
    with refused("nowhere.png"):
        federation.predict([tmp_path / "nowhere.png"])
    with refused("eval__base_to_new: Federation does not read it", "fedrsclip train"):
        frs.Federation(frs.make_method(), backbone, images, clients, eval__base_to_new=True)
    with refused("method__pacl_weight", "make_method"):
        frs.Federation(frs.make_method(), backbone, images, clients, method__pacl_weight=0)
    with refused("partition__alpha", "make_clients"):
        frs.Federation(frs.make_method(), backbone, images, clients, partition__alpha=1)
    with refused("kind = 'virtual'", "Federation.of"):
        frs.make_clients(images, "virtual")
    for rounds in (0, True):
        with refused(f"rounds = {rounds!r}"):
            federation.run(rounds)
    with refused("pictures: 'a.png' is one path"):
        federation.predict("a.png")
    half = np.arange(32, dtype=np.int32)
    drawn = virtual_clients(images.source.labels, half, half + 32, clients=4, alpha=1.0, examples_per_client=4, seed=0)
    with refused("save: a run's folder cannot keep given VirtualClients", "Federation.of(config)"):
        frs.Federation(frs.make_method(), backbone, images, drawn, cohort=2, **STEPS).save(tmp_path / "run")
    with refused("save: no round was run yet"):
        frs.Federation(frs.make_method(), backbone, images, clients, **STEPS).save(tmp_path / "run")
    assert not (tmp_path / "run").exists()
