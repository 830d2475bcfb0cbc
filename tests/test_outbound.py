"""Where a POST to a stranger's address may go, and how long it may take."""

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from odproject.core import outbound
from odproject.core.outbound import (
    NotDeliveredError,
    UnfitUrlError,
    destination_of,
    is_public,
    post,
    require_public,
)

PUBLIC = "8.8.8.8"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


def told(host_names: dict[str, list[str]], monkeypatch) -> list[str]:
    """Have names lead to these addresses, in turn; the names that were looked up."""
    asked: list[str] = []

    def getaddrinfo(host, port, **options):
        name = host.decode()
        asked.append(name)
        if name not in host_names:
            raise socket.gaierror(socket.EAI_NONAME, "unknown")
        return [(None, None, None, "", (address, port)) for address in host_names[name]]

    monkeypatch.setattr(outbound.socket, "getaddrinfo", getaddrinfo)
    return asked


@contextlib.contextmanager
def listening(serve: Callable[[socket.socket], None]) -> Iterator[int]:
    """A server that does `serve` with each connection; its port. Its end is waited for."""
    listener = socket.create_server(("127.0.0.1", 0))

    def run() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with connection, contextlib.suppress(OSError):
                    serve(connection)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def request_of(connection: socket.socket) -> bytes:
    """Head and body, whose length is told before it."""
    read = b""
    while b"\r\n\r\n" not in read:
        read += connection.recv(4096)
    head, _, body = read.partition(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].split()[0])
    while len(body) < length:
        body += connection.recv(4096)
    return head + b"\r\n\r\n" + body


def answering(answer: bytes) -> Callable[[socket.socket], None]:
    def serve(connection: socket.socket) -> None:
        request_of(connection)
        connection.sendall(answer)

    return serve


def send(url: str, *, anywhere: bool = True, seconds: float = 20, **options) -> int:
    return post(url, body=b"{}", headers={}, anywhere=anywhere, seconds=seconds, **options)


class TestUrls:
    @pytest.mark.parametrize(
        ("url", "port", "target"),
        [
            ("https://example.org", 443, "/"),
            ("https://EXAMPLE.org/Hook?b=1&a=%20", 443, "/Hook?b=1&a=%20"),
            ("https://example.org:443/", 443, "/"),
            ("https://a_b.example.org:1025?x", 1025, "/?x"),
            ("https://8.8.8.8:65535/", 65535, "/"),
            ("https://[2606:4700:4700::1111]:8443/a", 8443, "/a"),
        ],
    )
    def test_host_port_and_path_are_taken_apart(self, url, port, target):
        destination = destination_of(url, anywhere=False)
        assert (destination.port, destination.target) == (port, target)
        assert destination.is_encrypted

    @pytest.mark.parametrize(
        "url",
        [
            "",
            "example.org",
            "//example.org/",
            "ftp://example.org/",
            "file:///etc/passwd",
            "gopher://example.org/",
            "http://example.org/",
            "https:///path",
            "https://",
            "https://user@example.org/",
            "https://user:word@example.org/",
            "https://8.8.8.8\\@127.0.0.1/",
            "https://example.org#@127.0.0.1/",
            "https://example.org/a#b",
            "https://example.org:80/",
            "https://example.org:22/",
            "https://example.org:0/",
            "https://example.org:1024/",
            "https://example.org:65536/",
            "https://example.org:-1/",
            "https://example.org:a/",
            "https://ex ample.org/",
            "https://example.org/a b",
            "https://example.org/\r\nX: 1",
            "https://example.org/\t",
            "https://exämple.org/",
            "https://example.org/\N{SNOWMAN}",
            "https://a..b/",
            "https://.example.org/",
            "https://-a.example.org/",
            "https://" + "a" * 64 + ".org/",
            "https://" + "a." * 127 + "org/",
            "https://example.org/" + "a" * 500,
            "https://[::1/",
            "https://[fe80::1%25eth0]/",
            "https://[fe80::1%eth0]/",
            "https://[v1.fe80]/",
            "https://[127.0.0.1]/",
            "https://%31%32%37.0.0.1/",
        ],
    )
    def test_address_that_says_anything_else_is_refused_with_its_field(self, url):
        with pytest.raises(UnfitUrlError) as refusal:
            destination_of(url, anywhere=False)
        assert refusal.value.status == 400
        assert [error.field for error in refusal.value.errors] == ["url"]

    def test_http_is_for_where_everything_is_permitted(self):
        assert destination_of("http://localhost:8000/x", anywhere=True).port == 8000
        assert not destination_of("http://localhost:8000/x", anywhere=True).is_encrypted


