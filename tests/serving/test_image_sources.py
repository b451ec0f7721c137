"""Which images a request may name, and what the gateway's fetcher may reach."""

import asyncio
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from model.data.errors import InputError
from serving import media
from serving.media import ImageFetcher, is_public, read_data_uri
from tests.serving.requests import data_uri, png

PRIVATE = [
    "0.0.0.0", "10.1.2.3", "100.64.0.1", "127.0.0.1", "169.254.169.254", "172.16.0.1", "192.168.1.1", "192.0.2.1",
    "198.18.0.1", "224.0.0.1", "255.255.255.255", "::", "::1", "fe80::1%eth0", "fc00::1", "ff02::1",
    "::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::", "2001:0:7f00:1::",
]  # fmt: skip
PUBLIC = ["1.1.1.1", "93.184.216.34", "2606:4700:4700::1111", "::ffff:1.1.1.1"]


@pytest.mark.parametrize("address", PRIVATE)
def test_addresses_of_private_special_or_translated_ranges_are_not_public(address):
    assert not is_public(address)


@pytest.mark.parametrize("address", PUBLIC)
def test_routed_addresses_are_public(address):
    assert is_public(address)


def read(url: str, *allowed: str, max_bytes: int = 10_000) -> bytes:
    async def run() -> bytes:
        fetcher = ImageFetcher(allowed, max_bytes, 5.0)
        try:
            return await fetcher.read(url)
        finally:
            await fetcher.close()

    return asyncio.run(run())


def test_a_data_uri_gives_its_bytes():
    assert read(data_uri(png())) == png()


@pytest.mark.parametrize(
    "uri",
    ["data:image/png;base64,%%%", "data:,x", "data:image/png;base64", "data:image/png;base64,", "data:;base64,AA=="],
)
def test_other_data_uris_are_refused(uri):
    with pytest.raises(InputError):
        read(uri)


def test_a_large_data_uri_is_refused_before_it_is_decoded():
    with pytest.raises(InputError, match="larger than 10 bytes"):
        read_data_uri(data_uri(bytes(100)), 10)
    assert read_data_uri(data_uri(bytes(10)), 10) == bytes(10)
    with pytest.raises(InputError, match="larger"):
        read_data_uri(data_uri(bytes(11)), 10)


@pytest.mark.parametrize(
    "url", ["http://example.org/a.png", "https://example.org:444/a.png", "http://example.org.:80/"]
)
def test_hosts_that_are_not_listed_are_refused_without_a_lookup(url, monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: pytest.fail("looked up"))
    with pytest.raises(InputError, match="allowed image hosts"):
        read(url, "other.org", "example.org:444x")


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "169.254.169.254", "10.0.0.1", "[::1]", "2130706433", "0x7f.1", "017700000001"]
)
def test_listing_a_private_host_does_not_open_it(host):
    """However it is written: the resolver turns decimal, hexadecimal and octal forms into addresses."""
    with pytest.raises(InputError, match=r"public address|cannot be resolved"):
        read(f"http://{host}/x.png", host.strip("[]"))


def resolve_to(monkeypatch, *addresses: str) -> list[str]:
    """Make every name resolve to these addresses; gives the list of names that were looked up."""
    asked = []

    def getaddrinfo(host, port, *_, **__):
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return asked


def test_a_name_that_resolves_to_a_private_address_is_refused(monkeypatch):
    resolve_to(monkeypatch, "93.184.216.34", "127.0.0.1")
    with pytest.raises(InputError, match="public address"):
        read("http://images.example.org/x.png", "images.example.org")


@pytest.mark.parametrize("url", ["http://user:pw@images.example.org/", "http://user@images.example.org/x"])
def test_credentials_in_a_url_are_refused(url):
    with pytest.raises(InputError, match="credentials"):
        read(url, "images.example.org")


class Images(BaseHTTPRequestHandler):
    """A host of images on the loopback interface."""

    seen: list[str]

    def do_GET(self) -> None:
        type(self).seen.append(self.headers["Host"])
        if self.path == "/redirect":
            self.send_response(302)
            self.send_header("Location", "/good.png")
        else:
            self.send_response(200)
        if self.path == "/zipped":
            self.send_header("Content-Encoding", "gzip")
        self.end_headers()
        self.wfile.write(bytes(20_000) if self.path == "/large" else png())

    def log_message(self, *_) -> None:
        """Quiet."""


@pytest.fixture
def host(monkeypatch):
    """``images.test:PORT``, looked up once and then gone: what was checked is what is connected to."""
    Images.seen = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Images)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    monkeypatch.setattr(media, "is_public", lambda address: address == "127.0.0.1")
    asked = resolve_to(monkeypatch, "127.0.0.1")
    yield f"images.test:{server.server_port}"
    # The connection itself resolves the pinned address, never the name again.
    assert asked.count("images.test") == 1
    server.shutdown()
    server.server_close()


def test_an_allowed_host_gives_its_image_and_sees_its_name(host):
    assert read(f"http://{host}/good.png#part", host) == png()
    assert Images.seen == [host]


@pytest.mark.parametrize(
    ("path", "word"), [("redirect", "302"), ("large", "larger than 10000"), ("zipped", "compressed")]
)
def test_redirects_large_and_compressed_bodies_are_refused(host, path, word):
    with pytest.raises(InputError, match=word):
        read(f"http://{host}/{path}", host)
    assert len(Images.seen) == 1
