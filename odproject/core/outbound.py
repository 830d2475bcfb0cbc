"""POSTs to addresses that strangers name: to public ones only, and in bounded time.

A name is looked up here, and the connection goes to the very address that was judged: a name that
leads elsewhere at a second look is not looked up a second time. Redirects are not followed, the
environment's proxies are not asked, and of an answer nothing but its head is read.
"""

import functools
import http.client
import io
import re
import socket
import ssl
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any
from urllib.parse import urlsplit

from odproject.core.errors import DomainError

MAX_URL_LENGTH = 500
CONNECT_SECONDS = 5.0  # of one address
MAX_ADDRESSES = 4  # of a name that are tried
MAX_HEAD_BYTES = 16 * 1024
FIRST_FREE_PORT = 1025

IPAddress = IPv4Address | IPv6Address

_LABEL = r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?"
_NAME = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(\.{_LABEL})*", re.ASCII)
_WRITTEN = re.compile(r"[!-\[\]-~]+", re.ASCII)  # without a backslash, which some take for a slash
_PRIVATE_DOMAINS = (".localhost", ".local", ".internal", ".home.arpa")
# Of IPv6 only this is given to hosts of the public net. Outside lie loopback, link-local,
# multicast and the addresses that wrap one of IPv4, by mapping (::ffff:0:0/96) or NAT64.
_GLOBAL_UNICAST = ip_network("2000::/3")
# The registries of special-purpose addresses of IANA. Those of Python differ from one version to
# the next.
_SPECIAL_NETWORKS = [
    ip_network(network)
    for network in (
        "0.0.0.0/8",  # this network
        "10.0.0.0/8",  # private
        "100.64.0.0/10",  # carrier NAT
        "127.0.0.0/8",  # loopback
        "169.254.0.0/16",  # link-local, where clouds tell their machines' secrets
        "172.16.0.0/12",  # private
        "192.0.0.0/24",  # protocols
        "192.0.2.0/24",  # documentation
        "192.88.99.0/24",  # relays of 6to4
        "192.168.0.0/16",  # private
        "198.18.0.0/15",  # measurements
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, broadcast
        "2001::/23",  # protocols, Teredo among them, which wraps an address of IPv4
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4, likewise
        "3fff::/20",  # documentation
    )
]


class UnfitUrlError(DomainError):
    """Nothing is sent to such an address."""

    code = "unfit_url"
    title = "The address is not one that can be sent to"

    def __init__(self, detail: str) -> None:
        super().__init__(detail, fields=("url",))


class NotDeliveredError(Exception):
    """There was no answer; the text is a sentence for who gave the address."""


