"""Pictures of a sweep: which there are, what they compare, and that they are drawn."""

import io

import numpy as np
from PIL import Image

from fedrsclip_jax.report.sweep_charts import charts, pictures


def result(*rows: tuple[str, dict, list[float | None]]) -> dict:
    def run(seed: int, own: float | None) -> dict:
        zero = {"on_clients": {"mean": 0.5}}
        return {"seed": seed, "summary": None if own is None else {"personalised": {"mean": own}, "zero_shot": zero}}

    return {
        "varied": [*rows[0][1]],
        "split": "test",
        "seeds": [*range(len(rows[0][2]))],
        "rows": [
            {"label": label, "values": values, "runs": [run(seed, own) for seed, own in enumerate(accuracies)]}
            for label, values, accuracies in rows
        ],
    }


def crossed() -> dict:
    """Two keys, every pair; the first key's values do not stand in their order."""
    return result(
        *(
            (f"rate={rate}, name={name}", {"local.rate": rate, "method.name": name}, [own, own + 0.1])
            for rate, name, own in ((1.0, "a", 0.6), (1.0, "b", 0.8), (0.1, "a", 0.7), (0.1, "b", 0.6))
        )
    )


def test_two_crossed_keys_have_a_line_each_and_a_heat_map():
    drawn = {chart.name: chart for chart in charts(crossed())}
    assert [*drawn] == ["rows", "by_local.rate", "by_method.name", "heat_map"]
    assert "Highest is rate=1.0, name=b with 85.0 %, lowest rate=1.0, name=a with 65.0 %" in drawn["rows"].said
    assert "highest mean is at 1.0 on 1 and at 0.1 on 1 of 2" in drawn["by_local.rate"].said
    for name, texts in {
        "rows": ("rate=0.1, name=a", "zero-shot"),
        "by_local.rate": ("name=a", "name=b", "zero-shot", "local.rate"),
        "heat_map": ("65.0", "85.0", "75.0"),
    }.items():
        assert all(text in drawn[name].svg for text in texts), name
    for chart in drawn.values():
        assert "var(--blue)" in chart.svg
        assert not any(color in chart.svg for color in ("#010101", "#020202", "#030303", "#040404"))


def test_a_heat_map_says_where_all_runs_diverged():
    told = crossed()
    for run in told["rows"][1]["runs"]:
        run["summary"] = None
    drawn = {chart.name: chart for chart in charts(told)}
    assert "diverged" in drawn["heat_map"].svg
    assert "85.0" not in drawn["heat_map"].svg, "of the row that diverged"


def test_pictures_are_on_white_and_show_something():
    made = pictures(crossed())
    assert [*made] == [chart.name for chart in charts(crossed())]
    for content in made.values():
        picture = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
        assert (picture[0, 0] == 255).all()
        assert picture.std() > 5


def test_a_key_along_which_nothing_is_compared_has_no_picture():
    """Rows that differ in several keys at once stand side by side and nowhere else."""
    told = result(
        ("one", {"method.name": "a", "method.weight": 0.0}, [0.6]),
        ("two", {"method.name": "b", "method.weight": 0.5}, [0.7]),
        ("three", {"method.name": "b", "method.weight": 0.0}, [0.8]),
    )
    drawn = {chart.name: chart for chart in charts(told)}
    assert [*drawn] == ["rows", "by_method.name", "by_method.weight"]
    assert drawn["by_method.weight"].said.startswith("80.0 % at 0.0, 70.0 % at 0.5")
    assert [
        chart.name for chart in charts(result(*[("one", {"a": 1, "b": 2}, [0.5]), ("two", {"a": 2, "b": 3}, [0.6])]))
    ] == ["rows"]


def test_rows_without_a_run_are_left_out():
    told = result(("one", {"rate": 1}, [None]), ("two", {"rate": 2}, [0.7]), ("three", {"rate": 3}, [0.8]))
    assert [chart.name for chart in charts(told)] == ["rows", "by_rate"]
    assert ">one<" not in charts(told)[0].svg
    assert charts(result(("one", {"rate": 1}, [None]))) == []
    assert pictures(result(("one", {"rate": 1}, [0.5]))) == {}
