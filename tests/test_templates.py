"""What zero-shot CLIP reads: templates of a configuration, and the word on names that CLIP does not know."""

import pytest

from fedrsclip_jax import __version__, remarks, workdir
from fedrsclip_jax import config as configuration
from fedrsclip_jax.clip.templates import read_templates, reads


def resolved(**keys: str) -> configuration.Config:
    given = [(key.replace("__", "."), value) for key, value in keys.items()]
    return configuration.resolve(configuration.Config, {}, given)


@pytest.mark.parametrize(
    ("text", "templates"),
    [
        ("a photo of a {}.", ("a photo of a {}.",)),
        ("a {}, seen from above.", ("a {}, seen from above.",)),
        ("['a {}.', 'a {}, seen from above.']", ("a {}.", "a {}, seen from above.")),
        ("", ()),
    ],
)
def test_one_template_or_several(text, templates):
    assert resolved(backbone_templates=text).backbone_templates == templates


def test_a_file_is_read_once_and_kept_by_the_run(tmp_path, refused):
    file = tmp_path / "templates.txt"
    file.write_text("# of OpenAI\na photo of a {}.\n\nan aerial view of a {}.\n")
    config = resolved(backbone_templates=str(file))
    assert config.backbone_templates == ("a photo of a {}.", "an aerial view of a {}.")
    file.write_text("a picture of a {}.\n")
    again = configuration.resolve(configuration.Config, configuration.to_dict(config))
    assert again == config
    # Another text is another run.
    other = resolved(backbone_templates=str(file))
    with refused("holds another run", "backbone_templates"):
        workdir.check_same(configuration.to_dict(config), configuration.to_dict(other), {}, (), __version__)


@pytest.mark.parametrize("text", ["a photo of a forest.", "a {} of a {}.", "nowhere.txt", "['a {}.', 'b']"])
def test_refused_templates(text, refused):
    with refused("backbone_templates", "{}", "a satellite photo of a {}."):
        resolved(backbone_templates=text)


def test_a_file_with_a_bad_line(tmp_path, refused):
    (tmp_path / "bad.txt").write_text("a {}.\nno place\n")
    with refused("bad.txt line 2"):
        read_templates([str(tmp_path / "bad.txt")])


def test_a_sentence_a_class_at_most():
    said = reads(("a {}.", "the {}."), ("river", "port", "lake"))
    assert said == "CLIP reads 'a river.' (and 1 more templates, averaged), and so on with: port, lake"


@pytest.mark.parametrize("kind", ["folder:", ""])
def test_zero_shot_near_chance_points_to_class_names(tmp_path, kind):
    folder, drawn = resolved(data__source=f"{kind}{tmp_path}"), resolved()

    def scores(accuracy, classes):
        return {"accuracy": accuracy, "per_class": [0.0] * classes}

    hint = remarks.of_zero_shot(folder, scores(0.229, 7))
    assert hint is not None
    assert "22.9 %" in hint
    assert "14.3 %" in hint
    assert "classnames.txt" in hint
    assert remarks.of_zero_shot(folder, scores(0.886, 7)) is None
    assert "classnames.txt" not in (remarks.of_zero_shot(drawn, scores(0.1, 7)) or "")
    assert remarks.of_zero_shot(drawn, scores(0.5, 2)) is not None
