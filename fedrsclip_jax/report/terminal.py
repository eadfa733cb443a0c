"""Tables on a terminal, and in a file or a pipe, where no cell is ever cut."""

from rich.console import Console
from rich.table import Table

_PIPE_WIDTH = 10_000  # columns; more than any table needs


def print_table(table: Table, console: Console) -> None:
    """Prints a table: as wide as the terminal, or as wide as its cells need where the output is no terminal."""
    for column in table.columns:
        column.overflow = "fold"  # a narrow terminal continues a long word on the next line
    if console.is_terminal:
        console.print(table)
    else:
        Console(file=console.file, width=_PIPE_WIDTH).print(table)
