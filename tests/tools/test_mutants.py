"""The mutation tool, on a package of its own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[2] / "tools"
AREA = '''
"""A toy."""

import logging

SMALLEST = 2


def area(width: int, height: int) -> int:
    """Of a rectangle."""
    logging.info(f"{width + 1}")
    if width < SMALLEST:
        raise ValueError("too small" + "!")
    return width * height
'''
TEST = """
from toy.area import area


def test_area():
    assert area(2, 3) == 6


def test_that_fails_anyway():
    assert area(4, 3) == 1
"""


@pytest.fixture
def mutate(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))
    import mutate

    return mutate


def run(folder: Path, *more: str) -> str:
    command = [sys.executable, str(TOOLS / "mutants.py"), str(folder / "out")]
    options = {
        "--root": folder,
        "--package": "toy",
        "--modules": "area.py",
        "--tests": "tests",
        "--imports": "json",
    }
    words = [str(word) for option in options.items() for word in option]
    done = subprocess.run([*command, *words, *more], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_run_that_is_interrupted_and_goes_on(tmp_path):
    for name, text in (
        ("toy/__init__.py", ""),
        ("toy/area.py", AREA),
        ("tests/test_area.py", TEST),
    ):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert "3 of 3, 0 minutes left: " in run(tmp_path, "--count", "3")
    rows = tmp_path / "out/rows.jsonl"
    begun = rows.read_text()
    out = run(tmp_path)
    assert rows.read_text().startswith(begun)
    found = [json.loads(line) for line in rows.read_text().splitlines()]
    missed = {row["key"] for row in found if row["by"] is None}
    assert missed == {
        'area:area: raise ValueError("too small" + "!") => pass',
        "area:: SMALLEST = 2 => SMALLEST = (-2)",
    }
    assert {r["by"] for r in found} == {None, "tests/test_area.py::test_area"}
    assert all(f"{key}\n--- area" in out for key in missed)
    assert out.splitlines()[-1].split() == ["all", "7", "5", "0", "71.4%"]
    assert (tmp_path / "toy/area.py").read_text() == AREA


def test_what_is_said_is_left_alone(mutate):
    keys = [m.key for m in mutate.mutants(AREA, "area")]
    assert len(keys) == len(set(keys))
    assert not any("logging" in key or "toy" in key for key in keys)
    raised = [key for key in keys if "ValueError" in key]
    assert raised == ['area:area: raise ValueError("too small" + "!") => pass']


CHANGES = {
    "a <= b": {"(a < b)"},
    "a not in b": {"(a in b)"},
    "a < b == c": {"(a <= b == c)", "(a < b != c)"},
    "a - b": {"(a + b)"},
    "a & b": {"(a | b)"},
    "a and b": {"(a or b)"},
    "not a": {"(a)"},
    "3": {"(4)", "(-3)"},
    "0": {"(1)", "(-1)"},
    "-1": {"(1)", "(-2)"},
    "True": {"False"},
    "f(a, b)": {"f(b, a)"},
    "f(a, k=b)": {"f(a)"},
    "zip(a, strict=True)": set(),
    "a[b:c]": {"a[:c]", "a[b:]"},
    "a if b else c": {"(a if not b else c)"},
    "[a for a in b if a]": {"[a for a in b if not (a)]"},
    "f'{a + 1}'": set(),
}


@pytest.mark.parametrize("text", CHANGES)
def test_what_an_expression_is_changed_to(text, mutate):
    found = {m.source.removeprefix("x = ") for m in mutate.mutants(f"x = {text}", "m")}
    assert found == CHANGES[text]


def test_a_change_names_where_tests_reach_it(mutate):
    source = (
        "class A:\n    b = 1\n\n    def c(self, d=2):\n        e = 3\n        return e\n"
    )
    lines = {m.key: m.lines for m in mutate.mutants(source, "m")}
    assert lines["m:A: b = 1 => b = (2)"] == range(2, 7)
    assert lines["m:A.c: def c(self, d=2): => def c(self, d=(3)):"] == range(5, 7)
    assert lines["m:A.c: e = 3 => e = (4)"] == range(5, 6)


def test_the_order_depends_on_nothing_but_the_change(mutate):
    import mutants

    one, two = mutate.mutants(AREA, "area"), mutate.mutants(AREA + "\nX = 7\n", "area")
    orders = [[m.key for _, m in mutants.sample([("f", m) for m in ms], 0)]
              for ms in (one, two)]  # fmt: skip
    assert [key for key in orders[1] if "X = 7" not in key] == orders[0]
    assert orders[0] != [m.key for m in one]
    other = mutants.sample([("f", m) for m in one], 1)
    assert [m.key for _, m in other] != orders[0]


def test_reasons(mutate, tmp_path):
    import mutants

    path = tmp_path / "reasons.txt"
    path.write_text("# head\nkey: a => b\n    because\n\nother: c => d\n    of it\n")
    found = mutants.read_reasons(path)
    assert found == {"key: a => b": "because", "other: c => d": "of it"}
