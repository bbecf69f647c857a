"""A relay before a server: it makes bad weather, and a test stops it at a chosen message, to hold that back, to cut it
off, or to lose its reply."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit, urlunsplit

CHUNK = 65_536
SLICE_SECONDS = 0.1  # a slow line passes on what it may in so long, again and again


class Stop:
    """Where the relay stops, once: at the first message of a client that holds `marker`.

    Until `release` or `cut` nothing goes through that connection, in either direction, as if the client were frozen.
    """

    def __init__(self, marker: bytes, *, lose_reply: bool) -> None:
        self.marker = marker
        self.lose_reply = lose_reply
        self.reached = asyncio.Event()
        self.forward = False
        self._go = asyncio.Event()

    def release(self) -> None:
        """Lets the message through, and all that comes after it."""
        self.forward = True
        self._go.set()

    def cut(self) -> None:
        """Drops the message and ends both connections."""
        self._go.set()

    async def wait(self) -> None:
        await self._go.wait()


class Proxy:
    """Listens on a port of the loopback address and relays to another one.

    `delay_seconds` and `bytes_per_second` slow down whatever goes through, in both directions.
    """

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        self._target = (host, port)
        self._stop: Stop | None = None
        self._links: set[Link] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False
        self.delay_seconds = 0.0
        self.bytes_per_second: int | None = None
        self.port = 0
        self.url = ""

    def hold(self, marker: bytes) -> Stop:
        """Stop before a message: the server does not get it until it is released."""
        self._stop = Stop(marker, lose_reply=False)
        return self._stop

    def lose_reply(self, marker: bytes) -> Stop:
        """Pass a message on, and end the connection in place of the server's answer."""
        self._stop = Stop(marker, lose_reply=True)
        return self._stop

    def cut(self) -> None:
        """Ends all connections, and every new one at once, until `mend`."""
        self._closed = True
        self._end_links()

    def silence(self) -> None:
        """Half-open: what stands keeps standing and says nothing more, for good; new connections are ended."""
        self._closed = True
        for link in self._links:
            link.silent = True

    def mend(self) -> None:
        """Fair weather again, for new connections."""
        self._closed = False
        self.delay_seconds, self.bytes_per_second = 0.0, None

    def take_stop(self, chunk: bytes) -> Stop | None:
        """The stop that a chunk meets; the next one goes through."""
        stop = self._stop
        if stop is None or stop.marker not in chunk:
            return None
        self._stop = None
        return stop

    async def portions(self, chunk: bytes) -> AsyncIterator[bytes]:
        """What was read, in the portions and at the times that the weather allows."""
        if self.delay_seconds:
            await asyncio.sleep(self.delay_seconds)
        while chunk:
            size = len(chunk)
            if self.bytes_per_second is not None:
                size = max(1, int(self.bytes_per_second * SLICE_SECONDS))
                await asyncio.sleep(SLICE_SECONDS)
            yield chunk[:size]
            chunk = chunk[size:]

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if self._closed:
                raise ConnectionError
            upstream = await asyncio.open_connection(*self._target)
        except OSError:
            writer.transport.abort()
            return
        link = Link(self, (reader, writer), upstream)
        self._links.add(link)
        for pump in (link.from_client(), link.from_server()):
            task = asyncio.create_task(pump)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def forget(self, link: Link) -> None:
        self._links.discard(link)

    def _end_links(self) -> None:
        for link in list(self._links):
            link.end()

    async def close(self) -> None:
        self._end_links()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Link:
    """One client's connection and the server's end of it."""

    def __init__(self, proxy: Proxy, client: Stream, server: Stream) -> None:
        self.proxy = proxy
        self.client = client
        self.server = server
        self.stop: Stop | None = None
        self.silent = False

    async def from_client(self) -> None:
        while chunk := await self._read(self.client):
            stop = self.proxy.take_stop(chunk)
            if stop is not None:
                self.stop = stop
                if not stop.lose_reply:
                    stop.reached.set()
                    await stop.wait()
                    if not stop.forward:
                        break
                    self.stop = None
            await self._pass_on(chunk, self.server)
        self.end()

    async def from_server(self) -> None:
        while chunk := await self._read(self.server):
            if self.stop is not None:
                if self.stop.lose_reply:
                    self.stop.reached.set()
                    break
                await self.stop.wait()
            await self._pass_on(chunk, self.client)
        if self.stop is not None and not self.stop.lose_reply:
            await self.stop.wait()  # what is frozen does not see the server's end of it either
        if not self.silent:
            self.end()

    async def _pass_on(self, chunk: bytes, stream: Stream) -> None:
        async for portion in self.proxy.portions(chunk):
            if not self.silent:
                stream[1].write(portion)
                with contextlib.suppress(OSError):
                    await stream[1].drain()

    async def _read(self, stream: Stream) -> bytes:
        try:
            return await stream[0].read(CHUNK)
        except OSError:
            return b""

    def end(self) -> None:
        self.proxy.forget(self)
        for _, writer in (self.client, self.server):
            writer.transport.abort()


@asynccontextmanager
async def relay(target_port: int, host: str = "127.0.0.1", *, port: int = 0) -> AsyncIterator[Proxy]:
    """A relay to that port for the time of a `with` block, on a port of its own choice or the one given."""
    proxy = Proxy(target_port, host)
    server = await asyncio.start_server(proxy.accept, "127.0.0.1", port)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        server.close()
        await proxy.close()
        await server.wait_closed()


@asynccontextmanager
async def proxy_before(database_url: str) -> AsyncIterator[Proxy]:
    """A relay to the database for the time of a `with` block; its `url` is the database's address through it."""
    parts = urlsplit(database_url)
    assert parts.hostname is not None
    async with relay(parts.port or 5432, parts.hostname) as proxy:
        user, _, _ = parts.netloc.rpartition("@")
        proxy.url = urlunsplit(parts._replace(netloc=f"{user}@127.0.0.1:{proxy.port}", query="sslmode=disable"))
        yield proxy
