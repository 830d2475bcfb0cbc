"""Has a child process, which can hurt nobody, read weights or try them out.

Weights are code in disguise: a `.pt` file is a pickle, and an ONNX file is a program for a large
C++ library. Neither is opened in a process of the service before it has been here.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inference.confined import (
    ChildLimits,
    ConfinedChildError,
    answer_of_child,
    crashed,
    picture_of,
)
from inference.pipeline.errors import WeightsError
from inference.pipeline.options import DetectionOptions
from inference.pipeline.weights_file import WeightsFacts

_CHILD = "inference.model_child"


@dataclass(frozen=True)
class TryOutReport:
    """What a detector did in drawn streets: counts and times, and a JPEG of one of them."""

    figures: dict[str, Any]
    picture_jpeg: bytes


def read_facts(path: Path, *, limits: ChildLimits) -> WeightsFacts:
    """What a file of weights holds.

    Raises WeightsError (the codes of `weights_reader.read_weights`, `too_slow`, `too_large`,
    `crashed`) and ChildUnavailableError.
    """
    try:
        answer = answer_of_child(_CHILD, {"kind": "read"}, path, limits)
        try:
            return WeightsFacts.from_dict(answer["facts"])
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise crashed("it talked nonsense") from error
    except ConfinedChildError as error:
        raise WeightsError(error.code, error.detail) from error


def try_out(
    path: Path, *, sha256: str, options: DetectionOptions, limits: ChildLimits
) -> TryOutReport:
    """Run the weights, which must have this digest, over drawn streets; raises as `read_facts`."""
    task = {"kind": "try", "sha256": sha256, "options": options.as_json()}
    try:
        answer = answer_of_child(_CHILD, task, path, limits)
        try:
            return TryOutReport(dict(answer["figures"]), picture_of(answer))
        except (KeyError, TypeError, ValueError) as error:
            raise crashed("it talked nonsense") from error
    except ConfinedChildError as error:
        raise WeightsError(error.code, error.detail) from error
