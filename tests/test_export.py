"""Exports of prompts, loaded by prompt learners that behave like those of the other side."""

import json
import shutil

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="exports are held against PyTorch")  # what follows needs it
# ruff: noqa: E402

import transformers
from safetensors.numpy import load_file

from fedrsclip_jax.export.chosen import choose
from fedrsclip_jax.export.exporter import Request, export
from fedrsclip_jax.export.pictures import take
from fedrsclip_jax.finished import open_run, restore
from fedrsclip_jax.progress import Progress
from fedrsclip_jax.prompts import Prompts
from tests import torch_peers
from tests.runs import ACCENTS, LONG, PLAIN, ROUNDS, another_clip, finished
from tests.torch_peers import PromptLearner, StrictLearner, TextTower

QUIET = Progress(quiet=True)
NEAR = 1e-3  # of logits of about 100, as a certificate asks
POSITIONS = 77
MANY = tuple(f"sort {i} of land cover" for i in range(40))


def exported(workdir, kind: str, **flags):
    output = workdir / f"{kind}-{'-'.join(map(str, flags.values()))}"
    certificates = export(Request(workdir, kind, output, **flags), [], QUIET)
    assert all(certificate["verified"] for certificate in certificates)
    return output


def opened(workdir, client: int | None = None):
    """Our own side: the model, pictures and our logits of them."""
    run = open_run(workdir, [], images=False)
    model = choose(run, restore(run), client)
    pictures = take(run)
    return run, model, pictures, model.logits(pictures.features)


def learner_for(run, context: tuple[int, ...]):
    """A learner with freshly drawn context on the run's text tower, read from its files."""
    config = json.loads((run.task.folder / "config.json").read_text())["text_config"]
    state = {
        name: torch.from_numpy(value.astype(np.float32))
        for name, value in load_file(run.task.folder / "model.safetensors").items()
    }
    words = transformers.AutoTokenizer.from_pretrained(run.task.folder)
    tower = TextTower(state, config["num_attention_heads"], config["hidden_act"])
    names, position = run.task.source.class_names, run.config.method.class_position
    return PromptLearner(names, words, tower, context, position, POSITIONS), tower


def logits_of(learner: PromptLearner, tower: TextTower, run, pictures) -> np.ndarray:
    """s f . t, averaged over the learner's prompts."""
    with torch.no_grad():
        texts = tower(learner(), learner.end).unflatten(0, (learner.prompts, learner.classes)).mean(dim=0)
        scale = tower.state["logit_scale"].exp()
        return (scale * torch.tensor(pictures.features) @ texts.T).numpy()


SHAPES = [
    ("end", 4, PLAIN, 32),
    ("middle", 5, ACCENTS, 48),
    ("front", 1, LONG, 32),
    ("end", 16, LONG, 48),
    ("middle", 1, PLAIN, 32),
    ("end", 2, MANY, 32),
]


@pytest.mark.parametrize(("position", "tokens", "names", "width"), SHAPES, ids=lambda v: str(v)[:12])
def test_coop_loads_it_and_gives_our_logits(tiny_folder, tmp_path, position, tokens, names, width):
    clip = tiny_folder if width == 32 else another_clip(tmp_path / "clip", tiny_folder, width)
    settings = {"method.context_tokens": tokens, "method.class_position": position, "method.name": "promptfl"}
    workdir = finished(tmp_path / "run", clip, names, **settings)
    output = exported(workdir, "coop")
    run, _, pictures, ours = opened(workdir)
    learner, tower = learner_for(run, (tokens, width))

    fresh = logits_of(learner, tower, run, pictures)
    assert np.abs(fresh - ours).max() > 100 * NEAR  # or loading nothing would pass
    answer = torch_peers.load_coop(learner, output, ROUNDS)
    assert sorted(answer.missing_keys) == ["token_prefix", "token_suffix"]
    assert answer.unexpected_keys == []
    np.testing.assert_allclose(logits_of(learner, tower, run, pictures), ours, rtol=0, atol=NEAR)

    # Who goes on from it with Dassl loads buffers too, strictly: they are those of the other side, bit for bit.
    again, _ = learner_for(run, (tokens, width))
    buffers = {name: value.clone() for name, value in again.named_buffers()}
    assert torch_peers.load_resumed(again, output) == ROUNDS
    for name, value in again.named_buffers():
        assert torch.equal(value, buffers[name]), name
    np.testing.assert_allclose(logits_of(again, tower, run, pictures), ours, rtol=0, atol=NEAR)


