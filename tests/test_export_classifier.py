"""Exported classifiers and backbones against what they came from, certificates, and the folder they are written to."""

import ast
import json
import shutil
import subprocess
import sys
from pathlib import Path

import huggingface_hub.constants
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="exports are held against PyTorch")  # what follows needs it
# ruff: noqa: E402

import transformers
from PIL import Image
from safetensors.numpy import load_file, save_file

from fedrsclip_jax.errors import CheckError
from fedrsclip_jax.export import torch_classifier
from fedrsclip_jax.export.certificate import TOLERANCE, compare
from fedrsclip_jax.export.chosen import choose
from fedrsclip_jax.export.exporter import Request, export
from fedrsclip_jax.export.output import Output
from fedrsclip_jax.export.pictures import take
from fedrsclip_jax.export.torch_classifier import Classifier
from fedrsclip_jax.finished import open_run, restore
from fedrsclip_jax.progress import Progress
from tests.runs import ACCENTS, LONG, PLAIN, ROUNDS, finished

QUIET = Progress(quiet=True)
NEAR = 1e-3  # of logits of about 100, as a certificate asks


def write(workdir: Path, kind: str, output: Path, **flags) -> dict:
    (certificate,) = export(Request(workdir, kind, output, **flags), [], QUIET)
    return certificate


def ours(workdir: Path, client: int | None = None, overrides=()):
    run = open_run(workdir, overrides, images=False)
    pictures = take(run)
    return run, pictures, choose(run, restore(run), client).logits(pictures.features)


CASES = [
    ({"method.name": "promptfl"}, None, ACCENTS),
    ({"method.name": "local_coop", "method.class_position": "front"}, 2, PLAIN),
    ({}, None, LONG),
    ({}, 2, ACCENTS),
    ({"method.combine": "features"}, 2, PLAIN),
    ({"method.combine": "concat", "method.class_position": "middle"}, 0, PLAIN),
    ({"method.name": "linear_probe"}, None, PLAIN),
]


@pytest.mark.parametrize(("settings", "client", "names"), CASES, ids=lambda v: str(v)[:30])
def test_classifier_gives_our_logits(tiny_folder, tmp_path, settings, client, names):
    workdir = finished(tmp_path / "run", tiny_folder, names, **settings)
    certificate = write(workdir, "classifier", tmp_path / "out", client=client)
    assert certificate["max_abs_difference"] <= TOLERANCE
    assert certificate["images"] == {"count": min(16, 2 * len(names)), "origin": "run"}
    _, pictures, expected = ours(workdir, client)
    classifier = Classifier.from_folder(tmp_path / "out")
    assert classifier.class_names == names
    with torch.inference_mode():
        logits = classifier(classifier.preprocess(pictures.images)).numpy()
    np.testing.assert_allclose(logits, expected, rtol=0, atol=NEAR)

    held = load_file(tmp_path / "out" / "classifier.safetensors")
    np.testing.assert_allclose(np.linalg.norm(held["weights"], axis=1), 1, atol=1e-6)
    averaged, trained = client is not None and not settings, "linear_probe" in settings.values()
    assert ("bias" in held) == trained
    if not trained:
        assert (held["norms"].max() < 1 - 1e-3) == averaged  # else all are 1
    if not averaged and not trained:
        np.testing.assert_allclose(held["norms"], 1, atol=1e-5)


def test_predict_takes_paths_pictures_and_arrays(tiny_folder, tmp_path):
    workdir = finished(tmp_path / "run", tiny_folder, ACCENTS)
    write(workdir, "classifier", tmp_path / "out")
    _, pictures, logits = ours(workdir)
    classifier = Classifier.from_folder(tmp_path / "out")
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    expected = (shifted / shifted.sum(axis=1, keepdims=True)).max(axis=1)
    path = workdir / "photos" / "class0" / "0.png"
    for images in (pictures.images[:3], [Image.fromarray(image) for image in pictures.images[:3]]):
        answers = classifier.predict(images)
        assert [name for name, _ in answers] == [ACCENTS[i] for i in logits[:3].argmax(axis=1)]
        np.testing.assert_allclose([p for _, p in answers], expected[:3], atol=1e-3)
    assert classifier.predict([path]) == classifier.predict([str(path)]) == classifier.predict([Image.open(path)])
    mixed = classifier.preprocess([path, pictures.images[0], Image.open(path)])
    assert torch.equal(mixed, classifier.preprocess([path]).repeat(3, 1, 1, 1))
    # Three pixels high, which could be taken for three channels.
    low = np.random.default_rng(0).integers(0, 256, (3, 40, 3), np.uint8)
    assert classifier.predict([low]) == classifier.predict([Image.fromarray(low)])
    turned = Image.open(path).getexif()
    turned[0x0112] = 6  # "turn by 90 degrees", which training does not read
    Image.open(path).save(tmp_path / "turned.png", exif=turned)
    assert classifier.predict([tmp_path / "turned.png"]) == classifier.predict([path])
    grey = classifier.predict([Image.open(path).convert("L")])
    assert grey == classifier.predict([Image.open(path).convert("L").convert("RGB")])


