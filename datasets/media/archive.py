"""Reads zip archives that somebody else made, trusting nothing in them.

The whole central directory is checked before a single byte is unpacked, and what it declares is
enforced again while unpacking. Names are for showing only: nothing is ever written under one.
The layout is that of the .ZIP File Format Specification (APPNOTE.TXT 6.3.10).
"""

import bz2
import contextlib
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, BinaryIO, Protocol

from datasets.media.errors import MediaError, corrupt_file, refused, unsupported_type
from datasets.media.limits import DEFAULT_LIMITS, MediaLimits
from datasets.media.sniff import archive_name, sniff

_END_RECORD = struct.Struct("<4s4H2LH")
_END_SIGNATURE = b"PK\x05\x06"
_END64_LOCATOR = struct.Struct("<4sLQL")
_END64_RECORD = struct.Struct("<4sQ2H2L4Q")
_DIRECTORY_ENTRY = struct.Struct("<4s4B4HL2L5H2L")
_LOCAL_HEADER = struct.Struct("<4s2B4HL2L2H")
_MAX_COMMENT_BYTES = 0xFFFF
# Directories and the files that macOS adds come on top of the files that count.
_ENTRIES_PER_FILE = 4

_METHODS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2}
_ENCRYPTION_FLAGS = 0x0001 | 0x0040 | 0x2000
_FILE_TYPES = {0, stat.S_IFREG, stat.S_IFDIR}
_ARCHIVE_SUFFIXES = {
    ".7z",
    ".ace",
    ".arj",
    ".bz2",
    ".cab",
    ".gz",
    ".iso",
    ".jar",
    ".lzh",
    ".rar",
    ".tar",
    ".tbz2",
    ".tgz",
    ".txz",
    ".xz",
    ".zip",
    ".zipx",
    ".zst",
}
_IGNORED_FOLDER = "__MACOSX"
_IGNORED_NAMES = {".ds_store", "thumbs.db", "desktop.ini"}
_DRIVE = re.compile(r"^[A-Za-z]:")
_CHUNK_BYTES = 256 * 1024
_HEAD_BYTES = 512


@dataclass(frozen=True)
class ArchiveMember:
    """A file in an archive that passed all checks.

    `name` is as stored and may repeat: a member is known by its `index` in the central directory.
    The sizes are declared ones until `extract_member` has confirmed them.
    """

    index: int
    name: str
    size_bytes: int
    compressed_bytes: int
    crc32: int
    method: int
    data_offset: int


class _Decompressor(Protocol):
    @property
    def eof(self) -> bool: ...

    def feed(self, data: bytes) -> Iterator[bytes]: ...


def is_ignored_name(name: str) -> bool:
    """Whether a member is nobody's upload: a folder, or what desktops leave in every archive."""
    if name.endswith("/"):
        return True
    parts = PurePosixPath(name).parts
    if not parts:
        return False
    last = parts[-1]
    return _IGNORED_FOLDER in parts or last.startswith("._") or last.lower() in _IGNORED_NAMES


def open_archive(path: Path, *, limits: MediaLimits = DEFAULT_LIMITS) -> list[ArchiveMember]:
    """Check the archive as a whole and list the files in it, in stored order.

    Raises MediaError: 400 for a damaged archive, 415 for another kind of archive or file, 422 when
    one member makes the archive unsafe (a name that leaves the archive, a link or device, an
    encrypted or overlapping or nested one, one that unpacks beyond the limits), when it has too
    many entries, or when it holds no file at all.
    """
    if sniff(path).kind != "archive":
        raise unsupported_type("The file is no zip archive.")
    with path.open("rb") as file:
        _check_entry_count(file, limits)
        infos = _read_directory(file)
        for info in infos:
            _check_entry(info, limits)
        files = [(i, info) for i, info in enumerate(infos) if not is_ignored_name(info.filename)]
        if len(files) > limits.max_archive_files:
            raise _too_many(limits)
        _check_total_size(infos, limits)
        offsets = _data_offsets(file, infos)
        members = [
            ArchiveMember(
                index=index,
                name=info.filename,
                size_bytes=info.file_size,
                compressed_bytes=info.compress_size,
                crc32=info.CRC,
                method=info.compress_type,
                data_offset=offsets[index],
            )
            for index, info in files
        ]
        if not members:
            raise refused("empty_archive", "There is no file in the archive.")
        for member in members:
            _check_not_nested(file, member)
    return members


