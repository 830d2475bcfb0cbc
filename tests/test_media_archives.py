"""A zip archive is checked as a whole before anything is unpacked, and again while unpacking."""

import errno
import io
import stat
import struct
import zipfile
import zlib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from datasets.media.archive import extract_member, is_ignored_name, open_archive
from datasets.media.errors import MediaError
from datasets.media.limits import MediaLimits
from tests.mediafiles import image_bytes, write_raw_zip, write_zip

quick = settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow])


def refusal(path: Path, **limits) -> tuple[int, str]:
    with pytest.raises(MediaError) as caught:
        open_archive(path, limits=MediaLimits(**limits))
    return caught.value.status, caught.value.code


def names(path: Path) -> list[str]:
    return [member.name for member in open_archive(path)]


def unix(name: str, mode: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.create_system = 3
    info.external_attr = mode << 16
    return info


def test_members_are_listed_in_stored_order_and_unpacked_byte_by_byte(tmp_path):
    contents = [("b.jpg", image_bytes()), ("folder/a.png", image_bytes("PNG")), ("c.txt", b"")]
    path = write_zip(tmp_path / "x.zip", contents)
    members = open_archive(path)
    assert [(m.name, m.size_bytes) for m in members] == [(n, len(c)) for n, c in contents]
    for member, (_, content) in zip(members, contents, strict=True):
        out = tmp_path / str(member.index)
        assert extract_member(path, member, out) == len(content)
        assert out.read_bytes() == content


def test_open_file_serves_for_unpacking_as_well(tmp_path):
    path = write_zip(tmp_path / "x.zip", [("a", b"first"), ("b", b"second")])
    with path.open("rb") as file:
        for member in reversed(open_archive(path)):
            extract_member(file, member, tmp_path / member.name)
    assert (tmp_path / "a").read_bytes() == b"first"
    assert (tmp_path / "b").read_bytes() == b"second"


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2])
def test_each_method_of_packing_is_unpacked(tmp_path, method):
    content = image_bytes() * 40
    path = write_zip(tmp_path / "x.zip", [("a.jpg", content)], method=method)
    assert extract_member(path, open_archive(path)[0], tmp_path / "out") == len(content)
    assert (tmp_path / "out").read_bytes() == content


