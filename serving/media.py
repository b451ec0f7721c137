"""Images named by a request: ``data:`` URIs, and http(s) URLs of hosts that were allowed. Imports no torch.

Fetching what a user names is how servers are made to read their own network. So hosts are refused unless listed, and
of a listed host every resolved address must be a public one; the connection goes to the address that was checked,
follows no redirect, and reads no more than the limit.
"""

import asyncio
import base64
import binascii
import ipaddress
import socket
from urllib.parse import SplitResult, urlsplit

import httpx

from model.data.errors import InputError

_DEFAULT_PORTS = {"http": 80, "https": 443}
# Ranges that are public by number and stand for other, possibly private, addresses: NAT64, 6to4, Teredo.
_TRANSLATED = tuple(ipaddress.ip_network(n) for n in ("64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32"))
_CHUNK = 1 << 16


def read_data_uri(uri: str, max_bytes: int) -> bytes:
    """The bytes of a ``data:image/...;base64,`` URI.

    Raises:
        InputError: another form, broken base64, empty, or more than ``max_bytes``.
    """
    header, comma, payload = uri.partition(",")
    media_type, *parameters = header.removeprefix("data:").split(";")
    if not comma or not media_type.startswith("image/") or parameters[-1:] != ["base64"]:
        raise InputError("image_url must read data:image/TYPE;base64,...")
    if len(payload) // 4 * 3 > max_bytes + 2:
        raise InputError(f"the image is larger than {max_bytes} bytes")
    try:
        image = base64.b64decode(payload, validate=True)
    except (binascii.Error, ValueError):
        raise InputError("image_url: the data is not base64") from None
    if not image:
        raise InputError("image_url: the image is empty (0 bytes)")
    if len(image) > max_bytes:
        raise InputError(f"the image is larger than {max_bytes} bytes")
    return image


def is_public(address: str) -> bool:
    """Whether an IP address is one that the public internet routes, and stands for no other."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None:
            ip = ip.ipv4_mapped
        elif any(ip in network for network in _TRANSLATED):
            return False
    return ip.is_global and not ip.is_multicast and not ip.is_reserved


class ImageFetcher:
    """Reads images, from their URI or from allowed hosts.

    Args:
        allowed_hosts: ``host`` (default ports) or ``host:port``, exact.
        max_bytes: size of an image.
        timeout_s: deadline of one fetch.
    """

    def __init__(self, allowed_hosts: tuple[str, ...], max_bytes: int, timeout_s: float) -> None:
        self._allowed = frozenset(host.lower() for host in allowed_hosts)
        self._max_bytes, self._timeout_s = max_bytes, timeout_s
        # Neither proxies nor credentials of the environment apply to what users name.
        self._client = httpx.AsyncClient(follow_redirects=False, trust_env=False, timeout=timeout_s)

    async def read(self, url: str) -> bytes:
        """The bytes of the image at ``url``.

        Raises:
            InputError: the URL is not allowed, or its image cannot be had; one line, which never says what lies
                behind an address.
        """
        if url[:5].lower() == "data:":
            return read_data_uri("data:" + url[5:], self._max_bytes)
        parts, port = self._check(url)
        try:
            async with asyncio.timeout(self._timeout_s):
                address = await self._resolve(str(parts.hostname), port)
                return await self._fetch(parts, address, port)
        except TimeoutError:
            raise InputError(f"image_url: no image from {parts.hostname} within {self._timeout_s:g} s") from None
        except (httpx.HTTPError, httpx.InvalidURL):
            raise InputError(f"image_url: {parts.hostname} gave no image") from None

    async def close(self) -> None:
        """Close open connections."""
        await self._client.aclose()

    def _check(self, url: str) -> tuple[SplitResult, int]:
        try:
            parts = urlsplit(url)
            host, explicit = (parts.hostname or "").lower(), parts.port
        except ValueError:
            raise InputError("image_url: not a URL") from None
        if parts.scheme not in _DEFAULT_PORTS or not host:
            raise InputError("image_url must be a data: URI or an http(s) URL")
        if parts.username is not None or parts.password is not None:
            raise InputError("image_url: credentials in a URL are not accepted")
        port = explicit or _DEFAULT_PORTS[parts.scheme]
        name = host if port == _DEFAULT_PORTS[parts.scheme] else f"{host}:{port}"
        if name not in self._allowed:
            raise InputError("image_url: this host is not on the list of allowed image hosts; send a data: URI")
        return parts, port

    async def _resolve(self, host: str, port: int) -> str:
        """The address to connect to. All addresses must be public: a resolver may mix in others."""
        try:
            found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            raise InputError(f"image_url: the host {host} cannot be resolved") from None
        addresses = [str(entry[4][0]) for entry in found]
        if not addresses or not all(is_public(address) for address in addresses):
            raise InputError(f"image_url: the host {host} does not have a public address")
        return addresses[0]

    async def _fetch(self, parts: SplitResult, address: str, port: int) -> bytes:
        netloc = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
        target = parts._replace(netloc=netloc, fragment="").geturl()
        host = str(parts.hostname)
        headers = {"Host": parts.netloc, "Accept": "image/*", "Accept-Encoding": "identity"}
        # The certificate is checked against the name, the connection goes to the address.
        extensions = {"sni_hostname": host}
        async with self._client.stream("GET", target, headers=headers, extensions=extensions) as response:
            if response.status_code != httpx.codes.OK:
                raise InputError(f"image_url: {host} answered {response.status_code}; redirects are not followed")
            if response.headers.get("content-encoding", "identity") != "identity":
                raise InputError(f"image_url: {host} sent a compressed body")
            body = bytearray()
            async for chunk in response.aiter_raw(_CHUNK):
                body += chunk
                if len(body) > self._max_bytes:
                    raise InputError(f"the image is larger than {self._max_bytes} bytes")
        if not body:
            raise InputError(f"image_url: {host} sent an empty image")
        return bytes(body)