class TestAddresses:
    @pytest.mark.parametrize(
        "address",
        [
            "0.0.0.0",
            "0.1.2.3",
            "10.0.0.1",
            "100.64.0.1",
            "100.127.255.255",
            "127.0.0.1",
            "127.255.255.254",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.1",
            "192.0.0.170",
            "192.0.2.1",
            "192.88.99.1",
            "192.168.1.1",
            "198.18.0.1",
            "198.19.255.255",
            "198.51.100.1",
            "203.0.113.1",
            "224.0.0.1",
            "239.255.255.255",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::127.0.0.1",
            "::8.8.8.8",
            "::ffff:127.0.0.1",
            "::ffff:8.8.8.8",
            "::ffff:0:127.0.0.1",
            "64:ff9b::127.0.0.1",
            "64:ff9b::8.8.8.8",
            "64:ff9b:1::1",
            "100::1",
            "2001::1",
            "2001:0:7f00:1::",
            "2001:db8::1",
            "2002:7f00:1::",
            "2002:a00:1::1",
            "3fff::1",
            "5f00::1",
            "fc00::1",
            "fd12:3456::1",
            "fe80::1",
            "fec0::1",
            "ff02::1",
        ],
    )
    def test_address_that_is_not_of_the_public_net_is_not_sent_to(self, address, monkeypatch):
        assert not is_public(ip_address(address))
        host = f"[{address}]" if ":" in address else address
        with pytest.raises(UnfitUrlError, match="leads to no public address"):
            require_public(f"https://{host}/", anywhere=False)
        told({"example.org": [address]}, monkeypatch)
        monkeypatch.setattr(outbound, "_connected_to", lambda *_: pytest.fail("connected"))
        with pytest.raises(NotDeliveredError, match=r"^example\.org leads to no public address\.$"):
            send("https://example.org/", anywhere=False)

    @pytest.mark.parametrize(
        "address",
        ["8.8.8.8", "100.63.255.255", "172.32.0.1", "223.255.255.254", "2606:4700::1", "2a00::1"],
    )
    def test_public_address_is_one(self, address):
        assert is_public(ip_address(address))

    @pytest.mark.parametrize(
        "host",
        [
            *("127.0.0.1", "2130706433", "0x7f000001", "0177.0.0.1", "127.1", "0", "[::1]"),
            *("localhost", "a.localhost", "redis", "printer.local", "metadata.google.internal"),
        ],
    )
    def test_every_way_to_write_what_is_inside_is_refused_at_once(self, host, monkeypatch):
        with pytest.raises(UnfitUrlError, match="leads to no public address"):
            require_public(f"https://{host}/", anywhere=False)
        require_public(f"https://{host}/", anywhere=True)

    def test_no_name_is_looked_up_while_its_owner_waits(self, monkeypatch):
        asked = []

        def getaddrinfo(host, port, *, flags, **options):
            asked.append(flags)
            raise socket.gaierror(socket.EAI_NONAME, "no address")

        monkeypatch.setattr(outbound.socket, "getaddrinfo", getaddrinfo)
        require_public("https://hooks.example.org/", anywhere=False)
        assert asked == [socket.AI_NUMERICHOST]

    def test_public_address_is_used_where_a_name_leads_to_others_too(self, monkeypatch):
        told({"example.org": ["10.0.0.1", PUBLIC, "::1"]}, monkeypatch)
        tried = []

        def refuse(address, port, until):
            tried.append(str(address))
            raise ConnectionRefusedError(111, "Connection refused")

        monkeypatch.setattr(outbound, "_connected_to", refuse)
        with pytest.raises(NotDeliveredError, match=r"failed: Connection refused\.$"):
            send("https://example.org/", anywhere=False)
        assert tried == [PUBLIC]

    def test_name_that_is_unknown_sounds_like_one_of_ours(self, monkeypatch):
        told({"inside.example.org": ["10.0.0.1"]}, monkeypatch)
        sentences = []
        for name in ("inside.example.org", "nothing.example.org"):
            with pytest.raises(NotDeliveredError) as failure:
                send(f"https://{name}/", anywhere=False)
            sentences.append(str(failure.value).replace(name, "it"))
        assert sentences == ["it leads to no public address."] * 2

    def test_resolver_that_hangs_is_not_waited_for(self, monkeypatch):
        is_over = threading.Event()

        def hang(host, port, **options):
            is_over.wait()
            raise socket.gaierror(socket.EAI_AGAIN, "again")

        monkeypatch.setattr(outbound.socket, "getaddrinfo", hang)
        try:
            with pytest.raises(NotDeliveredError, match=r"within 0\.05 seconds"):
                send("https://example.org/", anywhere=False, seconds=0.05)
        finally:
            is_over.set()


