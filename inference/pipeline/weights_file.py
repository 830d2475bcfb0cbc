"""What a file of weights says about itself."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Self, get_args

Format = Literal["pt", "onnx"]
FORMATS = get_args(Format)
TWIN_SUFFIXES = (".int8.xml", ".int8.bin")
"""Of the graph in int8 that weights may have beside them."""


def int8_twin(weights: Path) -> Path:
    """Where the int8 graph of a weights file lies, if it has one; its .bin lies beside it."""
    return weights.with_suffix(TWIN_SUFFIXES[0])


@dataclass(frozen=True)
class WeightsFacts:
    """A detector in a file: its classes by id, its input's side where it is fixed (pixels)."""

    format: Format
    class_names: tuple[str, ...]
    image_size: int | None
    parameter_count: int

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, facts: dict[str, Any]) -> Self:
        """From JSON; raises KeyError, TypeError, ValueError or OverflowError."""
        if facts["format"] not in FORMATS:
            raise ValueError(facts["format"])
        return cls(
            format=facts["format"],
            class_names=tuple(str(name) for name in facts["class_names"]),
            image_size=None if facts["image_size"] is None else int(facts["image_size"]),
            parameter_count=int(facts["parameter_count"]),
        )
