"""The closing table on results worked out by hand."""

import io

import pytest
from rich.console import Console

from fedrsclip_jax.comparison import check_converged, show, tabulate
from fedrsclip_jax.errors import CheckError


def run(seed: int, own: float, pooled: float, zero: float, params: int = 512) -> dict:
    return {
        "seed": seed,
        "split": "test",
        "uplink_params_per_client_round": params,
        "personalised": {"mean": own, "worst_decile": own / 2},
        "global": {"accuracy": pooled},
        "zero_shot": {"accuracy": zero, "on_clients": {"mean": zero + 0.1, "worst_decile": 0.0}},
    }


@pytest.fixture
def result():
    return tabulate(
        {
            "local_coop": [run(0, 0.6, 0.2, 0.2, params=0), run(1, 0.8, 0.2, 0.4, params=0)],
            "promptfl": [run(0, 0.4, 0.3, 0.2), run(1, 0.6, 0.5, 0.4)],
            "fedrsclip": [run(0, 0.7, 0.4, 0.2), run(1, 0.7, 0.6, 0.4)],
        },
        "fedrsclip",
    )


def test_means_and_deviations_of_the_sample(result):
    assert list(result["rows"]) == ["zero_shot", "local_coop", "promptfl", "fedrsclip"]
    assert result["seeds"] == [0, 1]
    promptfl = result["rows"]["promptfl"]
    assert promptfl["on_clients"]["mean"] == pytest.approx(0.5)
    assert promptfl["on_clients"]["std"] == pytest.approx(0.2 / 2**0.5)  # of a sample of two
    assert result["rows"]["zero_shot"]["on_clients"]["values"] == pytest.approx([0.3, 0.5])
    assert result["rows"]["fedrsclip"]["worst_decile"]["mean"] == pytest.approx(0.35)


def test_who_shares_nothing_has_no_model_of_the_federation(result):
    assert result["rows"]["local_coop"]["pooled"] is None
    assert result["rows"]["local_coop"]["uplink_params"] == 0


def test_a_row_is_of_the_seeds_that_did_not_diverge():
    reason = "round 3: prompts or loss are no longer finite"
    lost = [{"method": "promptfl", "seed": 0, "reason": reason}, {"method": "fedpgp", "seed": 1, "reason": reason}]
    result = tabulate(
        {
            "fedpgp": [],
            "promptfl": [run(1, 0.6, 0.5, 0.4)],
            "fedrsclip": [run(0, 0.7, 0.4, 0.2), run(1, 0.9, 0.6, 0.4)],
        },
        "fedrsclip",
        lost,
    )
    assert result["seeds"] == [0, 1]
    rows = result["rows"]
    assert (rows["promptfl"]["seeds"], rows["promptfl"]["diverged"]) == ([1], [0])
    assert rows["promptfl"]["on_clients"]["values"] == [0.6]
    assert rows["fedpgp"] == {
        "on_clients": None,
        "worst_decile": None,
        "pooled": None,
        "uplink_params": None,
        "seeds": [],
        "diverged": [1],
    }
    assert result["paired_on_clients"]["fedrsclip - promptfl"]["values"] == pytest.approx([0.3])
    assert result["paired_on_clients"]["promptfl - zero_shot"]["values"] == pytest.approx([0.1])
    assert "fedrsclip - fedpgp" not in result["paired_on_clients"]
    out = io.StringIO()
    show(result, Console(file=out, width=80))
    lines = out.getvalue().splitlines()
    (row,) = (number for number, line in enumerate(lines) if line.strip().startswith("PromptFL") and "over" not in line)
    assert lines[row + 1].strip() == "diverged: seed 0"
    with pytest.raises(CheckError, match=r"^2 of 5 runs diverged: promptfl, seed 0: round 3: .*; fedpgp, seed 1: "):
        check_converged(result)


