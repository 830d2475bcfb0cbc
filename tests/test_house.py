"""The house keeps its own rules: imports go one way, and the web process stays light."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.conftest import FilesWhole

REPOSITORY = Path(__file__).resolve().parent.parent


def run(*command, secret="s" * 40):
    return subprocess.run(
        [sys.executable, *command],
        cwd=REPOSITORY,
        env={**os.environ, "OD_SECRET_KEY": secret},
        capture_output=True,
        text=True,
        check=False,
    )


# A web process that runs what it is told, line by line, and answers with what that has printed.
LISTENER = """
import contextlib, io, json, sys
import odproject.asgi
for line in sys.stdin:
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(json.loads(line), {})
    print(json.dumps(printed.getvalue()), flush=True)
"""


@pytest.fixture(scope="module")
def printed() -> Iterator[Callable[[str], str]]:
    """What a web process prints when it runs some lines of Python; it is started once."""
    with subprocess.Popen(
        [sys.executable, "-c", LISTENER],
        cwd=REPOSITORY,
        env={**os.environ, "OD_SECRET_KEY": "s" * 40},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:

        def run_there(code: str) -> str:
            process.stdin.write(json.dumps(code) + "\n")
            process.stdin.flush()
            return json.loads(process.stdout.readline())

        yield run_there
        process.stdin.close()


def test_imports_go_one_way():
    checked = run("-c", "from importlinter.cli import lint_imports_command; lint_imports_command()")
    assert "0 broken" in checked.stdout, checked.stdout + checked.stderr
    assert checked.returncode == 0


@pytest.mark.parametrize(
    "process",
    ["import odproject.asgi", "import django; django.setup(); import accounts.delivery"],
    ids=["web", "webhooks"],
)
def test_process_that_detects_nothing_loads_no_network(process, monkeypatch):
    monkeypatch.setenv("DJANGO_SETTINGS_MODULE", "odproject.settings")
    loaded = run(
        "-c",
        f"import sys\n{process}\n"
        "print(sorted({'torch', 'ultralytics', 'cv2', 'av'} & set(sys.modules)))",
    )
    assert loaded.stdout.strip() == "[]", loaded.stderr


def test_server_refuses_the_default_secret():
    refused = run("-c", "import odproject.asgi", secret="")
    assert refused.returncode != 0
    assert "OD_SECRET_KEY is not set" in refused.stderr


def test_setting_that_makes_no_sense_is_named_in_one_sentence(monkeypatch):
    for name, text, wanted in [
        ("OD_MAX_IMAGE_PIXELS", "200M", "a whole number"),
        ("OD_UNIT_LEASE_SECONDS", "1m", "a number"),
        ("OD_UNIT_LEASE_SECONDS", "nan", "a number"),
        ("OD_MAX_REQUEST_BYTES", "2G", "a whole number"),
        ("OD_SECURE_COOKIES", "ture", "true or false"),
        ("OD_WEB_THREADS", "0", "at least 1"),
        ("OD_MAX_VIDEO_FRAMES", "-1", "at least 0"),
        ("OD_STALLED_READER_SECONDS", "-1", "at least 0"),
        ("OD_KEEP_DELETED_DAYS", "1000000", "at most 100000"),
    ]:
        with monkeypatch.context() as patch:
            patch.setenv(name, text)
            refused = run("manage.py", "up")
        assert refused.returncode == 1
        assert refused.stderr == f"{name} must be {wanted}, not '{text}'.\n"


@pytest.mark.parametrize(
    "address", ["nonsense", "mysql://u:geheim@h/n", "postgresql://u:geheim@h:x/n"]
)
def test_address_that_is_no_postgresql_is_told_without_its_password(monkeypatch, address):
    monkeypatch.setenv("DATABASE_URL", address)
    refused = run("manage.py", "up")
    told = "DATABASE_URL must be postgresql://user:password@host:port/name.\n"
    assert (refused.returncode, refused.stderr) == (1, told)


def test_only_an_upload_with_a_token_or_a_pass_may_be_large(printed):
    judged = printed(
        "from odproject.asgi import refuses_large_body as may\n"
        "from django.http import HttpResponse\n"
        "from odproject.core.passes import give_upload_pass\n"
        "from accounts.key_text import new_key_text\n"
        "from rest_framework_simplejwt.tokens import AccessToken, RefreshToken\n"
        "key = str(new_key_text(user_id=7))\n"
        "good, wrong = f'bearer {AccessToken()}', f'Bearer {RefreshToken()}'\n"
        "form, answer = '/admin/inference/modelversion/add/', HttpResponse()\n"
        "give_upload_pass(answer, path=form)\n"
        "cookie = answer.cookies.output(attrs=[], header='')\n"
        "other = cookie.replace('/add/', '/delete/')\n"
        "tokens = may('/upload', good, ''), may('/api/v1/datasets/1/uploads/', good, ''), \\\n"
        "    may('/api/v1/models/', good, ''), may('/upload/', '', ''), \\\n"
        "    may('/upload/', wrong, ''), may('/upload/', 'Bearer x.y.z', ''), \\\n"
        "    may('/datasets/', good, ''), may('/upload/x', good, '')\n"
        "pieces = '/api/v1/datasets/1/resumable-uploads/'\n"
        "tokens += may(f'{pieces}2/', good, ''), may(f'{pieces}2', wrong, ''), \\\n"
        "    may(pieces, good, '')\n"
        "passes = may(form, '', f'a=1; {cookie}'), may(form, good, ''), may(form, '', other), \\\n"
        "    may('/admin/', '', cookie), may('/upload', '', cookie)\n"
        "keys = may('/upload', f'bearer  {key}', ''), may('/upload', f'Bearer {key}0', ''), \\\n"
        "    may('/upload', f'Bearer {key[:-1]}g', ''), may('/datasets/', f'Bearer {key}', '')\n"
        "print(*tokens, *passes, *keys)",
    )
    given = [int(one) for one in judged.split()]
    assert given[:8] == [0, 0, 0, 401, 401, 401, 413, 413]
    assert given[8:11] == [0, 401, 413]
    assert given[11:16] == [0, 401, 401, 413, 401]
    assert given[16:] == [0, 401, 401, 413]


def test_only_a_piece_of_an_upload_counts_without_its_end(printed):
    pieces = "/api/v1/datasets/1/resumable-uploads/2/"
    requests = [
        ("PATCH", pieces),
        ("PATCH", pieces.rstrip("/")),
        ("POST", pieces),
        ("PATCH", "/api/v1/datasets/1/"),
        ("POST", "/api/v1/datasets/1/uploads/"),
    ]
    judged = printed(
        "from odproject.asgi import takes_broken_bodies\n"
        f"for method, path in {requests!r}:\n"
        "    print(takes_broken_bodies(method, path))",
    )
    assert judged.split() == ["True"] * 2 + ["False"] * 3


def test_uploads_and_whole_results_keep_to_threads_of_their_own(printed):
    requests = [
        ("POST", "/upload"),
        ("POST", "/api/v1/datasets/1/uploads/"),
        ("POST", "/api/v1/models/"),
        ("POST", "/admin/inference/modelversion/add/"),
        ("GET", "/inference/result"),
        ("GET", "/inference/content/12/"),
        ("GET", "/api/v1/jobs/12/exports/coco/"),
        ("HEAD", "/api/v1/jobs/12/annotated-zip"),
        ("GET", "/api/v1/statements/2026-11/csv/"),
        ("GET", "/api/v1/jobs/12/exports/crops/"),
        ("HEAD", "/api/v1/jobs/12/exports/crops"),
        ("GET", "/api/v1/models/"),
        ("GET", "/api/v1/statements/2026-11/"),
        ("GET", "/api/v1/jobs/12/"),
        ("GET", "/api/v1/jobs/12/frame-results/"),
        ("POST", "/inference"),
    ]
    judged = printed(
        "from odproject.asgi import slow_kind\n"
        f"for method, path in {requests!r}:\n"
        "    print(slow_kind({'method': method, 'path': path}))",
    )
    assert judged.split() == [
        *["upload"] * 4,
        *["result"] * 5,
        *["crops"] * 2,
        *["None"] * 5,
    ]


def test_large_pieces_of_uploads_keep_to_threads_of_their_own_and_small_ones_are_quick(printed):
    place = "/api/v1/datasets/1/resumable-uploads/2/"
    requests = [
        ("PATCH", place, [(b"content-length", b"65536")]),
        ("PATCH", place, []),  # chunked: nobody knows
        ("PATCH", place, [(b"content-length", b"65535")]),
        ("HEAD", place, []),
        ("PATCH", "/api/v1/datasets/1/", []),
    ]
    judged = printed(
        "from odproject.asgi import slow_kind\n"
        f"for method, path, headers in {requests!r}:\n"
        "    print(slow_kind({'method': method, 'path': path, 'headers': headers}))",
    )
    assert judged.split() == [*["piece"] * 2, *["None"] * 3]


def test_users_take_turns_there_and_requests_without_a_living_token_share_one(printed):
    asked = printed(
        "from odproject.asgi import asker\n"
        "from accounts.models import User\n"
        "from rest_framework_simplejwt.tokens import AccessToken\n"
        "from accounts.key_text import new_key_text\n"
        "seven, eight, nine = (AccessToken.for_user(User(pk=pk)) for pk in (7, 8, 9))\n"
        "ten = new_key_text(user_id=10)\n"
        "headers = [f'Bearer {seven}', f'bearer  {eight} ', f'Bearer {ten}',\n"
        "    'Bearer forged', '', str(nine)]\n"
        "for header in headers:\n"
        "    named = [(b'host', b'a'), (b'authorization', header.encode())]\n"
        "    print(repr(asker({'headers': named})))\n"
        "print(repr(asker({'headers': []})))",
    )
    assert asked.split() == ["'7'", "'8'", "'10'", "''", "''", "''", "''"]


def test_files_of_tests_stay_whole_and_those_of_the_service_go_to_two_processes():
    def scope_of(one):
        return FilesWhole._split_scope(None, one)

    of_the_service = ["tests/contract/test_tokens.py::a[x::y]", "tests/test_client_commands.py::b"]
    assert {scope_of(one) for one in of_the_service} == {"the service"}
    in_a_browser = ["tests/test_browser_page.py::a[x::y]", "tests/test_browser_admin.py::b"]
    assert len({scope_of(one) for one in in_a_browser} | {"the service"}) == 2
    for path in (
        "tests/test_prices.py",
        "tests/test_registry.py",
        "tests/faults/test_parts_that_are_killed.py",
    ):
        assert {scope_of(f"{path}::{one}") for one in ("a", "TestSome::c")} == {path}


def test_no_example_that_is_made_up_has_to_be_quick():
    assert settings().deadline is None
