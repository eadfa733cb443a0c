"""Charts of few values: one value is no curve."""

import numpy as np

from fedrsclip_jax.evidence import Evidence
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


def by_client(*pairs: tuple[float, float]) -> str:
    """Of each client its accuracy, and zero-shot's."""
    own, zero = ([pair[side] for pair in pairs] for side in (0, 1))
    summary = {
        "personalised": {"per_client": own},
        "global_on_clients": {"per_client": own},
        "zero_shot": {"on_clients": {"per_client": zero}},
        "uplink_params_per_client_round": 4,
    }
    return charts.by_client(summary, str).said


def test_a_single_client_and_equal_ones_are_not_told_from_each_other():
    assert by_client((0.75, 0.5)) == "Client 0, the only one that is scored: +25.0 points over zero-shot."
    assert by_client((0.5, 0.5), (1.0, 1.0)) == "0 of 2 clients gained over zero-shot, 0 lost."
    both = by_client((0.5, 0.25), (0.75, 0.5))
    assert both == "2 of 2 clients gained over zero-shot, 0 lost; each by +25.0 points."
    uneven = by_client((0.5, 0.75), (0.75, 0.5))
    assert uneven.endswith("1 lost; from -25.0 points (client 0) to +25.0 (client 1).")


def owners(*train: list[int]) -> str:
    """Of each client its training images of each class."""
    counts, texts = np.array(train), np.zeros((len(train[0]), 4), np.float32)
    found = Evidence(
        truth=np.zeros(0, int),
        guess=np.zeros(0, int),
        owners=np.arange(len(train)),
        train=counts,
        test=counts,
        zero_shot=texts,
        shared=texts[:0],
        movers=np.zeros(0, int),
        private=np.zeros((0, len(train[0]), 4), np.float32),
        wrong=np.zeros(0, int),
        pictures=np.zeros((0, 8, 8, 3), np.uint8),
    )
    names = [f"class {c}" for c in range(counts.shape[1])]
    return charts.owners(found, names, len(train), str).said.partition("orange: test images. ")[2]


def test_who_owns_most_is_said_where_somebody_does():
    assert owners([3, 2]) == "Client 0 has 5 images of 2 classes."
    assert owners([1, 0]) == "Client 0 has 1 image of 1 class."
    assert owners([3, 2], [2, 3]) == "Each client has 5 images; each owns 2 classes."
    assert owners([5, 0], [2, 3]) == "Each client has 5 images; half of the clients own 1 class or fewer."
    said = owners([5, 0], [2, 4])
    assert said == "Client 0 has the fewest images (5), 1 the most (6); half of the clients own 1 class or fewer."


def test_runs_that_end_alike_are_not_ranked():
    part = ("personalised", "mean")

    def said(**runs: float) -> str:
        lines = {name: [{"round": 1, "personalised": {"mean": value}}] for name, value in runs.items()}
        return charts.side_by_side(lines, part, "title", "own").said

    assert said(a=0.5) == "At the end a stands at 50.0 %."
    assert said(a=0.5, b=0.50001) == "At the end all 2 stand at 50.0 %."
    assert said(a=0.5, b=0.6) == "At the end b stands highest (60.0 %) and a lowest (50.0 %)."