class TestConnections:
    def test_connection_goes_to_the_address_that_was_judged(self, monkeypatch):
        """The name leads to this machine from the second look on; there is none."""
        turns = iter([[PUBLIC], ["127.0.0.1"]])
        looks = []

        def getaddrinfo(host, port, **options):
            looks.append(host)
            return [(None, None, None, "", (address, port)) for address in next(turns)]

        tried = []

        def refuse(self, address):
            tried.append(address)
            raise ConnectionRefusedError(111, "Connection refused")

        monkeypatch.setattr(outbound.socket, "getaddrinfo", getaddrinfo)
        monkeypatch.setattr(outbound.socket.socket, "connect", refuse)
        with pytest.raises(NotDeliveredError):
            send("https://example.org/", anywhere=False)
        assert (looks, tried) == ([b"example.org"], [(PUBLIC, 443)])

    def test_request_says_what_it_should_and_no_proxy_hears_of_it(self, monkeypatch):
        monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
        monkeypatch.setenv("all_proxy", "http://127.0.0.1:9")
        heard = []

        def serve(connection):
            heard.append(request_of(connection))
            connection.sendall(OK)

        with listening(serve) as port:
            url = f"http://127.0.0.1:{port}/a?b=c"
            headers = {"webhook-id": "msg_1"}
            assert post(url, body=b'{"x":1}', headers=headers, anywhere=True, seconds=20) == 200
        assert heard == [
            b"POST /a?b=c HTTP/1.1\r\n"
            b"Accept-Encoding: identity\r\n"
            b"Content-Length: 7\r\n"
            b"Host: 127.0.0.1:%d\r\n" % port + b"Connection: close\r\n"
            b"Accept: */*\r\n"
            b"webhook-id: msg_1\r\n\r\n"
            b'{"x":1}'
        ]

    @pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
    def test_redirection_is_an_answer_and_not_followed(self, status):
        requests = []

        def serve(connection):
            requests.append(request_of(connection))
            here = f"http://127.0.0.1:{port}/inside"
            head = f"HTTP/1.1 {status} Elsewhere\r\nLocation: {here}\r\nContent-Length: 0\r\n\r\n"
            connection.sendall(head.encode())

        with listening(serve) as port:
            assert send(f"http://127.0.0.1:{port}/") == status
        assert len(requests) == 1

    @pytest.mark.parametrize(
        ("answer", "sentence"),
        [
            (b"", "The connection failed: Remote end closed connection without response."),
            (b"SSH-2.0-OpenSSH_9.6\r\n", "What was answered is no HTTP."),
            (b"HTTP/1.1 2000 OK\r\n\r\n", "What was answered is no HTTP."),
            (b"x" * 70_000, "What was answered is no HTTP."),
        ],
    )
    def test_answer_that_is_none_is_told(self, answer, sentence):
        with listening(answering(answer)) as port, pytest.raises(NotDeliveredError) as failure:
            send(f"http://127.0.0.1:{port}/")
        assert str(failure.value) == sentence

    def test_of_a_long_answer_nothing_but_the_head_is_read(self):
        sent = []

        def serve(connection):
            request_of(connection)
            connection.sendall(b"HTTP/1.1 204 Fine\r\nContent-Length: 1000000000\r\n\r\n")
            with contextlib.suppress(OSError):
                while len(sent) < 10_000:
                    connection.sendall(b"x" * 65536)
                    sent.append(1)

        with listening(serve) as port:
            assert send(f"http://127.0.0.1:{port}/") == 204
        assert len(sent) < 1000

    def test_answer_that_trickles_is_given_up_in_time(self):
        """Each byte comes soon enough; all of them never would."""
        is_over = threading.Event()

        def serve(connection):
            request_of(connection)
            connection.sendall(b"HTTP/1.1 200 OK\r\n")
            while not is_over.wait(0.02):
                connection.sendall(b"X")

        with listening(serve) as port:
            try:
                with pytest.raises(NotDeliveredError, match=r"within 0\.3 seconds"):
                    send(f"http://127.0.0.1:{port}/", seconds=0.3)
            finally:
                is_over.set()

    def test_server_that_says_nothing_is_given_up_in_time(self):
        is_over = threading.Event()
        with listening(lambda connection: is_over.wait()) as port:
            try:
                with pytest.raises(NotDeliveredError, match=r"within 0\.2 seconds"):
                    send(f"http://127.0.0.1:{port}/", seconds=0.2)
            finally:
                is_over.set()