def extract_member(
    archive: Path | BinaryIO,
    member: ArchiveMember,
    destination: Path,
    *,
    limits: MediaLimits = DEFAULT_LIMITS,
) -> int:
    """Unpack one member into a new file at `destination` and return its size in bytes.

    What is written is counted and compared with the declared size and checksum. Raises MediaError:
    400 if the member is damaged, 422 if it unpacks to more than it declared. OSError (a full disk,
    an existing destination) passes through. After an error nothing is left at `destination`.
    """
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(archive.open("rb")) if isinstance(archive, Path) else archive
        out = stack.enter_context(destination.open("xb"))
        try:
            return _copy(file, member, out, limits)
        except BaseException:
            destination.unlink(missing_ok=True)
            raise


def _copy(file: BinaryIO, member: ArchiveMember, out: IO[bytes], limits: MediaLimits) -> int:
    allowed_bytes = min(member.size_bytes, limits.max_member_bytes)
    written, checksum = 0, 0
    for chunk in _unpacked(file, member):
        written += len(chunk)
        if written > allowed_bytes:
            raise _unsafe(member.name, "unpacks to more than it declares")
        checksum = zlib.crc32(chunk, checksum)
        out.write(chunk)
    if written != member.size_bytes or checksum != member.crc32:
        raise _damaged_member()
    return written


# -- the central directory


def _check_entry_count(file: BinaryIO, limits: MediaLimits) -> None:
    """Refuse a directory of too many entries before anything is made of each of them.

    The entries are counted by walking over them, because the number in the end record may lie.
    """
    max_entries = limits.max_archive_files * _ENTRIES_PER_FILE
    start, size_bytes, declared = _find_directory(file)
    if declared > max_entries:
        raise _too_many(limits)
    file.seek(start)
    position, counted = 0, 0
    while position < size_bytes:
        header = file.read(_DIRECTORY_ENTRY.size)
        if len(header) < _DIRECTORY_ENTRY.size or not header.startswith(b"PK\x01\x02"):
            raise _damaged_archive()
        name_bytes, extra_bytes, comment_bytes = _DIRECTORY_ENTRY.unpack(header)[12:15]
        tail_bytes = name_bytes + extra_bytes + comment_bytes
        file.seek(tail_bytes, 1)
        position += _DIRECTORY_ENTRY.size + tail_bytes
        counted += 1
        if counted > max_entries:
            raise _too_many(limits)
    if counted != declared:
        raise _damaged_archive()


def _find_directory(file: BinaryIO) -> tuple[int, int, int]:
    """Where the central directory starts, its size in bytes, and how many entries it declares.

    The start is counted back from the end record, as zipfile does, so that both read the same
    directory even if something was put in front of the archive.
    """
    file_bytes = file.seek(0, 2)
    tail_bytes = min(file_bytes, _END_RECORD.size + _MAX_COMMENT_BYTES)
    file.seek(file_bytes - tail_bytes)
    tail = file.read(tail_bytes)
    # An end record without a comment is the end of the file, whatever else looks like one.
    plain = tail[-_END_RECORD.size :]
    ends_plainly = plain.startswith(_END_SIGNATURE) and plain.endswith(b"\0\0")
    found = len(tail) - _END_RECORD.size if ends_plainly else tail.rfind(_END_SIGNATURE)
    if found < 0 or found + _END_RECORD.size > len(tail):
        raise _damaged_archive()
    end_offset = file_bytes - tail_bytes + found
    _, _, _, _, declared, size_bytes, _, _ = _END_RECORD.unpack_from(tail, found)
    locator_offset = end_offset - _END64_LOCATOR.size
    if locator_offset >= _END64_RECORD.size:
        file.seek(locator_offset - _END64_RECORD.size)
        record = file.read(_END64_RECORD.size)
        if file.read(4) == b"PK\x06\x07" and record.startswith(b"PK\x06\x06"):
            fields = _END64_RECORD.unpack(record)
            declared, size_bytes = fields[7], fields[8]
            end_offset = locator_offset - _END64_RECORD.size
    if size_bytes > end_offset:
        raise _damaged_archive()
    return end_offset - size_bytes, size_bytes, declared