NAME = "someone/tiny-clip"


@pytest.fixture
def hub(tmp_path, monkeypatch, tiny_folder) -> Path:
    """A CLIP under a name of Hugging Face, in a cache of our own."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    root = tmp_path / "hub" / f"models--{NAME.replace('/', '--')}"
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text("0" * 40)
    return shutil.copytree(tiny_folder, root / "snapshots" / ("0" * 40))


def test_image_tower_by_its_public_name_or_as_a_copy(hub, tiny_folder, tmp_path):
    workdir = finished(tmp_path / "run", tiny_folder, backbone=NAME)
    write(workdir, "classifier", tmp_path / "reference")
    write(workdir, "classifier", tmp_path / "copy", with_backbone=True)
    assert not (tmp_path / "reference" / "image_tower").exists()
    settings = json.loads((tmp_path / "reference" / "classifier.json").read_text())
    assert (settings["image_tower"], settings["image_tower_revision"]) == (NAME, "0" * 40)
    assert f"base_model: {NAME}" in (tmp_path / "reference" / "README.md").read_text()
    tower = load_file(tmp_path / "copy" / "image_tower" / "model.safetensors")
    whole = load_file(tiny_folder / "model.safetensors")
    assert set(tower) == {name for name in whole if name.startswith(("vision_model.", "visual_projection."))}
    assert all(np.array_equal(value, whole[name]) for name, value in tower.items())

    shutil.copytree(hub, tmp_path / "moved")
    shutil.rmtree(tmp_path / "hub")
    with pytest.raises(OSError, match=r"backbone=FOLDER.*--with-backbone") as caught:
        Classifier.from_folder(tmp_path / "reference")
    assert NAME in str(caught.value)
    _, pictures, expected = ours(workdir, None, [("backbone", str(tmp_path / "moved"))])
    for classifier in (
        Classifier.from_folder(tmp_path / "reference", backbone=tmp_path / "moved"),
        Classifier.from_folder(shutil.copytree(tmp_path / "copy", tmp_path / "elsewhere")),
    ):
        with torch.inference_mode():
            logits = classifier(classifier.preprocess(pictures.images)).numpy()
        np.testing.assert_allclose(logits, expected, rtol=0, atol=NEAR)


def test_a_default_export_of_a_local_clip_works_where_that_folder_is_not(tiny_folder, tmp_path):
    """Nothing that is written speaks of this machine's folders, and a folder that is gone is not missed."""
    clip = shutil.copytree(tiny_folder, tmp_path / "here" / "my_clip")
    workdir = finished(tmp_path / "here" / "run", clip)
    write(workdir, "classifier", tmp_path / "out")
    _, pictures, expected = ours(workdir)
    shutil.rmtree(tmp_path / "here")
    with torch.inference_mode():
        classifier = Classifier.from_folder(tmp_path / "out")
        logits = classifier(classifier.preprocess(pictures.images)).numpy()
    np.testing.assert_allclose(logits, expected, rtol=0, atol=NEAR)
    for name in ("classifier.json", "README.md"):
        assert "my_clip" in (tmp_path / "out" / name).read_text()
        assert str(tmp_path) not in (tmp_path / "out" / name).read_text()
    # Older exports name the folder, which says what to do.
    shutil.rmtree(tmp_path / "out" / "image_tower")
    settings = json.loads((tmp_path / "out" / "classifier.json").read_text())
    older = settings | {"format": "fedrsclip classifier 1", "image_tower": str(clip)}
    (tmp_path / "out" / "classifier.json").write_text(json.dumps(older))
    with pytest.raises(OSError, match=r"backbone=FOLDER.*--with-backbone"):
        Classifier.from_folder(tmp_path / "out")
    assert Classifier.from_folder(tmp_path / "out", backbone=tiny_folder).bias.abs().max() == 0
    (tmp_path / "out" / "classifier.json").write_text(json.dumps(settings | {"format": "fedrsclip classifier 9"}))
    with pytest.raises(ValueError, match="'fedrsclip classifier 9'"):
        Classifier.from_folder(tmp_path / "out", backbone=tiny_folder)


