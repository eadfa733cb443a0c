"""Charts of few values: one value is no curve."""

from fedrsclip_jax.report import charts

ZERO = {"on_clients": {"mean": 0.4, "worst_decile": 0.2}, "accuracy": 0.35}


def line(number: int) -> dict:
    own = {"mean": 0.5, "worst_decile": 0.3, "best": 0.8, "std": 0.1}
    return {"round": number, "bytes_sent": 100 * number, "personalised": own, "global": {"accuracy": 0.45}}


def test_a_single_evaluation_is_bars_and_no_curve():
    alone = charts.by_round([line(10)], ZERO, True)
    assert alone.title == "Accuracy after round 10"
    for name in ("zero-shot, own images", "personal, worst tenth", "federation, pooled", " 45.0"):
        assert name in alone.svg
    # A curve's axis goes by rounds, such as from 9.6 to 10.4.
    assert ">round<" not in alone.svg
    assert ">round<" in charts.by_round([line(5), line(10)], ZERO, True).svg
    assert "federation, pooled" not in charts.by_round([line(10)], ZERO, False).svg
    assert charts.by_bytes([line(10)], ZERO, True) is None
    assert charts.by_bytes([line(5), line(10)], ZERO, True) is not None


def test_runs_scored_once_stand_side_by_side_as_bars():
    part = ("personalised", "mean")
    once = charts.side_by_side({"a run": [line(10)], "another": [line(20)]}, part, "title", "own")
    assert ">round<" not in once.svg
    assert " 50.0" in once.svg
    assert ">round<" in charts.side_by_side({"a run": [line(5), line(10)]}, part, "title", "own").svg


def test_parts_of_the_loss_need_two_rounds():
    assert charts.losses([{"round": 1, "ce": 2.0}]) is None
    drawn = charts.losses([{"round": 1, "ce": 2.0, "pacl": 0.1}, {"round": 2, "ce": None}, {"round": 3, "ce": 1.0}])
    assert drawn is not None
    assert drawn.said == "In training: cross-entropy from 2.000 to 1.000."
