"""Tables of a terminal keep every character, in a narrow terminal and in a pipe."""

import io

import pytest
from rich import box
from rich.console import Console
from rich.table import Table

from fedrsclip_jax.report.terminal import print_table

LABELS = ("local.learning_rate=0.0003, method.pacl_weight=0.1", "local.learning_rate=0.003, method.pacl_weight=0.1")


def table() -> Table:
    made = Table(title="accuracy in %", box=box.SIMPLE_HEAD)
    made.add_column("")
    made.add_column("clients' own", justify="right", no_wrap=True)
    for label in LABELS:
        made.add_row(label, "77.3 ± 4.7")
    return made


def test_in_a_pipe_a_line_is_as_long_as_its_cells():
    out = io.StringIO()
    print_table(table(), Console(file=out, width=40))
    lines = [line for line in out.getvalue().splitlines() if "77.3" in line]
    assert [line.partition("   ")[0].strip() for line in lines] == [*LABELS]
    assert max(map(len, out.getvalue().splitlines())) < 120, "and no longer"


@pytest.mark.parametrize("width", [30, 60])
def test_a_narrow_terminal_continues_on_the_next_line(width):
    out = io.StringIO()
    print_table(table(), Console(file=out, width=width, force_terminal=True, no_color=True))
    assert "…" not in out.getvalue()
    said = "".join(line[:-14].strip() for line in out.getvalue().splitlines())
    assert "0.0003" in said
    assert "0.003" in said
