"""What things cost: pure arithmetic over a price list, in whole hundredths of a token."""

from dataclasses import dataclass
from decimal import Decimal

HUNDREDTHS_PER_TOKEN = 100


@dataclass(frozen=True)
class PriceList:
    """Prices of one image and one video frame, in hundredths of a token."""

    upload_image_hundredths: int
    upload_frame_hundredths: int
    inference_image_hundredths: int
    inference_frame_hundredths: int

    def __post_init__(self) -> None:
        if min(self.__dict__.values()) < 0:
            raise ValueError("A price is never negative.")


def upload_price_hundredths(prices: PriceList, *, images: int, frames: int) -> int:
    """What uploading so many images and video frames costs."""
    return prices.upload_image_hundredths * images + prices.upload_frame_hundredths * frames


def inference_price_hundredths(prices: PriceList, *, images: int, frames: int) -> int:
    """What detection on so many images and video frames costs."""
    return prices.inference_image_hundredths * images + prices.inference_frame_hundredths * frames


def tokens(hundredths: int) -> float:
    """Hundredths as tokens, for people and for JSON; never to calculate with."""
    return float(Decimal(hundredths) / HUNDREDTHS_PER_TOKEN)


def tokens_text(hundredths: int) -> str:
    """Hundredths as tokens in a sentence, exactly: 1.5, 100000.01.

    >>> [tokens_text(one) for one in (150, 10_000_001, 100_000, 0)]
    ['1.5', '100000.01', '1000', '0']
    """
    return f"{Decimal(hundredths) / HUNDREDTHS_PER_TOKEN:.2f}".rstrip("0").rstrip(".")


def readable_tokens(hundredths: int) -> str:
    """Hundredths as tokens on a page: 1,234.50."""
    return f"{tokens(hundredths):,.2f}"


def hundredths(amount_tokens: Decimal) -> int:
    """Tokens as hundredths; raises ValueError when the amount is finer than a hundredth."""
    scaled = amount_tokens * HUNDREDTHS_PER_TOKEN
    if not scaled.is_finite() or scaled != scaled.to_integral_value():
        raise ValueError("The finest amount is a hundredth of a token.")
    return int(scaled)
