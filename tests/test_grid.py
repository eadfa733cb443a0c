"""What a sweep's configuration says, and what makes no sense in it."""

import json

import pytest
from ml_collections import ConfigDict

from fedrsclip_jax import config as configuration
from fedrsclip_jax import grid, sweep
from fedrsclip_jax.errors import InputError
from tests.conftest import REPOSITORY

GRID = {"method.pacl_weight": (0.0, 0.3), "local.learning_rate": (0.1,)}


def written(**group) -> dict:
    return {"rounds": 3, "sweep": group}


def test_every_combination_is_a_row_and_every_seed_a_run():
    read = grid.read(written(grid={"method.pacl_weight": (0, 0.3), "cohort": (2, 4)}, seeds=3) | {"seed": 5})
    assert read.varied == ("method.pacl_weight", "cohort")
    assert [row.label for row in read.rows] == [
        "pacl_weight=0, cohort=2",
        "pacl_weight=0, cohort=4",
        "pacl_weight=0.3, cohort=2",
        "pacl_weight=0.3, cohort=4",
    ]
    last = read.rows[-1]
    assert last.values == {"method.pacl_weight": 0.3, "cohort": 4}
    assert [run.seed for run in last.runs] == [5, 6, 7]
    assert {(run.method.pacl_weight, run.cohort, run.rounds, run.seeds) for run in last.runs} == {(0.3, 4, 3, 1)}


def test_zipped_values_go_together_under_their_labels():
    group = {
        "zip": {"method.name": ("promptfl", "fedrsclip"), "partition.clients": (10, 1)},
        "labels": ("shared only", "pooled"),
        "grid": {"cohort": (1,)},
    }
    read = grid.read(written(**group))
    assert [row.label for row in read.rows] == ["shared only, cohort=1", "pooled, cohort=1"]
    assert [row.values["method.name"] for row in read.rows] == ["promptfl", "fedrsclip"]
    assert [row.runs[0].partition.clients for row in read.rows] == [10, 1]


def test_groups_may_be_nested_and_the_command_line_comes_last():
    config = ConfigDict({"rounds": 3, "sweep": {"seeds": 2, "grid": {"method": {"pacl_weight": (0.0, 1.0)}}}})
    overrides = [
        ("rounds", "7"),
        ("sweep.seeds", "1"),
        ("sweep.grid.method.pacl_weight", "0.2,0.4,0.6"),
        ("sweep.zip.method.name", "promptfl,fedrsclip"),
    ]
    read = grid.read(config, overrides)
    assert read.base.rounds == 7
    assert len(read.rows) == 6
    assert [row.values["method.pacl_weight"] for row in read.rows[:3]] == [0.2, 0.4, 0.6]
    assert {len(row.runs) for row in read.rows} == {1}


@pytest.mark.parametrize(
    ("group", "words"),
    [
        ({}, "varies nothing"),
        ({"grid": {"method.pacl_wieght": (0, 1)}}, "pacl_wieght"),
        ({"grid": {"method.pacl_weight": 0.3}}, "no list of values"),
        ({"grid": {"method.pacl_weight": ()}}, "no list of values"),
        ({"grid": {"method.pacl_weight": (-1.0,)}}, "out of range"),
        ({"grid": {"method.pacl_weight": (0.1, 0.1)}}, "alike"),
        ({"grid": {"seed": (1, 2)}}, r"sweep\.seeds"),
        ({"grid": GRID, "zip": {"method.pacl_weight": (1.0,)}}, "leave one"),
        ({"zip": {"cohort": (1, 2), "rounds": (1,)}}, "unequal length"),
        ({"zip": {"cohort": (1, 2)}, "labels": ("one",)}, r"sweep\.labels are 1"),
        ({"grid": GRID, "seeds": 0}, r"sweep\.seeds"),
        ({"grid": GRID, "seeds": True}, r"sweep\.seeds"),
        ({"grid": 3}, "no group"),
        ({"zip": {"cohort": (1, 2)}, "labels": (1, 2)}, "no names"),
        ({"zip": {"cohort": (1, 2)}, "labels": "ab"}, "no names"),
        ({"grid": {"eval.split": ("test", "validation")}}, "the same images"),
        ({"grids": GRID}, r"sweep\.grids"),
        ({"rows": [], "seeds": 1}, r"sweep\.rows"),
        ({"rows": [{"label": "a", "cohort": 2}, {"label": "b"}], "seeds": 1}, r"sweep\.rows"),
        ({"rows": [{"label": "a", "cohort": 2}], "grid": GRID}, r"sweep\.rows"),
    ],
)
def test_what_makes_no_sense_is_refused(group, words):
    with pytest.raises(InputError, match=words):
        grid.read(written(**group))


@pytest.mark.parametrize(
    "override", [("sweep.seeds", "x"), ("sweep.grid", "1"), ("sweep.rows", "2"), ("method.pacl_weight", "0.5")]
)
def test_bad_overrides_are_refused(override):
    with pytest.raises(InputError, match=r"sweep\."):
        grid.read(written(grid=GRID), [override])