def test_the_other_seeds_stand_where_the_method_itself_diverged():
    lost = [{"method": "fedrsclip", "seed": 0, "reason": "round 1"}]
    result = tabulate({"promptfl": [run(0, 0.4, 0.3, 0.2)], "fedrsclip": []}, "fedrsclip", lost)
    assert result["rows"]["zero_shot"]["on_clients"]["values"] == pytest.approx([0.3])
    assert list(result["paired_on_clients"]) == ["promptfl - zero_shot"]


def test_runs_that_scored_other_clients_are_not_paired():
    """As of a huge population, of which an older version scored those that any round would draw."""

    def sampled(seed: int, own: float, clients: list[int]) -> dict:
        made = run(seed, own, 0.3, 0.2)
        for scores in (made["personalised"], made["zero_shot"]["on_clients"]):
            scores["clients"] = clients
        return made

    older, newer = [sampled(0, 0.9, [1, 2])], [sampled(0, 0.5, [7, 8]), sampled(1, 0.6, [5, 6])]
    result = tabulate({"promptfl": older, "fedrsclip": newer}, "fedrsclip")
    assert "fedrsclip - promptfl" not in result["paired_on_clients"]
    both = [*older, sampled(1, 0.5, [5, 6])]
    result = tabulate({"promptfl": both, "fedrsclip": newer}, "fedrsclip")
    assert result["paired_on_clients"]["fedrsclip - promptfl"]["values"] == pytest.approx([0.1])


def test_differences_are_paired_by_seed(result):
    paired = result["paired_on_clients"]
    assert paired["fedrsclip - promptfl"]["values"] == pytest.approx([0.3, 0.1])
    assert paired["promptfl - zero_shot"]["values"] == pytest.approx([0.1, 0.1])


def test_the_table_fits_a_terminal_of_80_columns(result):
    out = io.StringIO()
    show(result, Console(file=out, width=80))
    text = out.getvalue()
    assert "mean ± standard deviation of 2 seeds" in text.replace("\n", " ")
    (row,) = (line for line in text.splitlines() if line.strip().startswith("PromptFL") and "over" not in line)
    assert row.split() == ["PromptFL", "50.0", "±", "14.1", "25.0", "±", "7.1", "40.0", "±", "14.1", "512"]
    assert "FedRSCLIP over PromptFL" in text


def test_one_seed_has_no_deviation():
    result = tabulate({"promptfl": [run(0, 0.4, 0.3, 0.2)]}, "promptfl")
    assert result["rows"]["promptfl"]["pooled"]["std"] is None


def test_unseen_clients_and_new_classes_stand_below_the_table():
    def beyond(seed: int, base: float, new: float, unseen: float, params: int = 512) -> dict:
        def scores(mean):
            return {"mean": mean, "worst_decile": mean / 2}

        return run(seed, 0.5, 0.5, 0.2, params) | {
            "unseen": {"global": scores(unseen) if params else None, "zero_shot": scores(0.2)},
            "base_to_new": {
                "base": base,
                "new": new,
                "harmonic_mean": 2 * base * new / (base + new),
                "zero_shot": {"base": 0.5, "new": 0.5, "harmonic_mean": 0.5},
            },
        }

    result = tabulate(
        {
            "local_coop": [beyond(seed, 0.5, 0.5, 0.0, params=0) for seed in (0, 1)],
            "promptfl": [beyond(0, 0.6, 0.3, 0.3), beyond(1, 0.6, 0.3, 0.5)],
        },
        "promptfl",
    )
    assert list(result["unseen"]) == list(result["base_to_new"]) == ["zero_shot", "promptfl"]
    assert result["unseen"]["promptfl"]["mean"]["values"] == [0.3, 0.5]
    assert result["base_to_new"]["promptfl"]["harmonic_mean"]["mean"] == pytest.approx(0.4)
    out = io.StringIO()
    show(result, Console(file=out, width=80))
    lines = out.getvalue().splitlines()
    assert max(map(len, lines[-6:])) <= 80
    assert lines[-4].split() == ["PromptFL", "40.0", "±", "14.1", "20.0", "±", "7.1"]
    assert lines[-1].split() == ["PromptFL", "60.0", "±", "0.0", "30.0", "±", "0.0", "40.0", "±", "0.0"]
