"""Sentences around a class name, which zero-shot CLIP reads."""

from collections.abc import Sequence
from pathlib import Path

from fedrsclip_jax.errors import InputError

TEMPLATE = "a satellite photo of a {}."
_PLACE = "{}"


def read_templates(given: Sequence[str]) -> tuple[str, ...]:
    """Templates as a configuration gives them: one, several, or a file with one a line (`#` begins a comment).

    Returns:
      The templates themselves, so that a run keeps them whatever becomes of the file; empty for the usual one.

    Raises:
      InputError: a template without `{}`, or with several, or a file that cannot be read.
    """
    whole = ",".join(given)  # a template with a comma in it is parted at commas on a command line
    if not given:
        return ()
    if len(given) > 1 and whole.count(_PLACE) == 1 and all(part.startswith(" ") for part in given[1:]):
        return (whole,)
    path = Path(whole).expanduser()
    if _PLACE in whole or not path.is_file():
        return tuple(_checked(template, template) for template in given)
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise InputError(
            f"backbone_templates = {whole!r} cannot be read ({reason}); give a text file in UTF-8"
        ) from error
    numbered = [(number, line) for number, line in enumerate(lines, 1) if line and not line.startswith("#")]
    if not numbered:
        raise InputError(f"backbone_templates = {whole!r} has no templates; write one a line, such as {TEMPLATE!r}")
    return tuple(_checked(line, f"{whole} line {number}") for number, line in numbered)


def sentence(template: str, class_name: str) -> str:
    """What CLIP reads of a class."""
    return template.replace(_PLACE, class_name)


def reads(templates: Sequence[str], class_names: Sequence[str]) -> str:
    """What zero-shot CLIP reads, for people: the sentence of the first class in full, and the names of the others."""
    first, *others = class_names
    more = f" (and {len(templates) - 1} more templates, averaged)" if len(templates) > 1 else ""
    rest = f", and so on with: {', '.join(others)}" if others else ""
    return f"CLIP reads {sentence(templates[0], first)!r}{more}{rest}"


def _checked(template: str, place: str) -> str:
    if template.count(_PLACE) != 1:
        raise InputError(
            f"backbone_templates: {place!r} has {template.count(_PLACE)} {{}} for the class name and is no file; write "
            f"one, such as {TEMPLATE!r}, several as ['a photo of a {{}}.', ...], or name a file with one a line"
        )
    return template
