"""The times of the parts of a start."""

import subprocess
import sys
import time
from contextvars import Context

import pytest

from pgc3d.start_times import begin, count_from_process, read_parts, read_start, timed


@pytest.fixture
def fresh():
    """Call a function where nothing was timed."""
    return Context().run


def test_parts_are_sums_and_are_read_once(fresh):
    def times():
        for name in ("mesh", "mesh", "weights"):
            with timed(name):
                time.sleep(0.01)
        return read_parts(), read_parts()

    parts, again = fresh(times)
    assert set(parts) == {"mesh", "weights"}
    assert parts["mesh"] >= 0.02
    assert again == {}


def test_a_part_that_fails_counts(fresh):
    def times():
        with pytest.raises(KeyError), timed("mesh"):
            raise KeyError
        return read_parts()

    assert set(fresh(times)) == {"mesh"}


def test_what_was_timed_before_a_run_is_of_it_where_the_process_makes_that_run_alone(fresh):
    def times(*, alone):
        if alone:
            count_from_process()
        with timed("imports"):
            pass
        begin()
        return set(read_parts()), read_start(), read_start()

    assert fresh(times, alone=False) == (set(), None, None)
    parts, start, again = fresh(times, alone=True)
    assert (parts, again) == ({"imports"}, None)
    assert start > 0


def test_the_start_counts_from_that_of_the_process():
    """So that it has the time that Python needs before the first line of the program, here a sleep."""
    code = (
        "import time; time.sleep(0.5)\n"
        "from pgc3d.start_times import count_from_process, read_start\n"
        "count_from_process(); print(read_start())"
    )
    before = time.perf_counter()
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    whole = time.perf_counter() - before
    assert (0.5 if sys.platform == "linux" else 0.0) <= float(found.stdout) <= whole + 0.02  # a clock's tick
