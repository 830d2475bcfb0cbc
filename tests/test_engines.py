"""The embedded PostgreSQL and Redis: what they allow, what they keep, what they survive."""

import os
import signal
import stat
import tempfile
from pathlib import Path

import dj_database_url
import psycopg
import pytest
import redis
from psycopg.errors import InsufficientPrivilege, RaiseException

from odproject import engines as engines_module
from odproject.core.process import Identity
from odproject.engines import (
    EmbeddedPostgres,
    EngineError,
    Engines,
    choose_identity,
    running_engines,
    socket_folder,
    wait_until,
)

LEDGER = """
    CREATE TABLE ledger (id bigserial PRIMARY KEY, amount bigint NOT NULL);
    CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql
        AS $$ BEGIN RAISE EXCEPTION 'append only'; END $$;
    CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON ledger
        FOR EACH ROW EXECUTE FUNCTION refuse();
"""


@pytest.fixture(scope="module")
def own_engines(tmp_path_factory):
    with running_engines(tmp_path_factory.mktemp("own"), fsync=False) as running:
        yield running


@pytest.fixture(scope="module")
def ledger(own_engines: Engines) -> Engines:
    with psycopg.connect(own_engines.owner_url) as owner:
        owner.execute(LEDGER)
    return own_engines


def _postmaster_pid(data_dir: Path) -> int:
    return int((data_dir / "postgres" / "postmaster.pid").read_text().split()[0])


def test_application_reads_and_writes_rows_of_tables_it_does_not_own(ledger):
    with psycopg.connect(ledger.database_url) as application:
        row = application.execute(
            "INSERT INTO ledger (amount) VALUES (5) RETURNING amount, current_user"
        ).fetchone()
    assert row == (5, "od_app")


@pytest.mark.parametrize(
    "statement",
    [
        "ALTER TABLE ledger DISABLE TRIGGER append_only",
        "DROP TRIGGER append_only ON ledger",
        "DROP TABLE ledger",
        "TRUNCATE ledger",
        "CREATE OR REPLACE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql "
        "AS $$ BEGIN RETURN NEW; END $$",
        "SET session_replication_role = replica",
        "SET ROLE od_owner",
        "CREATE TABLE another (id int)",
    ],
)
def test_application_cannot_get_round_a_trigger(ledger, statement):
    with psycopg.connect(ledger.database_url, autocommit=True) as application:
        with pytest.raises(InsufficientPrivilege):
            application.execute(statement)
        application.execute("INSERT INTO ledger (amount) VALUES (7)")
        with pytest.raises(RaiseException, match="append only"):
            application.execute("UPDATE ledger SET amount = 0")


def test_databases_made_later_open_their_tables_to_the_application_too(own_engines):
    with psycopg.connect(own_engines.owner_url, autocommit=True) as owner:
        owner.execute("CREATE DATABASE another")
    with psycopg.connect(own_engines.owner_url, dbname="another") as owner:
        owner.execute("CREATE TABLE thing (id int)")
    with psycopg.connect(own_engines.database_url, dbname="another") as application:
        assert application.execute("SELECT count(*) FROM thing").fetchone() == (0,)


def test_engines_listen_on_private_unix_sockets_only(own_engines):
    with psycopg.connect(own_engines.superuser_url) as connection:
        assert connection.execute("SHOW listen_addresses").fetchone() == ("",)
        folder = Path(connection.info.host)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    with redis.Redis.from_url(own_engines.redis_url) as client:
        assert client.config_get("port") == {"port": "0"}
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
        assert client.config_get("appendonly") == {"appendonly": "yes"}


def test_text_is_utf8_and_sorts_alike_on_every_machine(own_engines):
    with psycopg.connect(own_engines.database_url) as connection:
        row = connection.execute(
            "SELECT pg_encoding_to_char(encoding), datlocprovider, datlocale, lower('ÄÉ') "
            "FROM pg_database WHERE datname = current_database()"
        ).fetchone()
    assert row == ("UTF8", "b", "C.UTF-8", "äé")


def test_django_reads_the_url_as_it_is_meant(own_engines):
    parsed = dj_database_url.parse(own_engines.database_url)
    with psycopg.connect(own_engines.database_url) as connection:
        assert parsed["HOST"] == connection.info.host
    assert (parsed["USER"], parsed["NAME"], parsed["PORT"]) == ("od_app", "odproject", 5432)


def test_killed_engines_start_again_over_the_same_folder_with_everything_kept(tmp_path):
    with running_engines(tmp_path) as first:
        with psycopg.connect(first.owner_url) as owner:
            owner.execute("CREATE TABLE kept (id int)")
            owner.execute("INSERT INTO kept VALUES (42)")
        with redis.Redis.from_url(first.redis_url) as client:
            client.set("kept", "yes")
            redis_pid = client.info("server")["process_id"]
        os.kill(_postmaster_pid(tmp_path), signal.SIGKILL)
        os.kill(redis_pid, signal.SIGKILL)
    assert (tmp_path / "postgres" / "postmaster.pid").exists()
    with running_engines(tmp_path) as second:
        with psycopg.connect(second.database_url) as application:
            assert application.execute("SELECT id FROM kept").fetchall() == [(42,)]
        with redis.Redis.from_url(second.redis_url) as client:
            assert client.get("kept") == b"yes"


