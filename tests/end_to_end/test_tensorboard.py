"""`fedrsclip train --tensorboard`: the event files, read back record by record, hold what `metrics.jsonl` does."""

import json
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedrsclip_jax import cli
from fedrsclip_jax.errors import install
from fedrsclip_jax.events import Events
from tests.end_to_end.conftest import check


def records(path: Path) -> Iterator[bytes]:
    """The records of a TFRecord file: length, its checksum, data, its checksum."""
    content = path.read_bytes()
    while content:
        (size,) = struct.unpack("<Q", content[:8])
        assert len(content) >= 16 + size, "the last record is cut off"
        yield content[12 : 12 + size]
        content = content[16 + size :]


def scalars(folder: Path) -> list[tuple[int, str, float]]:
    """(step, tag, value) of the one event file in a folder, by step in its order, and by tag."""
    from tensorboardX.proto.event_pb2 import Event

    (path,) = folder.iterdir()
    first, *events = (Event.FromString(record) for record in records(path))
    assert first.file_version == "brain.Event:2"
    by_tag = [sorted((value.tag, value.simple_value) for value in event.summary.value) for event in events]
    return [(event.step, *pair) for event, pairs in zip(events, by_tag, strict=True) for pair in pairs]


def said(run: Path) -> list[tuple[int, str, float]]:
    """What they have to be, from `metrics.jsonl`."""
    told = []
    for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()):
        values = {
            "accuracy/pooled": line["global"]["accuracy"],
            "accuracy/clients_own": line["personalised"]["mean"],
            "accuracy/worst_tenth": line["personalised"]["worst_decile"],
            "accuracy/training": line["accuracy"],
            "loss/total": line["loss"],
            **{f"loss/{name}": line[name] for name in ("ce", "pacl", "cmfac")},
            "bytes_sent": line["bytes_sent"],
        }
        told += [(line["round"], tag, pytest.approx(values[tag], rel=1e-6)) for tag in sorted(values)]
    return told


@pytest.mark.long
def test_a_run_that_is_gone_on_with_has_every_step_once(here, federation):
    words = ["train", *federation, "--config.eval.every=1", "--config.seeds=2"]
    assert cli.main([*words, "--tensorboard", "--config.rounds=2"]) == 0
    assert cli.main([*words, "--tensorboard", "--config.rounds=3"]) == 0
    runs = {"fedrsclip-seed0": here / "out", "fedrsclip-seed1": here / "out" / "compared" / "fedrsclip-seed1"}
    assert sorted(path.name for path in (here / "out" / "tensorboard").iterdir()) == sorted(runs)
    for name, run in runs.items():
        found = scalars(here / "out" / "tensorboard" / name)
        assert found == said(run)
        assert [step for step, tag, _ in found if tag == "accuracy/pooled"] == [1, 2, 3]

    # A finished run that was not asked for event files can be asked later.
    for path in (here / "out" / "tensorboard" / "fedrsclip-seed0").iterdir():
        path.unlink()
    assert cli.main([*words, "--tensorboard", "--config.rounds=3"]) == 0
    assert scalars(here / "out" / "tensorboard" / "fedrsclip-seed0") == said(here / "out")


def test_lines_are_on_disk_as_they_come_and_a_round_without_answers_has_no_loss(tmp_path):
    line = {
        "round": 1,
        "loss": 0.5,
        "accuracy": None,
        "bytes_sent": 8,
        "global": {"accuracy": 0.25},
        "personalised": {"mean": 0.5, "worst_decile": 0.0},
    }
    with Events(tmp_path / "events") as events:
        assert not (tmp_path / "events").exists(), "a run that leaves nothing leaves no event file"
        events.follow([line])
        assert (1, "loss/total", 0.5) in scalars(tmp_path / "events")
        events.follow([line, {**line, "round": 2, "loss": None}])
        assert [tag for step, tag, _ in scalars(tmp_path / "events") if step == 2] == [
            "accuracy/clients_own",
            "accuracy/pooled",
            "accuracy/worst_tenth",
            "bytes_sent",
        ]


def test_without_the_extra_there_is_one_line_and_no_run(here, federation, monkeypatch, capfd):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    code = cli.main(["train", *federation, "--tensorboard"])
    out, err = capfd.readouterr()
    check(code, out, err)
    assert install("tensorboard") in err
    assert not (here / "out").exists()
