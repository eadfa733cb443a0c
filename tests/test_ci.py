"""What continuous integration leaves to --nightly is listed, and what it runs on the newest Python is a tenth."""

import ast
import re

import pytest

from tests.conftest import REPOSITORY


def nightly() -> set[str]:
    """Names of tests with the mark, on all of their cases or on some."""
    found = set()
    for path in (REPOSITORY / "tests").rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and any("mark.nightly" in ast.unparse(d) for d in node.decorator_list):
                found.add(node.name)
    return found


def test_soak_tests_are_listed_with_their_seconds():
    text = (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(test_\w+)`[^|]*\|[^|]*\| ([^|]+) \|$", text, re.MULTILINE))
    assert set(rows) == nightly()
    assert all(re.match(r"\d+|not measured", seconds) for seconds in rows.values())


def test_soak_tests_run_with_a_flag_alone(request):
    for item in request.session.items:
        if item.get_closest_marker("nightly"):
            assert (item.get_closest_marker("skip") is None) == request.config.getoption("--nightly")


def test_a_tenth_is_marked_for_the_newest_python(request):
    items = request.session.items
    if len(items) < 1000:
        pytest.skip("told of the whole suite alone")
    assert sum(item.get_closest_marker("newest") is not None for item in items) >= len(items) / 10