def test_lock_file_that_names_a_stranger_does_not_prevent_the_start(tmp_path):
    with running_engines(tmp_path, fsync=False):
        lock_file = tmp_path / "postgres" / "postmaster.pid"
        text = lock_file.read_text()
    # After a restart of the machine another process may carry the old number.
    lock_file.write_text(text.replace(text.split()[0], str(os.getpid()), 1))
    with running_engines(tmp_path, fsync=False) as engines:
        psycopg.connect(engines.database_url).close()


def test_server_orphaned_in_the_folder_is_ended_before_the_next_start(tmp_path):
    postgres = EmbeddedPostgres(tmp_path, fsync=False)
    with running_engines(tmp_path, fsync=False) as engines:
        orphan_pid = _postmaster_pid(tmp_path)
        with psycopg.connect(engines.superuser_url):
            postgres.before_start()
        assert not (tmp_path / "postgres" / "postmaster.pid").exists()
        assert wait_until(lambda: not _runs(orphan_pid), timeout_seconds=10)


def _runs(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


def test_cluster_that_was_never_finished_is_made_anew(tmp_path):
    unfinished = tmp_path / "postgres.new.abc"
    unfinished.mkdir()
    (unfinished / "PG_VERSION").write_text("18")
    EmbeddedPostgres(tmp_path, fsync=False).prepare()
    assert not unfinished.exists()
    assert (tmp_path / "postgres" / "PG_VERSION").read_text().strip() == "18"


def test_cluster_of_another_release_is_refused_in_one_sentence(tmp_path):
    cluster = tmp_path / "postgres"
    cluster.mkdir()
    (cluster / "PG_VERSION").write_text("16\n")
    with pytest.raises(EngineError, match=r"was made by PostgreSQL 16; this release runs .* 18\."):
        EmbeddedPostgres(tmp_path).prepare()
    assert [path.name for path in cluster.iterdir()] == ["PG_VERSION"]


def test_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "postgres").mkdir()
    (tmp_path / "postgres" / "letter.txt").write_text("dear")
    with pytest.raises(EngineError, match="holds something that is not a database"):
        EmbeddedPostgres(tmp_path).prepare()
    assert (tmp_path / "postgres" / "letter.txt").read_text() == "dear"


def test_long_path_with_spaces_and_accents_still_has_a_socket(tmp_path):
    deep = tmp_path / ("with spaces and äccents " + "x" * 80)
    with running_engines(deep, fsync=False) as engines:
        with psycopg.connect(engines.database_url) as connection:
            folder = Path(connection.info.host)
        with redis.Redis.from_url(engines.redis_url) as client:
            assert client.ping()
    assert len(os.fsencode(folder / ".s.PGSQL.5432")) < 100
    assert folder.parent == socket_folder(deep)
    assert stat.S_IMODE(folder.parent.stat().st_mode) == 0o700


def test_folder_of_sockets_that_is_a_link_is_refused(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    (data_dir / "run").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(EngineError, match="must be a folder of the user"):
        socket_folder(data_dir)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has to become somebody else")
class TestAsRootWithoutUserNamespaces:
    @pytest.fixture(autouse=True)
    def no_namespaces(self, monkeypatch):
        works_as = engines_module._works_as
        monkeypatch.setattr(
            engines_module,
            "_works_as",
            lambda identity, *rest: identity.kind != "namespace" and works_as(identity, *rest),
        )

    def test_postgres_runs_as_nobody_and_can_return_to_root(self, monkeypatch):
        with tempfile.TemporaryDirectory() as name:
            data_dir = Path(name)
            try:
                with running_engines(data_dir, fsync=False) as engines:
                    psycopg.connect(engines.database_url).close()
                    assert (data_dir / "postgres").stat().st_uid != 0
            except EngineError as error:
                pytest.skip(f"nobody cannot reach the programs here: {error}")
            monkeypatch.undo()
            with running_engines(data_dir, fsync=False) as engines:
                psycopg.connect(engines.database_url).close()
                namespaces_work = (data_dir / "postgres").stat().st_uid == 0
        if not namespaces_work:
            pytest.skip("user namespaces are not permitted here")

    def test_unreachable_folder_is_told_in_one_sentence(self, tmp_path):
        closed = tmp_path / "closed"
        (closed / "data").mkdir(parents=True)
        closed.chmod(0o700)
        with pytest.raises(EngineError, match="start the service as an ordinary user, or set"):
            choose_identity(Path("/bin/true"), [closed / "data"])


def test_ordinary_user_stays_who_it_is(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 65534)
    assert choose_identity(Path("/bin/true"), []) == Identity("same")
