"""The service of the demo: a process of its own that speaks a small protocol over TCP, and follows a script.

A request is the line `GET <number>`, the answer `OK <number>` or `ERR <number> <reason>`. On its standard output the
process tells its port (`port 40001`) and each phase once it is really in it (`phase 3`); the line `start` on its
standard input starts the script. It needs nothing outside the standard library, so that it is up at once.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import socket
import sys
import threading
import time
from random import Random

from .script import Phase, Script

__all__ = ["HOST", "Service", "main"]

HOST = "127.0.0.1"
LONGEST_LINE_BYTES = 256


def bind(port: int) -> socket.socket:
    """Give a socket that holds the port but does not listen yet: connections to it are refused."""
    holder = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    if os.name == "posix":
        # The port is bound again while connections of its former life still linger in TIME_WAIT.
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    holder.bind((HOST, port))
    return holder


class Service:
    """The server side of the demo.

    Args:
        script: what to do when.
        seed: decides delays and errors. The fate of a request depends on the seed, its number and the phase alone, not
            on the order of arrival: both clients, and every run with the same seed, meet the same fate.
    """

    def __init__(self, script: Script, seed: int) -> None:
        self._script = script
        self._seed = seed
        self._phase: Phase = script.phases[0]
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.StreamWriter] = set()

    async def play(self, holder: socket.socket) -> None:
        """Go through the script, then stay in its last phase."""
        started = time.monotonic()
        for number, phase in enumerate(self._script.phases):
            holder = await self._enter(phase, holder)
            _tell(f"phase {number}")
            await asyncio.sleep(started + self._script.ends[number] - time.monotonic())
        await asyncio.Event().wait()

    async def _enter(self, phase: Phase, holder: socket.socket) -> socket.socket:
        self._phase = phase
        if self._server is None:
            if phase.listens:
                self._server = await asyncio.start_server(self._serve, sock=holder, limit=LONGEST_LINE_BYTES)
        elif not phase.listens:
            return self._die(self._server, holder.getsockname()[1])
        return holder

    def _die(self, server: asyncio.Server, port: int) -> socket.socket:
        """Do what clients see when a process dies: open connections break, the port refuses new ones."""
        self._server = None
        server.close()
        for connection in self._connections:
            connection.transport.abort()
        # Bound at once, though not listening: a free port could be given to somebody else's connection meanwhile, even
        # to a client's attempt to reach this very port, which would then talk to itself.
        return bind(port)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections.add(writer)
        try:
            while line := await reader.readline():
                await self._answer(line, reader, writer)
        except (ConnectionError, ValueError):
            pass  # the client gave up, or sent more than a line may hold: nobody is left to answer
        finally:
            self._connections.discard(writer)
            writer.close()

    async def _answer(self, line: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        phase = self._phase
        if not phase.answers:
            await reader.read()  # until the client gives up, or the script ends the connection
            return
        verb, _, number = line.decode(errors="replace").strip().partition(" ")
        chance = Random(f"{self._seed}/{number}")  # noqa: S311 - a script of trouble, not a secret
        await asyncio.sleep(chance.uniform(*phase.delay))
        if verb != "GET":
            answer = f"ERR {number} unknown-request"
        elif chance.random() < phase.error_rate:
            answer = f"ERR {number} out-of-order"
        else:
            answer = f"OK {number}"
        writer.write(f"{answer}\n".encode())
        await writer.drain()


def _tell(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _end_with_the_parent() -> None:
    """Wait for the end of standard input, which is the end of the parent however it died, and end with it."""
    while sys.stdin.readline():
        pass
    # From a thread, and at once: whatever the event loop is busy with, this process does not outlive the demo.
    os._exit(0)


def main() -> None:
    """Run the service until standard input ends."""
    parser = argparse.ArgumentParser(prog="resilience.cli.demo.service")
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--seed", type=int, required=True)
    arguments = parser.parse_args()
    # Ctrl-C belongs to the parent, which ends this process when it has counted what it needs.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    holder = bind(0)
    _tell(f"port {holder.getsockname()[1]}")
    if sys.stdin.readline() != "start\n":
        return
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    asyncio.run(Service(Script(arguments.seconds), arguments.seed).play(holder))


if __name__ == "__main__":
    main()