def test_with_the_tokenizer_of_openai(clip_tokenizer_folder, tmp_path):
    clip = another_clip(tmp_path / "clip", clip_tokenizer_folder, 32)
    workdir = finished(tmp_path / "run", clip, (*ACCENTS, *LONG), **{"method.context_tokens": 3})
    output = exported(workdir, "coop")
    run, _, pictures, ours = opened(workdir)
    learner, tower = learner_for(run, (3, 32))
    # Sequences as CoOp spells them: a word X for each token of the context, and EOS the highest id.
    words = transformers.AutoTokenizer.from_pretrained(clip)
    for i, name in enumerate(run.task.source.class_names):
        spelt = words(f"X X X {name}.").input_ids
        assert learner.ids[i, : len(spelt)].tolist() == spelt
        assert int(learner.ids[i].argmax()) == int(learner.end[i])
    torch_peers.load_resumed(learner, output)
    np.testing.assert_allclose(logits_of(learner, tower, run, pictures), ours, rtol=0, atol=NEAR)


def test_fedtpg_loads_it_strictly(tiny_folder, tmp_path):
    workdir = finished(tmp_path / "run", tiny_folder, ACCENTS)
    output = exported(workdir, "fedtpg")
    run, _, pictures, ours = opened(workdir)
    strict = StrictLearner((4, 32))
    torch_peers.load_strict(strict, output, ROUNDS)
    assert strict.ctx.dtype == torch.float32
    learner, tower = learner_for(run, (4, 32))
    learner.ctx.data = strict.ctx.data
    np.testing.assert_allclose(logits_of(learner, tower, run, pictures), ours, rtol=0, atol=NEAR)
    # CoOp's file would not do: its buffers are unexpected keys.
    with pytest.raises(RuntimeError, match="token_prefix"):
        torch_peers.load_strict(StrictLearner((4, 32)), exported(workdir, "coop"), ROUNDS)


def test_flip_matches_it_by_name_and_size(tiny_folder, tmp_path):
    workdir = finished(tmp_path / "run", tiny_folder, ACCENTS, **{"method.class_position": "middle"})
    run, _, pictures, ours = opened(workdir)
    learner, tower = learner_for(run, (1, 4, 32))
    assert torch_peers.load_matching(learner, exported(workdir, "flip") / "prompt.pth.tar") == ["ctx"]
    np.testing.assert_allclose(logits_of(learner, tower, run, pictures), ours, rtol=0, atol=NEAR)
    # Of CoOp's file the prompt, of two dimensions, would be dropped without a word.
    other = exported(workdir, "coop") / "prompt_learner" / f"model.pth.tar-{ROUNDS}"
    assert "ctx" not in torch_peers.load_matching(learner_for(run, (1, 4, 32))[0], other)


def test_fedotp_holds_shared_and_private(tiny_folder, tmp_path):
    workdir = finished(tmp_path / "run", tiny_folder, ACCENTS)
    output = exported(workdir, "fedotp", client=2)
    run, model, pictures, ours = opened(workdir, client=2)
    learner, tower = learner_for(run, (2, 4, 32))
    assert torch_peers.load_resumed(learner, output) == ROUNDS
    np.testing.assert_array_equal(learner.ctx[0].detach(), model.prompts.shared)
    np.testing.assert_array_equal(learner.ctx[1].detach(), model.prompts.private)
    np.testing.assert_allclose(logits_of(learner, tower, run, pictures), ours, rtol=0, atol=NEAR)


@pytest.mark.parametrize("position", ["end", "middle"])
def test_joined_prompts_are_one_context(tiny_folder, tmp_path, position):
    settings = {"method.combine": "concat", "method.class_position": position, "method.context_tokens": 3}
    workdir = finished(tmp_path / "run", tiny_folder, PLAIN, **settings)
    output = exported(workdir, "coop", client=2)
    run, _, pictures, ours = opened(workdir, client=2)
    learner, tower = learner_for(run, (6, 32))
    torch_peers.load_resumed(learner, output)
    np.testing.assert_allclose(logits_of(learner, tower, run, pictures), ours, rtol=0, atol=NEAR)


def test_local_coop_is_a_prompt_of_its_client(tiny_folder, tmp_path):
    workdir = finished(tmp_path / "run", tiny_folder, PLAIN, **{"method.name": "local_coop"})
    output = exported(workdir, "coop", client=0)
    run, _, pictures, ours = opened(workdir, client=0)
    learner, tower = learner_for(run, (4, 32))
    torch_peers.load_resumed(learner, output)
    np.testing.assert_allclose(logits_of(learner, tower, run, pictures), ours, rtol=0, atol=NEAR)


def test_files_hold_tensors_and_integers_alone(tiny_folder, tmp_path):
    workdir = finished(tmp_path / "run", tiny_folder)
    for kind in ("coop", "flip", "fedtpg"):
        (file,) = exported(workdir, kind).rglob("*.pth.tar*")
        written = torch.load(file, weights_only=True)
        assert set(written) == {"state_dict", "epoch"}
        assert type(written["epoch"]) is int
        assert all(value.dtype == torch.float32 for value in written["state_dict"].values())
        assert not any("." in name for name in written["state_dict"])