def kept(read: grid.Grid) -> dict:
    """As `config.json` of a sweep's folder has it."""
    return json.loads(json.dumps({**configuration.to_dict(read.base), "sweep": sweep._written(read)}))


@pytest.mark.parametrize(
    "group",
    [
        {"grid": {"method.pacl_weight": (0, 0.3), "cohort": (2, 4)}, "seeds": 3},
        {"zip": {"method.name": ("promptfl", "fedrsclip"), "partition.clients": (10, 4)}, "labels": ("one", "other")},
        {"grid": {"server.optimizer": ("sgd", "adam"), "server.learning_rate": (0.1,)}},
    ],
)
def test_what_a_sweep_keeps_of_itself_is_read_as_the_same_sweep(group):
    read = grid.read(written(**group))
    again = grid.read(kept(read))
    assert again.rows == read.rows
    assert kept(again) == kept(read)
    assert len(grid.read(kept(read), [("sweep.seeds", "5")]).rows[0].runs) == 5


def test_what_a_sweep_keeps_of_itself_is_refused_where_it_does_not_tell_all():
    rates = grid.read(written(grid={"server.optimizer": ("sgd", "adam")}))
    with pytest.raises(InputError, match=r"vary server\.optimizer, which server\.learning_rate may have followed"):
        grid.read(kept(rates))
    shares = grid.read({"cohort": 0.5, "sweep": {"grid": {"partition.clients": (4, 10)}}})
    with pytest.raises(InputError, match=r"vary partition\.clients, which cohort .* that it was started with"):
        grid.read(kept(shares))


def test_a_group_that_is_none_is_refused():
    with pytest.raises(InputError, match="'sweep' = 3 is no group"):
        grid.read({"sweep": 3})


def test_keys_that_end_alike_are_told_apart():
    rates = {"local.learning_rate": (0.1, 0.2), "server.learning_rate": (1.0,), "cohort": (2,)}
    read = grid.read(written(grid=rates))
    assert read.rows[0].label == "local.learning_rate=0.1, server.learning_rate=1.0, cohort=2"


SHIPPED = [*sorted((REPOSITORY / "configs").glob("ablation_*.py")), REPOSITORY / "configs" / "baselines.py"]


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_shipped_sweeps_make_sense(file):
    read = grid.read(configuration.load_file(str(file)))
    assert len(read.rows) >= 7
    seeds = 10 if file.stem in ("ablation_rows", "baselines") else 5  # what is compared on test images has ten
    assert {len(row.runs) for row in read.rows} == {seeds}


@pytest.mark.parametrize(("key", "text"), [("seeds", "10"), ("baselines", "promptfl")])
def test_what_a_sweep_says_itself_is_not_dropped_without_a_word(key, text):
    rates = written(grid=GRID)
    with pytest.raises(InputError, match=f"--config.{key}={text}"):
        grid.read(rates, [(key, text)])
    grid.read(rates, [("seeds", "1"), ("baselines", "")])


def test_ablations_are_of_the_federation_that_is_named():
    file = REPOSITORY / "configs" / "ablation_constraints.py"
    aid = grid.read(configuration.load_file(f"{file}:aid"))
    assert (aid.base.data.half, aid.base.local.learning_rate) == ("federate", 0.01)
    assert (aid.base.seeds, aid.base.baselines) == (1, ())
    assert [row.label for row in aid.rows] == [row.label for row in grid.read(configuration.load_file(str(file))).rows]
    with pytest.raises(InputError, match=r"no file .*aidd\.py"):
        configuration.load_file(f"{file}:aidd")


def test_rates_of_baselines_are_looked_for_on_validation_images():
    compared = grid.read(configuration.load_file(str(SHIPPED[-1])))
    tried = grid.read(configuration.load_file(f"{SHIPPED[-1]}:rates"))
    assert (tried.base.eval.split, compared.base.eval.split) == ("validation", "test")
    chosen = {(row.values["method.name"], row.values["local.learning_rate"]) for row in compared.rows}
    assert chosen <= {(row.values["method.name"], row.values["local.learning_rate"]) for row in tried.rows}
    with pytest.raises(InputError, match="leave 'rate' out"):
        configuration.load_file(f"{SHIPPED[-1]}:rate")


def test_what_a_configuration_says_of_more_runs_than_one_is_said_to_be_left_out():
    written = {"rounds": 3, "seeds": 3, "baselines": ("promptfl",), "sweep": {"grid": {"cohort": (1, 2)}}}
    said = grid.read(written).left_out
    assert said.startswith("a sweep leaves out baselines = promptfl and seeds = 3 of its configuration; ")
    assert "--config.sweep.grid.method.name=fedrsclip,promptfl" in said
    assert "--config.sweep.seeds=3" in said
    assert "seeds" not in grid.read(written, [("sweep.seeds", "3")]).left_out
    assert grid.read({"sweep": {"grid": {"cohort": (1, 2)}}}).left_out == ""


def test_a_cohort_that_is_a_share_follows_the_clients_of_its_row():
    read = grid.read({"cohort": 0.5, "sweep": {"grid": {"partition.clients": (4, 10)}}})
    assert [row.runs[0].cohort for row in read.rows] == [2, 5]