def test_archive_with_large_file_records_is_read(tmp_path):
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as archive, archive.open("a", "w", force_zip64=True) as out:
        out.write(b"content")
    extract_member(path, open_archive(path)[0], tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == b"content"


def test_archive_with_a_comment_is_read(tmp_path):
    path = write_zip(tmp_path / "x.zip", [("a", b"content")])
    with zipfile.ZipFile(path, "a") as archive:
        archive.comment = b"made by a camera"
    assert names(path) == ["a"]


def test_members_with_comments_are_read(tmp_path):
    infos = [zipfile.ZipInfo("a"), zipfile.ZipInfo("b")]
    for info in infos:
        info.comment = b"taken from a bridge"
    assert names(write_zip(tmp_path / "x.zip", [(info, b"x") for info in infos])) == ["a", "b"]


# -- what is ignored, what is accepted


@pytest.mark.parametrize(
    "name",
    ["__MACOSX/a/._b.jpg", "a/.DS_Store", "Thumbs.db", "x/thumbs.DB", "folder/", "._photo.jpg"],
)
def test_what_desktops_leave_behind_is_ignored(name):
    assert is_ignored_name(name)


@pytest.mark.parametrize("name", ["a.jpg", "MACOSX/a.jpg", "DS_Store", "thumbs.db.jpg", ".hidden"])
def test_other_names_are_not_ignored(name):
    assert not is_ignored_name(name)


def test_ignored_members_are_not_listed(tmp_path):
    members = [("__MACOSX/._a.jpg", b"x"), ("d/", b""), ("d/.DS_Store", b"x"), ("d/a.jpg", b"x")]
    assert names(write_zip(tmp_path / "x.zip", members)) == ["d/a.jpg"]


def test_duplicate_names_are_both_kept(tmp_path):
    with pytest.warns(UserWarning, match="Duplicate name"):
        path = write_zip(tmp_path / "x.zip", [("a.jpg", b"first"), ("a.jpg", b"second")])
    first, second = open_archive(path)
    extract_member(path, first, tmp_path / "1")
    extract_member(path, second, tmp_path / "2")
    assert (tmp_path / "1").read_bytes() == b"first"
    assert (tmp_path / "2").read_bytes() == b"second"


@pytest.mark.parametrize(
    "name",
    ["猫.jpg", "\u202egpj.exe", "a\u0301.jpg", "line\nbreak.jpg", "😀/😀.png", "..jpg", "a..b"],
)
def test_unusual_names_are_accepted_as_they_are(tmp_path, name):
    assert names(write_zip(tmp_path / "x.zip", [(name, b"x")])) == [name]


def test_name_in_the_old_code_page_is_accepted(tmp_path):
    assert names(write_raw_zip(tmp_path / "x.zip", [(b"M\x81ll.jpg", b"x")])) == ["Müll.jpg"]


@pytest.mark.parametrize("beyond", range(20, 28))
def test_member_whose_last_bytes_are_still_packed_when_all_is_read_comes_out_whole(
    tmp_path, beyond
):
    """A black bitmap: zlib has taken all input, and holds more than one chunk of output."""
    content = bytes(256 * 1024 + beyond)
    path = write_zip(tmp_path / "a.zip", [("black.bmp", content)])
    (member,) = open_archive(path)
    extract_member(path, member, tmp_path / "black.bmp")
    assert (tmp_path / "black.bmp").read_bytes() == content


def test_damaged_member_is_reported_alone_and_leaves_nothing_behind(tmp_path):
    path = write_zip(
        tmp_path / "x.zip", [("good", b"good"), ("bad", b"badly")], method=zipfile.ZIP_STORED
    )
    path.write_bytes(path.read_bytes().replace(b"badly", b"BADLY"))
    good, bad = open_archive(path)
    with pytest.raises(MediaError) as caught:
        extract_member(path, bad, tmp_path / "bad")
    assert (caught.value.status, caught.value.code) == (400, "corrupt_file")
    assert not (tmp_path / "bad").exists()
    assert extract_member(path, good, tmp_path / "good") == 4


def test_member_whose_bzip2_data_are_damaged_is_reported(tmp_path):
    path = write_zip(tmp_path / "x.zip", [("a.bmp", bytes(9_000))], method=zipfile.ZIP_BZIP2)
    (member,) = open_archive(path)
    content = bytearray(path.read_bytes())
    content[member.data_offset + 12] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(MediaError) as caught:
        extract_member(path, member, tmp_path / "out")
    assert (caught.value.status, caught.value.code) == (400, "corrupt_file")
    assert not (tmp_path / "out").exists()


def test_disk_that_cannot_be_read_is_no_damage_of_the_file(tmp_path):
    path = write_zip(tmp_path / "x.zip", [("a.bmp", bytes(9_000))], method=zipfile.ZIP_BZIP2)
    (member,) = open_archive(path)

    class BrokenDisk(io.BytesIO):
        def read(self, size=-1, /):
            raise OSError(errno.EIO, "Input/output error")

    with pytest.raises(OSError, match="Input/output") as caught:
        extract_member(BrokenDisk(path.read_bytes()), member, tmp_path / "out")
    assert caught.value.errno == errno.EIO
    assert not (tmp_path / "out").exists()


def test_existing_file_is_never_overwritten(tmp_path):
    path = write_zip(tmp_path / "x.zip", [("a", b"new")])
    (tmp_path / "a").write_bytes(b"old")
    with pytest.raises(FileExistsError):
        extract_member(path, open_archive(path)[0], tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == b"old"


# -- unsafe archives are refused as a whole


@pytest.mark.parametrize(
    "name",
    ["../x.jpg", "a/../../x.jpg", "..", "/etc/x.jpg", "C:\\x.jpg", "c:x.jpg", "a\\b.jpg", "..\\x"],
)
def test_name_that_leads_out_of_the_archive_is_refused(tmp_path, name):
    path = write_zip(tmp_path / "x.zip", [("good.jpg", image_bytes()), (name, b"x")])
    assert refusal(path) == (422, "unsafe_archive")


def test_name_with_a_hidden_end_is_refused(tmp_path):
    path = write_raw_zip(tmp_path / "x.zip", [(b"a.jpg\0.exe", b"x")])
    assert refusal(path) == (422, "unsafe_archive")


def test_refusal_names_the_member_escaped(tmp_path):
    path = write_zip(tmp_path / "x.zip", [("../a\n\u202e.jpg", b"x")])
    with pytest.raises(MediaError) as caught:
        open_archive(path)
    assert r"'../a\n\u202e.jpg' in it points out of the archive" in caught.value.detail


@pytest.mark.parametrize(
    "kind", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK]
)
def test_links_and_devices_are_refused(tmp_path, kind):
    path = write_zip(tmp_path / "x.zip", [(unix("a.jpg", kind | 0o777), b"/etc/passwd")])
    assert refusal(path) == (422, "unsafe_archive")


def test_link_among_the_ignored_members_is_refused_as_well(tmp_path):
    link = unix("__MACOSX/a", stat.S_IFLNK | 0o777)
    path = write_zip(tmp_path / "x.zip", [("a.jpg", b"x"), (link, b"/etc/passwd")])
    assert refusal(path) == (422, "unsafe_archive")


def test_ordinary_unix_files_and_folders_are_accepted(tmp_path):
    folder, file = unix("d/", stat.S_IFDIR | 0o755), unix("d/a.jpg", stat.S_IFREG | 0o644)
    assert names(write_zip(tmp_path / "x.zip", [(folder, b""), (file, b"x")])) == ["d/a.jpg"]


@pytest.mark.parametrize("flag", [0x0001, 0x0041, 0x2001])
def test_encrypted_member_is_refused(tmp_path, flag):
    path = write_raw_zip(tmp_path / "x.zip", [(b"a.jpg", b"x" * 20)], flags=flag)
    assert refusal(path) == (422, "unsafe_archive")


@pytest.mark.parametrize("method", [zipfile.ZIP_LZMA, 9, 99])
def test_unsupported_method_of_packing_is_refused(tmp_path, method):
    path = write_raw_zip(tmp_path / "x.zip", [(b"a.jpg", b"x" * 20)], method=method)
    assert refusal(path) == (422, "unsafe_archive")


def inner_zip() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.jpg", b"x")
    return buffer.getvalue()


@pytest.mark.parametrize("name", ["inner.zip", "inner.TAR", "inner.rar", "photos.tar.gz", "a.7z"])
def test_archive_in_the_archive_is_refused_by_its_name(tmp_path, name):
    path = write_zip(tmp_path / "x.zip", [("a.jpg", b"x"), (name, b"nothing of the kind")])
    assert refusal(path) == (422, "unsafe_archive")


@pytest.mark.parametrize(
    "content",
    [inner_zip(), b"Rar!\x1a\x07\x01\x00" + bytes(9), b"\x1f\x8b\x08" + bytes(9),
     bytes(257) + b"ustar\x0000" + bytes(248)],
    ids=["zip", "rar", "gzip", "tar"],
)  # fmt: skip
def test_archive_in_the_archive_is_refused_by_its_content(tmp_path, content):
    path = write_zip(tmp_path / "x.zip", [("a.jpg", image_bytes()), ("photo.jpg", content)])
    assert refusal(path) == (422, "unsafe_archive")


def test_archive_of_a_hundred_thousand_entries_is_refused(tmp_path):
    members = ((b"%d" % i, b"") for i in range(100_000))
    path = write_raw_zip(tmp_path / "x.zip", members)
    assert refusal(path) == (422, "too_many_files")


def test_entries_are_counted_and_not_believed(tmp_path, monkeypatch):
    members = ((b"%d" % i, b"") for i in range(100_000))
    path = write_raw_zip(tmp_path / "x.zip", members, declared_entries=1)

    def parsed(*args, **kwargs):
        raise AssertionError("The directory was read as a whole.")

    monkeypatch.setattr("datasets.media.archive.zipfile.ZipFile", parsed)
    assert refusal(path) == (422, "too_many_files")


def test_directory_with_another_number_of_entries_than_it_declares_is_damaged(tmp_path):
    members = [(b"a", b"x"), (b"b", b"x")]
    path = write_raw_zip(tmp_path / "x.zip", members, declared_entries=1)
    assert refusal(path) == (400, "corrupt_file")


def test_limit_of_files_is_inclusive_and_ignored_ones_do_not_count(tmp_path):
    members = [("a", b"1"), ("b", b"2"), (".DS_Store", b"3")]
    path = write_zip(tmp_path / "x.zip", members)
    assert len(open_archive(path, limits=MediaLimits(max_archive_files=2))) == 2
    assert refusal(path, max_archive_files=1) == (422, "too_many_files")


def test_bomb_that_declares_ten_gigabytes_is_refused(tmp_path):
    packed = zlib.compress(bytes(1_000_000))[2:-4]
    members = [(b"%d.bmp" % i, packed) for i in range(10)]
    path = write_raw_zip(
        tmp_path / "x.zip", members, method=zipfile.ZIP_DEFLATED, declared_bytes=1024**3
    )
    assert refusal(path) == (422, "unsafe_archive")
    wide = {"max_archive_ratio": 10**9}
    assert refusal(path, **wide) == (422, "unsafe_archive")
    assert len(open_archive(path, limits=MediaLimits(**wide, max_archive_uncompressed_bytes=2**40)))


def test_member_that_unpacks_to_far_more_than_its_size_is_refused(tmp_path):
    path = write_zip(tmp_path / "x.zip", [("a.bmp", bytes(1_000_000))])
    assert names(path) == ["a.bmp"]
    assert refusal(path, archive_ratio_floor_bytes=999_999) == (422, "unsafe_archive")
    assert refusal(path, max_member_bytes=999_999) == (422, "unsafe_archive")
    assert refusal(path, max_archive_uncompressed_bytes=999_999) == (422, "unsafe_archive")


def test_member_that_unpacks_to_more_than_it_declares_is_stopped(tmp_path):
    packed = zlib.compress(bytes(50_000_000))[2:-4]
    path = write_raw_zip(
        tmp_path / "x.zip", [(b"a.bmp", packed)], method=zipfile.ZIP_DEFLATED, declared_bytes=10
    )
    member = open_archive(path)[0]
    with pytest.raises(MediaError) as caught:
        extract_member(path, member, tmp_path / "out")
    assert (caught.value.status, caught.value.code) == (422, "unsafe_archive")
    assert not (tmp_path / "out").exists()


def test_members_that_share_their_data_are_refused(tmp_path):
    members = [(b"a.jpg", b"x" * 100), (b"b.jpg", b"x" * 100)]
    assert len(open_archive(write_raw_zip(tmp_path / "fair.zip", members))) == 2
    path = write_raw_zip(tmp_path / "x.zip", members, overlapping=True)
    assert refusal(path) == (422, "unsafe_archive")


# -- no archive


def test_cut_off_archive_is_damaged(tmp_path):
    path = write_zip(tmp_path / "x.zip", [("a.jpg", image_bytes())])
    whole = path.read_bytes()
    for kept in (30, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:kept])
        assert refusal(path) == (400, "corrupt_file")