def _read_directory(file: BinaryIO) -> list[zipfile.ZipInfo]:
    try:
        with zipfile.ZipFile(file) as archive:
            return archive.infolist()
    except (
        zipfile.BadZipFile,
        NotImplementedError,
        ValueError,
        OverflowError,
        struct.error,
        EOFError,
        IndexError,
    ) as error:
        raise _damaged_archive() from error


def _check_entry(info: zipfile.ZipInfo, limits: MediaLimits) -> None:
    """Refuse the archive for what the directory says of one entry, ignored ones included."""
    reason = (
        _unsafe_name(info.orig_filename)
        or _unsafe_kind(info)
        or _unsafe_size(info, limits)
        or (None if is_ignored_name(info.filename) else _nested_by_name(info.filename))
    )
    if reason is not None:
        raise _unsafe(info.orig_filename, reason)


def _unsafe_name(name: str) -> str | None:
    if not name or "\0" in name:
        return "has no proper name"
    if "\\" in name:
        return "has a backslash in its name"
    if name.startswith("/") or _DRIVE.match(name):
        return "has an absolute path"
    if ".." in name.split("/"):
        return "points out of the archive"
    return None


def _unsafe_kind(info: zipfile.ZipInfo) -> str | None:
    if stat.S_IFMT(info.external_attr >> 16) not in _FILE_TYPES:
        return "is a link or a device, not a file"
    if info.flag_bits & _ENCRYPTION_FLAGS:
        return "is encrypted"
    if info.compress_type not in _METHODS:
        return "is packed by a method that is not supported"
    return None


def _unsafe_size(info: zipfile.ZipInfo, limits: MediaLimits) -> str | None:
    if info.file_size > limits.max_member_bytes:
        return f"unpacks to more than {limits.max_member_bytes} bytes"
    allowed_bytes = max(
        limits.archive_ratio_floor_bytes, info.compress_size * limits.max_archive_ratio
    )
    if info.file_size > allowed_bytes:
        return f"unpacks to more than {limits.max_archive_ratio} times its size"
    return None


def _nested_by_name(name: str) -> str | None:
    if PurePosixPath(name).suffix.lower() in _ARCHIVE_SUFFIXES:
        return "is an archive within the archive"
    return None


def _check_total_size(infos: list[zipfile.ZipInfo], limits: MediaLimits) -> None:
    if sum(info.file_size for info in infos) > limits.max_archive_uncompressed_bytes:
        raise refused(
            "unsafe_archive",
            "The archive unpacks to more than "
            f"{limits.max_archive_uncompressed_bytes} bytes, the limit.",
        )


def _data_offsets(file: BinaryIO, infos: list[zipfile.ZipInfo]) -> list[int]:
    """Where the data of each entry starts; two that share bytes make the archive unsafe.

    Members that lie over each other are how a small file declares petabytes.
    """
    offsets = [0] * len(infos)
    free_from = 0
    for index in sorted(range(len(infos)), key=lambda i: infos[i].header_offset):
        info = infos[index]
        if info.header_offset < free_from:
            raise _unsafe(info.orig_filename, "lies over another file of the archive")
        file.seek(info.header_offset)
        header = file.read(_LOCAL_HEADER.size)
        if len(header) < _LOCAL_HEADER.size or not header.startswith(b"PK\x03\x04"):
            raise _damaged_archive()
        name_bytes, extra_bytes = _LOCAL_HEADER.unpack(header)[-2:]
        offsets[index] = info.header_offset + _LOCAL_HEADER.size + name_bytes + extra_bytes
        free_from = offsets[index] + info.compress_size
    return offsets


