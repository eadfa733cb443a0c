"""The table of a sweep: what is compared with what, and which row is called the best."""

import csv

from fedrsclip_jax.report.sweep import as_csv, table


def run(seed: int, own: float, partition: str) -> dict:
    zero = {"mean": 0.5 if partition == "a" else 0.4, "worst_decile": 0.2}
    return {
        "seed": seed,
        "summary": {
            "personalised": {"mean": own, "worst_decile": own / 2},
            "global": {"accuracy": own / 4},
            "zero_shot": {"accuracy": 0.25, "on_clients": zero},
            "uplink_params_per_client_round": 512,
            "partition_sha256": f"{partition}{seed}",
        },
    }


def lost(seed: int) -> dict:
    return {"seed": seed, "summary": None}


def result(split: str, *rows) -> dict:
    return {
        "varied": ["method.name", "partition.alpha"],
        "split": split,
        "seeds": [0, 1],
        "rows": [
            {"label": label, "values": {"method.name": label, "partition.alpha": alpha}, "runs": runs}
            for label, alpha, runs in rows
        ],
    }


def both(partition: str, first: float, second: float) -> list[dict]:
    return [run(0, first, partition), run(1, second, partition)]


def test_rows_are_paired_on_equal_partitions_alone():
    told = result(
        "validation",
        ("one", 0.1, both("a", 0.60, 0.70)),
        ("two", 0.5, both("b", 0.90, 0.92)),
        ("three", 0.1, both("a", 0.61, 0.73)),
        ("four", 0.5, both("b", 0.80, 0.90)),
    )
    headings, rows = table(told)
    column = headings.index("vs first row")
    assert [row[0] for row in rows] == [
        "zero-shot (alpha=0.1)", "one", "**three**", "zero-shot (alpha=0.5)", "**two**", "four",
    ]  # fmt: skip
    assert [row[column] for row in rows] == ["", "", "**+2.0 ± 1.4**", "", "", "-6.0 ± 5.7"]
    assert [rows[0][1], rows[3][1]] == ["50.0 ± 0.0", "40.0 ± 0.0"]


def test_a_row_with_a_seed_missing_is_not_the_best_and_is_paired_by_what_it_has():
    told = result(
        "validation",
        ("one", 0.1, both("a", 0.60, 0.70)),
        ("two", 0.1, [run(0, 0.99, "a"), lost(1)]),
        ("three", 0.1, [lost(0), lost(1)]),
    )
    headings, rows = table(told)
    assert [row[0] for row in rows] == ["zero-shot", "**one**", "two (1 of 2 diverged)", "three (2 of 2 diverged)"]
    assert rows[2][headings.index("vs first row")] == "+39.0"
    assert rows[2][headings.index("p")] == "-"
    assert rows[3][1:] == ["-"] * 6


def test_a_block_that_begins_with_a_row_without_runs_has_the_others_partitions():
    told = result(
        "test",
        ("lost", 0.1, [lost(0), lost(1)]),
        ("one", 0.1, [run(0, 0.6, "a"), lost(1)]),
        ("two", 0.1, both("a", 0.60, 0.70)),
        ("three", 0.5, both("b", 0.90, 0.92)),
        ("seed 1 alone", 0.5, [lost(0), run(1, 0.5, "b")]),
    )
    _, rows = table(told)
    assert [row[0].partition(" (")[0] for row in rows] == [
        "zero-shot", "lost", "one", "two", "zero-shot", "three", "seed 1 alone",
    ]  # fmt: skip
    assert [rows[0][1], rows[4][1]] == ["50.0 ± 0.0", "40.0 ± 0.0"], "over both seeds, of whichever rows"


def test_nothing_is_chosen_on_test_images():
    _, rows = table(result("test", ("one", 0.1, both("a", 0.6, 0.7)), ("two", 0.1, both("a", 0.8, 0.9))))
    assert "**" not in str(rows)


def test_runs_with_unseen_clients_and_new_classes_have_columns_for_them():
    def told(seed: int, shares: bool) -> dict:
        made = run(seed, 0.6, "a")
        none = {"base": None, "new": None, "harmonic_mean": None}
        prompt = {"base": 0.6, "new": 0.3, "harmonic_mean": 0.4} if shares else none
        made["summary"] |= {
            "uplink_params_per_client_round": 512 if shares else 0,
            "personalised": {"mean": 0.6, "std": 0.1, "worst_decile": 0.3},
            "global": {"accuracy": 0.5, "macro_f1": 0.4, "ece": 0.1},
            "bytes_sent": 1,
            "best_round": None,
            "state_sha256": "0",
            "unseen": {"global": {"mean": 0.0} if shares else None, "zero_shot": {"mean": 0.2}},
            "base_to_new": {**prompt, "personal": {"new": 0.35}, "zero_shot": {"new": 0.25}},
        }
        return made | {"folder": "runs/one", "diverged": ""}

    runs = [told(0, True), told(1, False), lost(2) | {"folder": "runs/two", "diverged": "at round 1"}]
    headings, rows = table(result("test", ("one", 0.1, runs)))
    of_more = [headings.index(name) for name in ("unseen clients", "new classes", "harmonic mean")]
    assert [[row[column] for column in of_more] for row in rows] == [
        ["20.0 ± 0.0", "25.0 ± 0.0", "-"],
        ["0.0", "30.0", "40.0"],  # of the run that has a shared prompt
    ]
    head, *lines = csv.reader(as_csv(result("test", ("one", 0.1, runs))).splitlines())
    assert head[-9:-2] == [
        "unseen_global", "unseen_zero_shot", "base", "new", "harmonic_mean", "new_personal", "new_zero_shot",
    ]  # fmt: skip
    accuracy = head.index("global_accuracy")
    assert [line[accuracy : accuracy + 3] for line in lines] == [["0.5", "0.4", "0.1"], [""] * 3, [""] * 3]
    assert [line[-9:-2] for line in lines] == [
        ["0.0", "0.2", "0.6", "0.3", "0.4", "0.35", "0.25"],
        ["", "0.2", "", "", "", "0.35", "0.25"],
        [""] * 7,
    ]