@pytest.mark.parametrize(
    ("record", "place", "value"),
    [
        (b"PK\x01\x02", 6, b"\xff\0"),
        (b"PK\x05\x06", 12, b"\0\0\0\x80"),
        (b"PK\x03\x04", 0, b"XX"),
    ],
    ids=["entry of a version to come", "directory longer than the file", "no member where it says"],
)
def test_archive_whose_records_contradict_each_other_is_damaged(tmp_path, record, place, value):
    path = write_zip(tmp_path / "x.zip", [("a.jpg", b"x"), ("b.jpg", b"x")])
    content = bytearray(path.read_bytes())
    start = content.rindex(record) + place
    content[start : start + len(value)] = value
    path.write_bytes(content)
    assert refusal(path) == (400, "corrupt_file")


@pytest.mark.parametrize("content", [inner_zip()[:4] + b"nothing else", b"PK\x05\x06"])
def test_what_only_begins_like_an_archive_is_damaged(tmp_path, content):
    (tmp_path / "x.zip").write_bytes(content)
    assert refusal(tmp_path / "x.zip") == (400, "corrupt_file")


def test_archive_without_a_file_is_refused(tmp_path):
    assert refusal(write_zip(tmp_path / "x.zip", [])) == (422, "empty_archive")
    assert refusal(write_zip(tmp_path / "y.zip", [("d/", b"")])) == (422, "empty_archive")


