"""Answers as lines of text: CSV or JSON lines."""

import csv
import io
import json
from pathlib import Path

from fedrsclip_jax.predict.classify import Guess
from fedrsclip_jax.predict.scene import Tile

FORMATS = ("csv", "jsonl")
COLUMNS = (
    "path",
    "column",
    "row",
    "class",
    "probability",
    "second",
    "second_probability",
    "third",
    "third_probability",
    "valid",
)


def head(kind: str) -> str:
    """What stands above the lines."""
    return _csv_line(COLUMNS) if kind == "csv" else ""


def line(kind: str, path: Path, tile: Tile | None, guess: Guess, share: float | None = None) -> str:
    """One picture, or one tile by its upper left pixel (column, row); with as many of the top three as there are.

    Args:
      share: of a tile's pixels that hold data.
    """
    place = (None, None) if tile is None else (tile.column, tile.row)
    if kind == "csv":
        answers = [entry for name, probability in guess.top for entry in (name, f"{probability:.6f}")]
        valid = None if share is None else f"{share:.4f}"
        return _csv_line([path, *place, *answers, *[None] * (len(COLUMNS) - 4 - len(answers)), valid])
    record = {
        "path": str(path),
        **({} if tile is None else {"column": tile.column, "row": tile.row}),
        "class": guess.class_name,
        "probability": round(guess.probability, 6),
        **({} if share is None else {"valid": round(share, 4)}),
        "top": [{"class": name, "probability": round(probability, 6)} for name, probability in guess.top],
    }
    return json.dumps(record, ensure_ascii=False) + "\n"


def _csv_line(values) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerow(values)
    return out.getvalue()
