"""What a job would do and cost, decided before anything is written: also what a quote is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from django.conf import settings

from billing.prices import PriceList, inference_price_hundredths
from datasets.models import MediaFile
from inference.models import ModelVersion
from inference.pipeline.options import DEFAULT_IMAGE_SIZE, DetectionOptions, OptionsError
from inference.pipeline.tiles import MAX_PARTS, part_count
from inference.selectors import offered_precisions
from inference.slicing import network_looks, sampled_count
from odproject.core.errors import DomainError, FieldError


class InvalidOptionsError(DomainError):
    """Options that make no sense, or none for this model version."""

    code = "invalid_options"
    title = "The options are not valid"


class PrecisionNotAvailableError(DomainError):
    """No worker computes in this precision, or the model version has no weights for it."""

    code = "precision_not_available"
    title = "Precision not available"


class TooManyTilesError(DomainError):
    """A picture would be cut into more, or larger inputs, than its price pays for."""

    code = "too_many_tiles"
    title = "Too many tiles"


@dataclass(frozen=True)
class PlannedFile:
    """A file of a job: how many of its frames are looked at, and the price of each."""

    media_file: MediaFile
    frame_count: int
    frame_price_hundredths: int


@dataclass(frozen=True)
class JobPlan:
    """What a job would look at and cost at most, with its options complete."""

    version: ModelVersion
    options: DetectionOptions
    files: tuple[PlannedFile, ...]

    @property
    def image_count(self) -> int:
        """Images looked at."""
        return self._frames_of(MediaFile.MediaType.IMAGE)

    @property
    def video_frame_count(self) -> int:
        """Frames of videos looked at."""
        return self._frames_of(MediaFile.MediaType.VIDEO)

    @property
    def frame_count(self) -> int:
        """Images and frames looked at."""
        return sum(file.frame_count for file in self.files)

    @property
    def quoted_hundredths(self) -> int:
        """The most that it costs: what is held at submission."""
        return sum(file.frame_count * file.frame_price_hundredths for file in self.files)

    def _frames_of(self, media_type: MediaFile.MediaType) -> int:
        return sum(f.frame_count for f in self.files if f.media_file.media_type == media_type)


def default_options(version: ModelVersion) -> DetectionOptions:
    """How the version is used where a job does not say otherwise."""
    service = DetectionOptions(
        confidence_floor=settings.CONFIDENCE_FLOOR,
        image_size=version.image_size or settings.NETWORK_IMAGE_SIZE,
    )
    return DetectionOptions.parse(version.default_options, defaults=service)


def complete_options(version: ModelVersion, chosen: Mapping[str, Any]) -> DetectionOptions:
    """The options that were chosen, and the model version's for the others.

    Raises InvalidOptionsError and PrecisionNotAvailableError (400).
    """
    try:
        options = DetectionOptions.parse(chosen, defaults=default_options(version))
    except OptionsError as error:
        raise InvalidOptionsError(
            str(error),
            errors=tuple(_field_error(one.field, one.code, one.detail) for one in error.faults),
        ) from error
    known = version.class_names
    unknown = [name for name in options.class_names or () if name not in known]
    if unknown:
        detail = f"{version} knows no {', '.join(unknown)}; its classes are {', '.join(known)}."
        raise InvalidOptionsError(
            detail, errors=(_field_error("class_names", "unknown_class", detail),)
        )
    if version.image_size is not None and options.image_size > version.image_size:
        detail = f"{version} takes pictures of {version.image_size} pixels at most."
        raise InvalidOptionsError(detail, errors=(_field_error("image_size", "too_large", detail),))
    offered = offered_precisions(version)
    if options.precision not in offered:
        detail = (
            f"{version} is not offered in {options.precision} now, but in {', '.join(offered)}."
        )
        raise PrecisionNotAvailableError(
            detail, errors=(_field_error("precision", "precision_not_available", detail),)
        )
    return options


def _field_error(name: str, code: str, detail: str) -> FieldError:
    return FieldError(f"options.{name}", code, detail)


def _refuse_too_many_tiles(
    media_file: MediaFile, options: DetectionOptions, *, fixed_size: int | None
) -> None:
    """Raise TooManyTilesError: a picture has one price, however often the network looks at it.

    With any options it costs at most what MAX_PARTS looks at the default input size do, which
    leaves room for 100 megapixels in tiles of 640 pixels.
    """
    width, height = media_file.width, media_file.height
    count = part_count((width, height), options)
    looks = network_looks((width, height), options, fixed_size=fixed_size)
    if count <= MAX_PARTS and looks <= MAX_PARTS:
        return
    detail = (
        f"{media_file.name} has {width} x {height} pixels and would be cut into {count:,} parts"
    )
    if count > MAX_PARTS:
        detail += f"; choose tiles so large that no picture has more than {MAX_PARTS:,}."
    else:
        side = fixed_size or options.image_size
        most = int(MAX_PARTS * DEFAULT_IMAGE_SIZE**2 / side**2)
        detail += (
            f" of {side} x {side} pixels for the network; choose tiles so large that no picture "
            f"has more than {most:,} of them"
        )
        # Whatever the image_size, a fixed input is filled up with grey.
        detail += "." if fixed_size else ", or a smaller image_size."
    raise TooManyTilesError(detail, errors=(_field_error("tiling", "too_many_tiles", detail),))


def plan_job(
    *,
    version: ModelVersion,
    media_files: Sequence[MediaFile],
    chosen: Mapping[str, Any],
    prices: PriceList,
) -> JobPlan:
    """What a job with these options over these files would look at and cost.

    Raises InvalidOptionsError, PrecisionNotAvailableError and TooManyTilesError (400).
    """
    options = complete_options(version, chosen)
    for media_file in media_files:
        _refuse_too_many_tiles(media_file, options, fixed_size=version.image_size)
    image_price = inference_price_hundredths(prices, images=1, frames=0)
    frame_price = inference_price_hundredths(prices, images=0, frames=1)
    files = []
    for media_file in media_files:
        if media_file.media_type == MediaFile.MediaType.IMAGE:
            files.append(PlannedFile(media_file, 1, image_price))
        else:
            count = sampled_count(media_file.frame_count, stride=options.frame_stride)
            files.append(PlannedFile(media_file, count, frame_price))
    return JobPlan(version=version, options=options, files=tuple(files))
