"""Exact points: what is read, how it is written, what units are worth (contract, "Values")."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.points import MAX_POINTS, NotPoints, format_points, parse_points, unit_share

HOSTILE = [
    "",
    "-",
    "-1",
    "-0",
    "+1",
    ".",
    ".5",
    "1.",
    "01",
    "00",
    "00.5",
    "1e3",
    "1E3",
    "1.5e0",
    "1_000",
    "1,000",
    "1 000",
    " 1",
    "1 ",
    "1\n",
    "1.5\n",
    "\t1",
    "1.5.5",
    "1..5",
    "0x10",
    "NaN",
    "nan",
    "Infinity",
    "inf",
    "١٥٠",
    "१५०",
    "\uff11\uff15\uff10",
    "1²",
    "½",
    "1٫5",
    "1.٥",
    "−1",
    "1\u200b",
    "1\x00",
    "$5",
    "1000000000000000",
    "9" * 16 + ".1",
    "0." + "0" * 254,
]


@pytest.mark.parametrize("text", HOSTILE)
def test_a_hostile_spelling_is_refused_in_words(text: str) -> None:
    with pytest.raises(NotPoints) as fault:
        parse_points(text)
    assert str(fault.value).startswith(("must ", "is ", "has "))


@pytest.mark.parametrize(
    ("text", "thousandths", "canonical", "decimals"),
    [
        ("0", 0, "0", 0),
        ("0.000", 0, "0", 0),
        ("150", 150_000, "150", 0),
        ("150.5", 150_500, "150.5", 1),
        ("1.5000", 1_500, "1.5", 1),
        ("0.001", 1, "0.001", 3),
        ("0.010", 10, "0.01", 2),
        ("999999999999999.999", MAX_POINTS, "999999999999999.999", 3),
        ("1.2345", None, "1.2345", 4),
        ("0.00010", None, "0.0001", 4),
    ],
)
def test_an_amount_is_read_to_its_value_its_spelling_and_its_decimals(
    text: str, thousandths: int | None, canonical: str, decimals: int
) -> None:
    assert parse_points(text) == (thousandths, canonical, decimals)


@pytest.mark.parametrize("text", ["123456789012345", "1234567890123.45", "0.12345678901234", "12345678901234.0"])
def test_a_number_may_have_fifteen_digits_as_written(text: str) -> None:
    assert parse_points(text, digits_in_all=15) == parse_points(text)


@pytest.mark.parametrize("text", ["1234567890123.456", "0.123456789012345", "123456789012345.0"])
def test_a_number_may_not_have_sixteen(text: str) -> None:
    with pytest.raises(NotPoints, match="16 digits, 15 are allowed"):
        parse_points(text, digits_in_all=15)


@given(st.integers(0, MAX_POINTS))
def test_points_survive_being_written_and_read(thousandths: int) -> None:
    text = format_points(thousandths)
    assert parse_points(text).thousandths == thousandths
    assert parse_points(text).text == text
    assert not ("." in text and text.endswith(("0", ".")))


@given(st.integers(1, MAX_POINTS))
def test_a_debt_is_written_with_a_sign(thousandths: int) -> None:
    assert format_points(-thousandths) == "-" + format_points(thousandths)


@given(st.text(max_size=20))
def test_any_text_is_points_or_refused(text: str) -> None:
    try:
        amount = parse_points(text)
    except NotPoints:
        return
    assert Fraction(amount.text) == Fraction(text)


units = st.integers(1, 10**9).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n)))


@given(st.integers(0, MAX_POINTS), units, st.integers(0, 3))
def test_a_share_is_the_exact_part_rounded_down_at_the_programs_decimals(
    points: int, of: tuple[int, int], decimals: int
) -> None:
    total, given_back = of
    share = unit_share(points, total, given_back, decimals)
    step = 10 ** (3 - decimals)
    if given_back == total:
        assert share == points
    else:
        exact = Fraction(points * given_back, total)
        assert share % step == 0
        assert share <= exact < share + step


@given(st.integers(0, 10**9), st.integers(1, 50), st.integers(0, 3))
def test_units_one_by_one_never_fall_and_make_all_points(points: int, total: int, decimals: int) -> None:
    shares = [unit_share(points, total, given_back, decimals) for given_back in range(total + 1)]
    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == (0, points)


def test_a_hundred_points_over_three_units() -> None:
    assert [unit_share(100_000, 3, u, 3) for u in (1, 2, 3)] == [33_333, 66_666, 100_000]
    assert [unit_share(100_000, 3, u, 0) for u in (1, 2, 3)] == [33_000, 66_000, 100_000]
