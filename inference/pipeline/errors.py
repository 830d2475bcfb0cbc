"""What can go wrong in the pipeline itself; faults of a media file are `datasets.media` errors."""


class PipelineError(Exception):
    """A failure with a stable `code` and a sentence for the person who reads it."""

    def __init__(self, code: str, detail: str) -> None:
        self.code = code
        self.detail = detail
        super().__init__(detail)


class WeightsError(PipelineError):
    """The weights are missing, are not the ones that were registered, or are no detector."""


class DrawingError(PipelineError):
    """The annotated file cannot be written, for example because its format is unknown."""
