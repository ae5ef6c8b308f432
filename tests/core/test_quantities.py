"""Sizes as people write them."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cidl_sim.core.errors import InputError
from cidl_sim.core.quantities import UNITS, is_size, parse_bytes, parse_bytes_per_s, parse_size

COUNTS = st.integers(min_value=0, max_value=2**50)
CASES = st.sampled_from([str, str.lower, str.upper])
SPACES = st.sampled_from(["", " "])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("3.3GB", 3_300_000_000),
        ("512MiB", 536_870_912),
        ("6e9", 6_000_000_000),
        ("1.5e3kB", 1_500_000),
        (".5KiB", 512),
        ("0", 0),
        ("0e999999999", 0),
        ("  7 B ", 7),
    ],
)
def test_sizes_by_hand(text, expected):
    assert parse_bytes(text) == expected


@given(COUNTS, st.sampled_from(list(UNITS)), CASES, SPACES)
def test_a_number_times_its_unit(count, unit, case, space):
    assert parse_bytes(f"{count}{space}{case(unit)}") == count * UNITS[unit]


@given(COUNTS)
def test_a_plain_number_is_itself(count):
    assert parse_bytes(str(count)) == count


@given(COUNTS, st.integers(min_value=0, max_value=10**9 - 1))
def test_decimals_are_exact_where_binary_fractions_are_not(count, part):
    assert parse_bytes(f"{count}.{part:09d}GB") == count * 10**9 + part


@given(st.integers(min_value=0, max_value=2**40), st.integers(min_value=0, max_value=12), st.sampled_from(list(UNITS)))
def test_a_fraction_of_a_byte_is_refused_and_nothing_is_rounded(digits, places, unit):
    text, exact = f"{digits}e-{places}{unit}", Fraction(digits, 10**places) * UNITS[unit]
    assert parse_bytes_per_s(text) == float(exact)
    if exact.denominator == 1:
        assert parse_bytes(text) == exact
    else:
        with pytest.raises(InputError, match="not a whole number of bytes"):
            parse_bytes(text)


@pytest.mark.parametrize(
    "text",
    ["", "GB", "-1", "-1GB", "+1", "1 000", "1_000", "1,5GB", "5G", "5Gbit", "0x10", "nan", "inf", "1e", "٣", "1GB/s"],
)
def test_what_is_no_size_is_refused_with_how_to_write_one(text):
    with pytest.raises(InputError, match=r"not a number of bytes: write 3300000000, 3\.3GB or 512MiB"):
        parse_bytes(text)


@pytest.mark.parametrize("text", ["1e999999999", "1e-999999999", "9" * 40])
def test_what_no_memory_holds_is_refused_at_once(text):
    with pytest.raises(InputError, match="that anything holds"):
        parse_bytes(text)


@given(st.text())
def test_whatever_is_written_is_a_number_or_one_line(text):
    try:
        assert parse_bytes(text) >= 0
    except InputError as problem:
        assert len(str(problem).splitlines()) == 1


def test_the_key_says_whether_bytes_are_whole():
    assert is_size("memory_limit_bytes")
    assert is_size("loader.first_touch_bytes_per_s")
    assert not is_size("executor.flops_per_s")
    assert parse_size("loader.bandwidth_bytes_per_s", "0.5B") == 0.5
    with pytest.raises(InputError):
        parse_size("baseline_bytes", "0.5B")
