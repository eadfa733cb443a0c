"""The table of a sweep: what is compared with what, and which row is called the best."""

from fedrsclip_jax.report.sweep import table


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


def test_nothing_is_chosen_on_test_images():
    _, rows = table(result("test", ("one", 0.1, both("a", 0.6, 0.7)), ("two", 0.1, both("a", 0.8, 0.9))))
    assert "**" not in str(rows)
