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
)


def head(kind: str) -> str:
    """What stands above the lines."""
    return _csv_line(COLUMNS) if kind == "csv" else ""


def line(kind: str, path: Path, tile: Tile | None, guess: Guess) -> str:
    """One picture, or one tile by its upper left pixel (column, row); with as many of the top three as there are."""
    place = (None, None) if tile is None else (tile.column, tile.row)
    if kind == "csv":
        answers = [entry for name, probability in guess.top for entry in (name, f"{probability:.6f}")]
        return _csv_line([path, *place, *answers, *[None] * (len(COLUMNS) - 3 - len(answers))])
    record = {
        "path": str(path),
        **({} if tile is None else {"column": tile.column, "row": tile.row}),
        "class": guess.class_name,
        "probability": round(guess.probability, 6),
        "top": [{"class": name, "probability": round(probability, 6)} for name, probability in guess.top],
    }
    return json.dumps(record, ensure_ascii=False) + "\n"


def _csv_line(values) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerow(values)
    return out.getvalue()
