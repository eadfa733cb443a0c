"""Every configuration key as text: default, type and what is allowed, meaning. Imports no JAX."""

import dataclasses
import math
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from fedrsclip_jax.config import keys

WIDTH = 80
_KINDS = {bool: "true or false", int: "whole number", float: "number", str: "text", tuple: "a,b,c"}


def manual(cls: type, title: str, others: Mapping[str, str] | None = None) -> str:
    """The keys of a configuration, group by group, in lines of at most `WIDTH` columns.

    Args:
      cls: `Config` or `PretrainConfig`.
      title: the first line.
      others: meanings of keys beside these, by name with what they take.
    """
    parts = [title, _wrapped("Set in a configuration file, or as --config.KEY=VALUE. Lists are written a,b,c.", "")]
    group = None
    for name, kind, field in keys(cls):
        head, _, _ = name.rpartition(".")
        if head != group:
            parts.append(f"\n{head or 'the run as a whole'}")
            group = head
        parts.append(_entry(f"{name} = {_written(field.default)}", _allowed(kind, field), field.metadata["meaning"]))
    for number, (name, meaning) in enumerate((others or {}).items()):
        if number == 0:
            parts.append(f"\n{name.partition('.')[0]}")
        parts.append(_entry(name, "", meaning))
    return "\n".join(parts)


def _entry(first: str, allowed: str, meaning: str) -> str:
    line = f"  {first}  ({allowed})" if allowed else f"  {first}"
    if len(line) > WIDTH:
        line = f"  {first}\n{_wrapped(f'({allowed})', '      ')}"
    return f"{line}\n{_wrapped(meaning, '      ')}"


def _wrapped(text: str, indent: str) -> str:
    return textwrap.fill(
        text, WIDTH, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False, break_long_words=False
    )


def _written(default: object) -> str:
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, tuple):
        return ",".join(map(str, default)) or "(none)"
    return str(default) if default != "" else "(empty)"


def _allowed(kind: type, field: dataclasses.Field) -> str:
    """The type and the range, or the choices."""
    if field.metadata["among"]:
        return " | ".join(field.metadata["among"])
    share = ["or a share below 1"] if field.metadata["share_of"] else []
    return ", ".join([_KINDS[kind], *share, *_limits(field.metadata)])


def _limits(metadata: Mapping[str, Any]) -> Iterator[str]:
    low, above, high = (metadata[limit] for limit in ("low", "above", "high"))
    if above > -math.inf:
        yield f"above {above:g}"
    if low > -math.inf and high < math.inf:
        yield f"{low:.10g} to {high:.10g}"
    elif low > -math.inf:
        yield f"at least {low:.10g}"
    elif high < math.inf:
        yield f"at most {high:.10g}"