def test_another_clip_is_not_taken_for_the_right_one(tiny_folder, tmp_path):
    clip = shutil.copytree(tiny_folder, tmp_path / "clip")
    write(finished(tmp_path / "run", clip), "classifier", tmp_path / "out")
    weights = load_file(clip / "model.safetensors")
    weights["vision_model.encoder.layers.0.mlp.fc1.weight"] *= 1.1
    save_file(weights, clip / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="another CLIP"):
        Classifier.from_folder(tmp_path / "out", backbone=clip)


def test_the_embedded_backbone_always_goes_with_its_classifier(tmp_path):
    from fedrsclip_jax.clip.huggingface import TINY

    workdir = finished(tmp_path / "run", TINY, **{"backbone": "tiny"})
    write(workdir, "classifier", tmp_path / "out")
    assert (tmp_path / "out" / "image_tower" / "model.safetensors").is_file()


def test_the_module_for_inference_is_small_and_stands_alone():
    source = Path(torch_classifier.__file__)
    lines = source.read_text().splitlines()
    assert len(lines) < 130
    tree = ast.parse(source.read_text())
    everywhere, at_once = (
        {
            name.split(".")[0]
            for node in nodes
            if isinstance(node, (ast.Import, ast.ImportFrom))
            for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [at.name for at in node.names])
        }
        - sys.stdlib_module_names
        for nodes in (ast.walk(tree), tree.body)
    )
    assert at_once == {"torch", "transformers"}
    assert everywhere == {"torch", "transformers", "PIL", "numpy"}  # the last two by which transformers prepares images