def _check_not_nested(file: BinaryIO, member: ArchiveMember) -> None:
    """Look at the first bytes of a member; one that cannot be unpacked is reported later."""
    head = b""
    try:
        for chunk in _unpacked(file, member, chunk_bytes=_HEAD_BYTES):
            head += chunk
            if len(head) >= _HEAD_BYTES:
                break
    except MediaError:
        pass
    if archive_name(head) is not None:
        raise _unsafe(member.name, "is an archive within the archive")


# -- the data


def _unpacked(
    file: BinaryIO, member: ArchiveMember, *, chunk_bytes: int = _CHUNK_BYTES
) -> Iterator[bytes]:
    """The content of a member in pieces of at most `chunk_bytes`. Raises MediaError 400."""
    unpacker = _unpacker(member.method, chunk_bytes)
    file.seek(member.data_offset)
    left_bytes = member.compressed_bytes
    try:
        while left_bytes > 0 and not unpacker.eof:
            data = file.read(min(chunk_bytes, left_bytes))
            if not data:
                break
            left_bytes -= len(data)
            yield from unpacker.feed(data)
    except (zlib.error, ValueError, EOFError) as error:
        raise _damaged_member() from error
    except OSError as error:
        # bz2 reports damaged data as an OSError without a number; a real one has its number.
        if error.errno is not None:
            raise
        raise _damaged_member() from error


def _unpacker(method: int, chunk_bytes: int) -> _Decompressor:
    if method == zipfile.ZIP_DEFLATED:
        return _Inflater(chunk_bytes)
    if method == zipfile.ZIP_BZIP2:
        return _Bunzipper(chunk_bytes)
    return _Copier()


class _Copier:
    """Passes stored data through."""

    eof = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        yield data


class _Inflater:
    """Inflates in bounded pieces, so that a bomb meets the limit before it fills the memory."""

    def __init__(self, chunk_bytes: int) -> None:
        self._chunk_bytes = chunk_bytes
        self._inner = zlib.decompressobj(-zlib.MAX_WBITS)

    @property
    def eof(self) -> bool:
        return self._inner.eof

    def feed(self, data: bytes) -> Iterator[bytes]:
        # A full chunk may leave some behind in zlib, also when all input is taken.
        is_full = False
        while (data or is_full) and not self.eof:
            chunk = self._inner.decompress(data, self._chunk_bytes)
            is_full = len(chunk) == self._chunk_bytes
            data = self._inner.unconsumed_tail
            yield chunk


class _Bunzipper:
    """The same for bzip2."""

    def __init__(self, chunk_bytes: int) -> None:
        self._chunk_bytes = chunk_bytes
        self._inner = bz2.BZ2Decompressor()

    @property
    def eof(self) -> bool:
        return self._inner.eof

    def feed(self, data: bytes) -> Iterator[bytes]:
        yield self._inner.decompress(data, self._chunk_bytes)
        while not self.eof and not self._inner.needs_input:
            yield self._inner.decompress(b"", self._chunk_bytes)


# -- refusals


def _unsafe(name: str, reason: str) -> MediaError:
    # The name comes from a stranger: control characters and the like are shown escaped.
    shown = name.encode("unicode_escape").decode("ascii")[:200]
    return refused("unsafe_archive", f"The archive is refused: the file '{shown}' in it {reason}.")


def _too_many(limits: MediaLimits) -> MediaError:
    return refused(
        "too_many_files", f"The archive has more than {limits.max_archive_files} files, the limit."
    )


def _damaged_archive() -> MediaError:
    return corrupt_file("The zip archive is damaged or incomplete.")


def _damaged_member() -> MediaError:
    return corrupt_file("The file is damaged inside the archive: it cannot be unpacked.")