class TestTls:
    """Of a server with a certificate of an authority that only the test trusts."""

    @pytest.fixture
    def folder(self, tmp_path) -> Path:
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "hooks.example.org")])
        now = datetime.now(UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(1)
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(
                x509.SubjectAlternativeName([x509.DNSName("hooks.example.org")]), critical=False
            )
            .sign(key, hashes.SHA256())
        )
        pem = serialization.Encoding.PEM
        (tmp_path / "certificate.pem").write_bytes(certificate.public_bytes(pem))
        (tmp_path / "key.pem").write_bytes(
            key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        )
        return tmp_path

    @pytest.fixture
    def port(self, folder) -> Iterator[int]:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / "certificate.pem", folder / "key.pem")

        def serve(connection):
            with context.wrap_socket(connection, server_side=True) as secure:
                answering(OK)(secure)

        with listening(serve) as port:
            yield port

    @pytest.fixture
    def trusting(self, folder) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=folder / "certificate.pem")

    def test_name_of_the_certificate_is_that_of_the_address(self, port, trusting, monkeypatch):
        names = {name: ["127.0.0.1"] for name in ("hooks.example.org", "other.example.org")}
        told(names, monkeypatch)
        assert send(f"https://hooks.example.org:{port}/", tls=trusting) == 200
        with pytest.raises(NotDeliveredError, match=r"certificate of other\.example\.org is"):
            send(f"https://other.example.org:{port}/", tls=trusting)

    def test_certificate_of_an_unknown_authority_is_refused(self, port, monkeypatch):
        told({"hooks.example.org": ["127.0.0.1"]}, monkeypatch)
        with pytest.raises(NotDeliveredError, match=r"certificate of hooks\.example\.org is"):
            send(f"https://hooks.example.org:{port}/")

    def test_server_without_tls_is_told(self):
        def serve(connection):
            connection.recv(4096)
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        with listening(serve) as port, pytest.raises(NotDeliveredError, match="speak TLS"):
            send(f"https://127.0.0.1:{port}/")
