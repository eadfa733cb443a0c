"""What a run's books say of its course, on lines written by hand."""

import json

import pytest

from fedrsclip_jax.federated.engine import Done
from fedrsclip_jax.ledger import TRAINING, Ledger, read_training


def books(*course: tuple[int, float, float]) -> Ledger:
    ledger = Ledger()
    for number, (sent, pooled, own) in enumerate(course, 1):
        ledger.round, ledger.bytes_sent = number, sent
        ledger.write_line({"global": {"accuracy": pooled}, "personalised": {"mean": own}})
    return ledger


def test_bytes_to_an_accuracy_are_those_of_the_first_line_that_has_it():
    ledger = books((100, 0.2, 0.5), (200, 0.6, 0.4), (300, 0.3, 0.9))
    zero = {"global": 0.1, "personalised": 0.1}
    assert ledger.bytes_to(0.5, zero) == {"global": 200, "personalised": 100}
    assert ledger.bytes_to(0.9, zero) == {"global": None, "personalised": 300}


def test_what_zero_shot_has_already_needs_no_byte():
    ledger = books((100, 0.6, 0.5), (200, 0.6, 0.7))
    zero = {"global": 0.55, "personalised": 0.5}
    assert ledger.bytes_to(0.5, zero) == {"global": 0, "personalised": 0}
    assert ledger.bytes_to(0.6, zero) == {"global": 100, "personalised": 200}


def test_without_a_shared_prompt_there_are_no_figures_of_the_federation():
    ledger = books((0, 0.2, 0.5), (0, 0.6, 0.4))
    assert ledger.last(shares=False)["global"] is None
    assert ledger.bytes_to(0.1, {"global": 0.5, "personalised": 0.0}, shares=False) == {
        "global": None,
        "personalised": 0,
    }


def test_the_last_evaluations():
    ledger = books((1, 0.9, 0.9), *[(number, 0.1 * number, 0.5) for number in range(2, 7)])
    last = ledger.last()
    assert last["global"] == {"mean": pytest.approx(0.4), "std": pytest.approx(0.02**0.5), "evaluations": 5}
    assert last["personalised"] == {"mean": pytest.approx(0.5), "std": pytest.approx(0), "evaluations": 5}
    assert books((1, 0.2, 0.3)).last()["global"]["evaluations"] == 1


def test_training_figures_are_kept_for_every_round(tmp_path):
    """Whatever `eval.every` is; a folder of an older version has those of its evaluations."""
    ledger = books()
    answers = ((2, 1.5), (0, 9.0), (2, 1.0))
    done = [Done({"ce": ce}, 2, answered, [], steps=1, wasted=0.0, seconds=0.1) for answered, ce in answers]
    ledger.enter(done, 4)
    ledger.write_line({"global": {"accuracy": 0.5}, "personalised": {"mean": 0.5}})
    ledger = Ledger.of(json.loads(json.dumps(ledger.to_dict())))
    ledger.write_lines(tmp_path)
    figures = [(line["round"], line["ce"]) for line in read_training(tmp_path)]
    assert figures == [(1, 1.5), (2, None), (3, 1.0)]
    (tmp_path / TRAINING).unlink()
    assert [line["round"] for line in read_training(tmp_path)] == [3]