def test_other_archives_images_and_empty_files_are_no_zip(tmp_path):
    path = tmp_path / "x.zip"
    for content, expected in [
        (b"", (400, "empty_file")),
        (b"Rar!\x1a\x07\x01\x00", (415, "unsupported_media_type")),
        (image_bytes(), (415, "unsupported_media_type")),
    ]:
        path.write_bytes(content)
        assert refusal(path) == expected


# -- properties

plain_names = st.text(st.characters(exclude_characters="/\\\0:"), min_size=1, max_size=20).filter(
    lambda name: name != ".." and not is_ignored_name(name) and "." not in name[1:]
)


def packable(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


@quick
@given(members=st.dictionaries(plain_names.filter(packable), st.binary(max_size=200), min_size=1))
def test_what_was_packed_is_what_is_unpacked(tmp_path_factory, members):
    # A leading byte that begins no archive keeps random contents from being refused as nested.
    contents = [(name, b"\xff" + content) for name, content in members.items()]
    folder = tmp_path_factory.mktemp("packed")
    path = write_zip(folder / "x.zip", contents)
    found = open_archive(path)
    assert [member.name for member in found] == [name for name, _ in contents]
    for member, (_, content) in zip(found, contents, strict=True):
        out = folder / str(member.index)
        assert extract_member(path, member, out) == len(content)
        assert out.read_bytes() == content


@quick
@given(
    before=st.lists(st.sampled_from(["a", "b", ".", "..."]), max_size=3),
    after=st.lists(st.sampled_from(["a", "b", "..", "x.jpg"]), max_size=3),
)
def test_no_way_up_is_ever_accepted(tmp_path_factory, before, after):
    name = "/".join([*before, "..", *after])
    path = write_zip(tmp_path_factory.mktemp("up") / "x.zip", [(name, b"x")])
    assert refusal(path) == (422, "unsafe_archive")


@settings(quick, max_examples=150)
@given(
    method=st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2]),
    changes=st.lists(st.tuples(st.floats(0, 0.9999), st.integers(0, 255)), max_size=6),
    kept=st.just(1.0) | st.floats(0, 1),
)
def test_damaged_archive_is_read_or_refused_and_nothing_else(
    tmp_path_factory, method, changes, kept
):
    folder = tmp_path_factory.mktemp("damaged")
    contents = [
        ("a.txt", b"hello " * 20),
        ("d/b.txt", b""),
        ("c.txt", struct.pack("<9L", *range(9))),
    ]
    path = write_zip(folder / "x.zip", contents, method=method)
    content = bytearray(path.read_bytes())
    for place, value in changes:
        content[int(place * len(content))] = value
    path.write_bytes(content[: int(kept * len(content))])
    try:
        members = open_archive(path)
    except MediaError as error:
        assert error.status in (400, 415, 422)
        return
    for member in members:
        out = folder / f"out{member.index}"
        try:
            assert extract_member(path, member, out) == member.size_bytes == out.stat().st_size
        except MediaError as error:
            assert error.status in (400, 422)
            assert not out.exists()
