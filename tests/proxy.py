"""A relay before Postgres that a test stops at a chosen message: to hold it back, to cut it off, or to lose its reply."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit, urlunsplit

CHUNK = 65_536


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
    """Listens on the loopback address; `url` is the database's address through it."""

    def __init__(self, database_url: str) -> None:
        self._parts = urlsplit(database_url)
        self._stop: Stop | None = None
        self._links: set[Link] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.url = ""

    def hold(self, marker: bytes) -> Stop:
        """Stop before a message: the server does not get it until it is released."""
        self._stop = Stop(marker, lose_reply=False)
        return self._stop

    def lose_reply(self, marker: bytes) -> Stop:
        """Pass a message on, and end the connection in place of the server's answer."""
        self._stop = Stop(marker, lose_reply=True)
        return self._stop

    def take_stop(self, chunk: bytes) -> Stop | None:
        """The stop that a chunk meets; the next one goes through."""
        stop = self._stop
        if stop is None or stop.marker not in chunk:
            return None
        self._stop = None
        return stop

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream = await asyncio.open_connection(self._parts.hostname, self._parts.port)
        link = Link(self, (reader, writer), upstream)
        self._links.add(link)
        for pump in (link.from_client(), link.from_server()):
            task = asyncio.create_task(pump)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        for link in self._links:
            link.end()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def listens_on(self, port: int) -> None:
        user, _, _ = self._parts.netloc.rpartition("@")
        self.url = urlunsplit(self._parts._replace(netloc=f"{user}@127.0.0.1:{port}", query="sslmode=disable"))


Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Link:
    """One client's connection and the server's end of it."""

    def __init__(self, proxy: Proxy, client: Stream, server: Stream) -> None:
        self.proxy = proxy
        self.client = client
        self.server = server
        self.stop: Stop | None = None

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
            self.server[1].write(chunk)
        self.end()

    async def from_server(self) -> None:
        while chunk := await self._read(self.server):
            if self.stop is not None:
                if self.stop.lose_reply:
                    self.stop.reached.set()
                    break
                await self.stop.wait()
            self.client[1].write(chunk)
        if self.stop is not None and not self.stop.lose_reply:
            await self.stop.wait()  # what is frozen does not see the server's end of it either
        self.end()

    async def _read(self, stream: Stream) -> bytes:
        try:
            return await stream[0].read(CHUNK)
        except OSError:
            return b""

    def end(self) -> None:
        for _, writer in (self.client, self.server):
            writer.transport.abort()


@asynccontextmanager
async def proxy_before(database_url: str) -> AsyncIterator[Proxy]:
    """A relay to the database for the time of a `with` block."""
    proxy = Proxy(database_url)
    server = await asyncio.start_server(proxy.accept, "127.0.0.1", 0)
    proxy.listens_on(server.sockets[0].getsockname()[1])
    try:
        yield proxy
    finally:
        server.close()
        await proxy.close()
        await server.wait_closed()