def test_a_checkpoint_is_chosen_by_its_round(tiny_folder, tmp_path):
    workdir = finished(tmp_path / "run", tiny_folder, checkpoints=(3, ROUNDS))
    ctx = {}
    for number in (3, ROUNDS):
        output = exported(workdir, "fedtpg", checkpoint=str(number))
        file = output / "prompt_learner" / f"model.pth.tar-{number}"
        ctx[number] = torch.load(file, weights_only=True)["state_dict"]["ctx"]
    assert not torch.equal(ctx[3], ctx[ROUNDS])
    last = exported(workdir, "fedtpg") / "prompt_learner" / f"model.pth.tar-{ROUNDS}"
    assert torch.equal(torch.load(last, weights_only=True)["state_dict"]["ctx"], ctx[ROUNDS])


def test_all_clients_that_took_part(tiny_folder, tmp_path):
    workdir = finished(tmp_path / "run", tiny_folder, silent=(1,))
    output = tmp_path / "out"
    certificates = export(Request(workdir, "safetensors", output, all_clients=True), [], QUIET)
    assert [certificate["run"]["client"] for certificate in certificates] == [0, 2]
    assert sorted(path.name for path in output.iterdir()) == ["client_00000", "client_00002"]
    one, other = (load_file(output / f"client_0000{k}" / "prompts.safetensors") for k in (0, 2))
    np.testing.assert_array_equal(one["shared"], other["shared"])
    assert np.abs(one["private"] - other["private"]).max() > 0.1
    assert certificates[0]["prompts_sha256"] != certificates[1]["prompts_sha256"]


def test_safetensors_say_what_they_are(tiny_folder, tmp_path):
    from safetensors import safe_open

    workdir = finished(tmp_path / "run", tiny_folder, ACCENTS)
    output = exported(workdir, "safetensors", client=2)
    with safe_open(output / "prompts.safetensors", framework="np") as file:
        metadata = file.metadata()
        assert {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()} == {  # noqa: SIM118
            "shared": (4, 32),
            "private": (4, 32),
        }
    assert tuple(json.loads(metadata["class_names"])) == ACCENTS
    assert metadata["client"] == "2"
    assert metadata["round"] == str(ROUNDS)
    assert metadata["combine"] == "logits"
    assert metadata["backbone"] == tiny_folder.name, "no path of this machine"
    said = json.loads((output / "certificate.json").read_text())["run"]
    assert (said["backbone"], said["dataset"]) == (tiny_folder.name, "folder:photos")
    assert len(metadata["backbone_sha256"]) == len(metadata["config_sha256"]) == 64


@pytest.mark.parametrize("silent", [(), (3,)], ids=["never drawn", "drawn, without an answer"])
def test_a_client_that_took_no_part_is_its_initial_draw_and_says_so(tiny_folder, tmp_path, silent):
    workdir = finished(tmp_path / "run", tiny_folder, MANY, silent=silent, **{"partition.min_examples": 1})
    (certificate,) = export(Request(workdir, "safetensors", tmp_path / "out", client=3), [], QUIET)
    assert certificate["run"]["took_part"] is False
    # As the federation itself would draw it.
    from fedrsclip_jax.federation import Federation
    from fedrsclip_jax.task import divide, encode_images

    run = open_run(workdir, [])
    clients = divide(run.config, run.task)
    federation = Federation(run.config, run.task, encode_images(run.config, run.task, QUIET), clients, Prompts())
    drawn = np.asarray(federation.population.gather(np.array([3]))["private"][...])[0]
    np.testing.assert_array_equal(load_file(tmp_path / "out" / "prompts.safetensors")["private"], drawn)


def test_without_images_names_come_from_the_run_and_pictures_are_random(tiny_folder, tmp_path, refused):
    workdir = finished(tmp_path / "run", tiny_folder, ACCENTS)
    with_images = exported(workdir, "coop")
    shutil.rmtree(workdir / "photos")
    with refused("data.source=folder:", "does not exist"):
        exported(workdir, "flip")
    summary = json.loads((workdir / "summary.json").read_text())
    (workdir / "summary.json").write_text(json.dumps(summary | {"class_names": ACCENTS}))
    without = tmp_path / "without"
    (certificate,) = export(Request(workdir, "coop", without), [], QUIET)
    assert certificate["verified"]
    assert certificate["images"] == {"count": 16, "origin": "random"}
    file = f"prompt_learner/model.pth.tar-{ROUNDS}"
    one, other = (torch.load(folder / file, weights_only=True)["state_dict"] for folder in (with_images, without))
    assert all(torch.equal(one[name], other[name]) for name in one)
