"""Proves that numbers are read from ASCII digits alone: what is accepted has one meaning, in YAML too, and whatever
int() and float() take beyond it is refused."""

import math

import pytest

from lm.training.config_files import load
from tokenization.numerals import decimal_number, whole_number

WHOLE = ["0", "7", "-7", "+7", "007", "12345678901234567890"]
DECIMAL = [*WHOLE[:-1], "0.5", ".5", "5.", "-.5e3", "1e9", "1E+9", "2.5e-3"]
SURPLUS = ["1_000", " 1", "1 ", "1\n", "\u00a01", "٣", "\uff11", "²", "", "-", "+-1", "0x10", "1,000", "one"]


@pytest.mark.parametrize("text", WHOLE)
def test_whole_numbers_are_those_of_configurations(text):
    assert whole_number(text) == load(text)


@pytest.mark.parametrize("text", DECIMAL)
def test_numbers_are_those_of_configurations(text):
    assert decimal_number(text) == load(text)


def test_what_is_no_number_is_left_to_who_checks_the_range():
    assert decimal_number("inf") == -decimal_number("-inf") == decimal_number("1e999") == math.inf
    assert math.isnan(decimal_number("nan"))


@pytest.mark.parametrize("text", [*SURPLUS, "1.5", "1e3", "nan"])
def test_whatever_else_a_whole_number_could_be_is_refused(text):
    with pytest.raises(ValueError, match="is not a whole number"):
        whole_number(text)


@pytest.mark.parametrize("text", [*SURPLUS, "1e", "e1", ".", "1.2.3", "1_0.5", "infinity", "NaN"])
def test_whatever_else_a_number_could_be_is_refused(text):
    with pytest.raises(ValueError, match="is not a number"):
        decimal_number(text)
