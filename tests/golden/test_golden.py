"""The refactoring changes no bit: see `golden.py`."""

import json

import pytest

from tests.golden.golden import CASES, FILE, machine, make_in_a_folder

WRITTEN = json.loads(FILE.read_text())


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_the_same_seeds_give_the_same_bits(case):
    if WRITTEN["machine"] != machine():
        pytest.skip(f"written on {WRITTEN['machine']}, and this is {machine()}")
    assert make_in_a_folder(case) == WRITTEN["cases"][case]
