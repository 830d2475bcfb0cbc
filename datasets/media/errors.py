"""The one error of this package: a file that cannot be taken in, and why."""


class MediaError(Exception):
    """A file is refused.

    `code` is stable and meant for programs, `detail` is a sentence for the person who uploaded the
    file, `status` is the HTTP status that suits: 400 for an empty, truncated or corrupt file, 415
    for a kind of file that is not supported, 422 for one that is understood and still refused.
    """

    def __init__(self, code: str, detail: str, status: int) -> None:
        self.code = code
        self.detail = detail
        self.status = status
        super().__init__(detail)

    def __reduce__(self) -> tuple[type["MediaError"], tuple[str, str, int]]:
        """Rebuild from all three members; the default would lose two of them."""
        return type(self), (self.code, self.detail, self.status)


def empty_file() -> MediaError:
    """The refusal of a file of zero bytes."""
    return MediaError("empty_file", "The file is empty.", 400)


def corrupt_file(detail: str) -> MediaError:
    """The refusal of a file whose kind is supported and whose content is damaged."""
    return MediaError("corrupt_file", detail, 400)


def unsupported_type(detail: str) -> MediaError:
    """The refusal of a file of a kind that is not supported."""
    return MediaError("unsupported_media_type", detail, 415)


def raw_photograph() -> MediaError:
    """The refusal of what a camera's sensor saw, before any picture was made of it."""
    return unsupported_type(
        "Raw photographs are not supported; please convert them to JPEG or TIFF."
    )


def refused(code: str, detail: str) -> MediaError:
    """The refusal of a file that is understood and still not taken in."""
    return MediaError(code, detail, 422)