@pytest.mark.long
def test_the_folder_is_enough_without_this_package(tiny_folder, tmp_path):
    """The copy of the module in the folder, in a process that sees neither JAX nor this package."""
    workdir = finished(tmp_path / "run", tiny_folder, ACCENTS)
    write(workdir, "classifier", tmp_path / "out", with_backbone=True)
    expected = Classifier.from_folder(tmp_path / "out").predict([workdir / "photos" / "class1" / "0.png"])
    code = (
        "import sys; sys.modules.update(dict.fromkeys(['jax', 'jaxlib', 'flax', 'fedrsclip_jax'])); "
        "from torch_classifier import Classifier; "
        f"print(Classifier.from_folder('.').predict([{str(workdir / 'photos' / 'class1' / '0.png')!r}]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path / "out", capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(expected)


def test_onnx_with_any_batch(tiny_folder, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    workdir = finished(tmp_path / "run", tiny_folder, ACCENTS)
    certificate = write(workdir, "onnx", tmp_path / "out", client=2)
    assert certificate["max_abs_difference"] <= TOLERANCE
    file = tmp_path / "out" / "classifier.onnx"
    assert [path.name for path in sorted((tmp_path / "out").iterdir())] == [
        "README.md",
        "certificate.json",
        "classifier.json",
        "classifier.onnx",
        "preprocessor_config.json",
    ]
    metadata = {entry.key: entry.value for entry in onnx.load(file).metadata_props}
    assert tuple(json.loads(metadata["class_names"])) == ACCENTS
    _, pictures, expected = ours(workdir, 2)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    pixels = np.ascontiguousarray(np.moveaxis(pictures.pixels, -1, 1))
    for count in (1, 2, 7):
        (logits,) = session.run(["logits"], {"pixel_values": pixels[:count]})
        np.testing.assert_allclose(logits, expected[:count], rtol=0, atol=NEAR)


def test_backbone_loads_in_transformers_with_equal_outputs(tiny_folder, tmp_path):
    workdir = finished(tmp_path / "run", tiny_folder, ACCENTS)
    certificate = write(workdir, "huggingface", tmp_path / "out")
    assert certificate["verified"]
    assert certificate["prompts_sha256"] is None
    pixels = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    outputs = []
    for folder in (tiny_folder, tmp_path / "out"):
        model = transformers.CLIPModel.from_pretrained(folder)
        words = transformers.AutoTokenizer.from_pretrained(folder)
        text = words(list(ACCENTS), padding=True, return_tensors="pt")
        with torch.inference_mode():
            outputs.append(model(pixel_values=pixels, input_ids=text.input_ids).logits_per_image)
    assert torch.equal(*outputs)
    assert transformers.CLIPImageProcessor.from_pretrained(tmp_path / "out").crop_size["height"] == 32


# Certificates ------------------------------------------------------------------------------------------


def test_certificate_says_what_was_compared(tiny_folder, tmp_path):
    import hashlib

    workdir = finished(tmp_path / "run", tiny_folder)
    returned = write(workdir, "classifier", tmp_path / "out", client=2)
    written = json.loads((tmp_path / "out" / "certificate.json").read_text())
    assert written == returned
    assert 0 <= written["mean_abs_difference"] <= written["max_abs_difference"] <= written["tolerance"] == 1e-3
    assert written["predicted_class_agreement"] == 1.0
    summary = json.loads((workdir / "summary.json").read_text())
    for key in ("backbone_sha256", "config_sha256"):
        assert written[key] == summary[key]
    assert written["run"]["round"] == ROUNDS
    assert written["run"]["client"] == 2
    assert {"python", "fedrsclip_jax", "jax", "torch", "transformers"} <= set(written["versions"])
    there = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert set(written["files"]) == there - {"certificate.json"}
    for name, sha in written["files"].items():
        assert hashlib.sha256((tmp_path / "out" / name).read_bytes()).hexdigest() == sha
    # Equal prompts have equal digests, whatever the format; others have others.
    assert write(workdir, "safetensors", tmp_path / "b", client=2)["prompts_sha256"] == written["prompts_sha256"]
    assert write(workdir, "safetensors", tmp_path / "c", client=0)["prompts_sha256"] != written["prompts_sha256"]


LOGITS = np.array([[3.0, 1.0, 2.0], [0.5, 4.0, 0.1]], np.float32)
IMAGES, CLASSES = ["a.png", "b.png"], ("river", "lake", "port")


def test_comparison_passes_within_the_tolerance():
    near = LOGITS + np.array([[0, 9e-4, 0], [0, 0, 0]], np.float32)
    result = compare(LOGITS, near, IMAGES, CLASSES)
    assert result["max_abs_difference"] == pytest.approx(9e-4, rel=1e-3)
    assert result["mean_abs_difference"] == pytest.approx(1.5e-4, rel=1e-3)
    assert result["predicted_class_agreement"] == 1.0


@pytest.mark.parametrize("wrong", [0.1016, np.nan, np.inf])
def test_comparison_fails_above_it_and_says_where(wrong):
    far = LOGITS.copy()
    far[1, 2] = wrong
    with pytest.raises(CheckError) as caught:
        compare(LOGITS, far, IMAGES, CLASSES)
    for word in ("b.png", "'port'", "0.1", f"{wrong:.6g}"):
        assert word in str(caught.value)


def test_comparison_of_a_tie_counts_the_disagreement():
    tie = np.array([[1.0, 1.0002]], np.float32)
    assert compare(tie, tie[:, ::-1].copy(), IMAGES[:1], CLASSES[:2])["predicted_class_agreement"] == 0.0


def test_an_export_that_fails_its_check_leaves_nothing(hub, tiny_folder, tmp_path):
    """Another tower under the run's name: of the right digest when opened, replaced before PyTorch reads it."""
    clip, workdir = hub, finished(tmp_path / "run", tiny_folder, backbone=NAME)

    class Swap(Progress):
        def track(self, *arguments, **named):
            weights = load_file(clip / "model.safetensors")
            weights["visual_projection.weight"] = weights["visual_projection.weight"][::-1].copy()
            save_file(weights, clip / "model.safetensors", metadata={"format": "pt"})
            return super().track(*arguments, **named)

    for kind, words in (("coop", "logits differ"), ("classifier", "another CLIP")):
        shutil.copytree(tiny_folder, clip, dirs_exist_ok=True)
        with pytest.raises(CheckError, match=words):
            export(Request(workdir, kind, tmp_path / "out"), [], Swap(quiet=True))
    assert not (tmp_path / "out").exists()


# The folder --------------------------------------------------------------------------------------------


def test_output_is_replaced_only_where_an_export_lies(tiny_folder, tmp_path, refused):
    workdir, output = finished(tmp_path / "run", tiny_folder), tmp_path / "out"
    write(workdir, "coop", output)
    with refused(f"--output: {output} is not empty", "--overwrite"):
        write(workdir, "flip", output)
    write(workdir, "flip", output, overwrite=True)
    assert sorted(path.name for path in output.iterdir()) == ["certificate.json", "prompt.pth.tar"]
    (output / "thesis.txt").write_text("years of work")
    with refused("thesis.txt", "--overwrite replaces exports alone"):
        write(workdir, "coop", output, overwrite=True)
    assert (output / "thesis.txt").read_text() == "years of work"


def test_an_empty_output_will_do_and_a_failure_leaves_it_as_it_was(tmp_path):
    new, there = tmp_path / "a" / "new", tmp_path / "there"
    there.mkdir()

    def fail(folder: Path) -> None:
        with Output(folder, overwrite=False).staged() as stage:
            (stage / "half").write_text("half")
            raise RuntimeError

    for folder in (new, there):
        with pytest.raises(RuntimeError):
            fail(folder)
    assert not new.exists()
    assert list(there.iterdir()) == []
