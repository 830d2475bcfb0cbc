"""Tokens and hundredths of them: amounts are exact, in whatever way they are said."""

from decimal import Decimal

import pytest

from billing.prices import PriceList, hundredths, tokens_text


@pytest.mark.parametrize(
    ("amount_hundredths", "said"),
    [
        (0, "0"),
        (5, "0.05"),
        (150, "1.5"),
        (100_000, "1000"),
        (10_000_001, "100000.01"),
        (123_456_789_012, "1234567890.12"),
        (-75, "-0.75"),
    ],
)
def test_amount_is_said_exactly_and_reads_as_itself(amount_hundredths, said):
    assert tokens_text(amount_hundredths) == said
    assert hundredths(Decimal(said)) == amount_hundredths


@pytest.mark.parametrize("amount", ["0.001", "NaN", "Infinity", "-0.015"])
def test_amount_finer_than_a_hundredth_or_none_at_all_is_refused(amount):
    with pytest.raises(ValueError, match="finest amount"):
        hundredths(Decimal(amount))


def test_negative_price_is_refused():
    assert PriceList(75, 50, 0, 100).inference_image_hundredths == 0
    with pytest.raises(ValueError, match="never negative"):
        PriceList(75, 50, -1, 100)
