"""What can go wrong in the pipeline itself; faults of a media file are `datasets.media` errors."""

import sys
from collections.abc import Iterator


class PipelineError(Exception):
    """A failure with a stable `code` and a sentence for the person who reads it."""

    def __init__(self, code: str, detail: str) -> None:
        self.code = code
        self.detail = detail
        super().__init__(detail)


class WeightsError(PipelineError):
    """The weights are missing, are not the ones that were registered, or are no detector."""


class DeviceUnavailableError(PipelineError):
    """The device that was asked for is not there, or not any more."""


class DrawingError(PipelineError):
    """The annotated file cannot be written, for example because its format is unknown."""


def is_device_fault(error: BaseException) -> bool:
    """Whether the accelerator failed, after which nothing of this process can use it any more.

    An illegal access or a card that fell off the bus stays in the CUDA context of the process:
    every later call raises at once. Memory that does not suffice is no such fault. A device that
    was asked for and is not there is one.
    """
    # Where torch was not imported nothing can be one of its errors; this file does not import it.
    torch = sys.modules.get("torch")
    accelerator_error = getattr(torch, "AcceleratorError", ())
    out_of_memory = getattr(torch, "OutOfMemoryError", ())
    return any(
        isinstance(one, (DeviceUnavailableError, accelerator_error))
        or (
            isinstance(one, RuntimeError)
            and not isinstance(one, out_of_memory)
            and "CUDA error" in str(one)
        )
        for one in _with_causes(error)
    )


def _with_causes(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