@dataclass(frozen=True)
class Destination:
    """Where a URL leads. `host` is a name in lower case, or an address without brackets."""

    is_encrypted: bool
    host: str
    port: int
    target: str  # path and query

    @property
    def host_header(self) -> str:
        """What stands in the Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        is_usual = self.port == (443 if self.is_encrypted else 80)
        return host if is_usual else f"{host}:{self.port}"


def is_public(address: IPAddress) -> bool:
    """Whether an address is one of the public net, which reaches nothing of ours."""
    if isinstance(address, IPv6Address) and address not in _GLOBAL_UNICAST:
        return False
    return not any(address in network for network in _SPECIAL_NETWORKS)


def destination_of(url: str, *, anywhere: bool) -> Destination:
    """Take a URL apart; `anywhere` permits http too.

    Raises UnfitUrlError (400) for one that says anything but a host, a port, a path and a query.
    """
    if len(url) > MAX_URL_LENGTH or not _WRITTEN.fullmatch(url):
        raise UnfitUrlError(f"An address has 1 to {MAX_URL_LENGTH} printable ASCII characters.")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise UnfitUrlError("This is no URL.") from error
    if parts.scheme not in (("https", "http") if anywhere else ("https",)):
        raise UnfitUrlError("An address begins with https://.")
    if "@" in parts.netloc:
        raise UnfitUrlError("An address holds no user name and no password.")
    if "#" in url:
        raise UnfitUrlError("An address has no fragment.")
    host = parts.hostname or ""
    if not _is_host(host, is_bracketed="[" in parts.netloc):
        raise UnfitUrlError("The address names no host.")
    if port is None:
        port = 443 if parts.scheme == "https" else 80
    elif port != 443 and port < FIRST_FREE_PORT:
        raise UnfitUrlError(f"The port is 443 or from {FIRST_FREE_PORT}, not {port}.")
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Destination(parts.scheme == "https", host, port, target)


def _is_host(host: str, *, is_bracketed: bool) -> bool:
    if not is_bracketed:
        return _NAME.fullmatch(host) is not None
    try:
        return IPv6Address(host).scope_id is None
    except ValueError:
        return False


def require_public(url: str, *, anywhere: bool) -> None:
    """Judge an address that will be sent to later, by itself: no name is looked up for it.

    Raises UnfitUrlError (400) for what `destination_of` refuses, for an address that is not public,
    in whatever way it is written, and for a name that is none in public.
    """
    destination = destination_of(url, anywhere=anywhere)
    try:
        is_fit = bool(_permitted(_addresses(destination, socket.AI_NUMERICHOST), anywhere=anywhere))
    except socket.gaierror:
        is_fit = anywhere or _is_public_name(destination.host)
    if not is_fit:
        raise UnfitUrlError(_no_public_address(destination))


def post(
    url: str,
    *,
    body: bytes,
    headers: Mapping[str, str],
    anywhere: bool,
    seconds: float,
    tls: ssl.SSLContext | None = None,
) -> int:
    """POST to a public address; returns the status of the answer, whatever it is.

    `anywhere` permits http and every address. All of it, the look-up of the name included, takes
    `seconds` at most. Raises UnfitUrlError and NotDeliveredError, whose text is for the owner.
    """
    until = time.monotonic() + seconds
    destination = destination_of(url, anywhere=anywhere)
    try:
        addresses = _permitted(_looked_up(destination, seconds), anywhere=anywhere)
        if not addresses:
            raise NotDeliveredError(_no_public_address(destination))
        with _connected(addresses[:MAX_ADDRESSES], destination, until, tls) as connection:
            return _answer(connection, destination, body, headers, until)
    except TimeoutError as error:
        raise NotDeliveredError(f"There was no answer within {seconds:g} seconds.") from error
    except socket.gaierror as error:
        raise NotDeliveredError(_no_public_address(destination)) from error
    except ssl.SSLCertVerificationError as error:
        why = f"The certificate of {destination.host} is not valid: {error.verify_message}."
        raise NotDeliveredError(why) from error
    except ssl.SSLError as error:
        raise NotDeliveredError(f"{destination.host} does not speak TLS with us.") from error
    except OSError as error:
        raise NotDeliveredError(f"The connection failed: {error.strerror or error}.") from error
    except http.client.HTTPException as error:
        raise NotDeliveredError("What was answered is no HTTP.") from error


def _no_public_address(destination: Destination) -> str:
    return f"{destination.host} leads to no public address."


def _is_public_name(host: str) -> bool:
    return "." in host and not f".{host}".endswith(_PRIVATE_DOMAINS)


def _looked_up(destination: Destination, seconds: float) -> list[IPAddress]:
    """The addresses of a host; raises socket.gaierror, and TimeoutError, which no resolver does.

    A thread that waits for a resolver any longer ends with it, within half a minute or so.
    """
    found: Future[list[IPAddress]] = Future()

    def look_up() -> None:
        try:
            found.set_result(_addresses(destination))
        except OSError as error:
            found.set_exception(error)

    threading.Thread(target=look_up, name="resolver", daemon=True).start()
    return found.result(timeout=seconds)


def _addresses(destination: Destination, flags: int = 0) -> list[IPAddress]:
    """What the resolver tells of a host; raises socket.gaierror."""
    host = destination.host.encode()  # as text it would be checked as an international name
    told = socket.getaddrinfo(host, destination.port, type=socket.SOCK_STREAM, flags=flags)
    return [ip_address(entry[4][0]) for entry in told]


def _permitted(addresses: list[IPAddress], *, anywhere: bool) -> list[IPAddress]:
    return [address for address in addresses if anywhere or is_public(address)]


def _connected(
    addresses: list[IPAddress],
    destination: Destination,
    until: float,
    tls: ssl.SSLContext | None,
) -> socket.socket:
    """A connection to the first address that takes one; raises OSError."""
    failure: OSError = TimeoutError()
    for address in addresses:
        try:
            plain = _connected_to(address, destination.port, until)
        except OSError as error:
            failure = error
            continue
        plain.settimeout(_seconds_left(until))
        if not destination.is_encrypted:
            return plain
        context = tls or _trusting_the_usual()
        try:
            return context.wrap_socket(plain, server_hostname=destination.host)
        except BaseException:
            plain.close()
            raise
    raise failure


def _connected_to(address: IPAddress, port: int, until: float) -> socket.socket:
    family = socket.AF_INET6 if isinstance(address, IPv6Address) else socket.AF_INET
    connection = socket.socket(family, socket.SOCK_STREAM)
    try:
        connection.settimeout(min(CONNECT_SECONDS, _seconds_left(until)))
        connection.connect((str(address), port))
    except BaseException:
        connection.close()
        raise
    return connection


@functools.lru_cache(maxsize=1)
def _trusting_the_usual() -> ssl.SSLContext:
    """The authorities of the machine, or those of SSL_CERT_FILE; read once, which takes time."""
    return ssl.create_default_context()


def _answer(
    connection: socket.socket,
    destination: Destination,
    body: bytes,
    headers: Mapping[str, str],
    until: float,
) -> int:
    client = http.client.HTTPConnection(destination.host, destination.port)
    client.sock = _TimedSocket(connection, until)
    own = {"Host": destination.host_header, "Connection": "close", "Accept": "*/*"}
    client.request("POST", destination.target, body=body, headers={**own, **headers})
    with client.getresponse() as answer:
        return answer.status


class _TimedSocket:
    """As much of a socket as http.client uses, until a moment and for so many bytes.

    A socket's own timeout begins anew with every byte: a head that trickles would last for ever.
    """

    def __init__(self, connection: socket.socket, until: float) -> None:
        self._connection = connection
        self._until = until

    def sendall(self, data: bytes) -> None:
        """Send; raises OSError."""
        self._connection.settimeout(_seconds_left(self._until))
        self._connection.sendall(data)

    def makefile(self, mode: str) -> io.BufferedReader:
        """The answer."""
        return io.BufferedReader(_TimedReader(self._connection, self._until))

    def close(self) -> None:
        """Who opened the connection closes it."""


class _TimedReader(io.RawIOBase):
    def __init__(self, connection: socket.socket, until: float) -> None:
        self._connection = connection
        self._until = until
        self._left_bytes = MAX_HEAD_BYTES

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: Any) -> int:
        """What has arrived; an answer of more bytes than a head needs ends there."""
        if not self._left_bytes:
            return 0
        self._connection.settimeout(_seconds_left(self._until))
        count = self._connection.recv_into(buffer, min(len(buffer), self._left_bytes))
        self._left_bytes -= count
        return count


def _seconds_left(until: float) -> float:
    """Raises TimeoutError when there are none."""
    left = until - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left
