"""The service, phase by phase: driven by hand, without waiting for the script."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from resilience.cli.demo.script import DEAD, Script
from resilience.cli.demo.service import HOST, Service, bind

HEALTHY, SLOW, FAILING, HANGING, _, HEALED = range(6)
SCRIPT = Script(3)


def in_asyncio(test: Callable[[], Awaitable[None]]) -> Callable[[], None]:
    """Run the test in asyncio: the service is a process of its own, and never anywhere else."""

    # Not `wraps`: pytest would look at the signature and the kind of what is wrapped.
    def run() -> None:
        async def within_a_deadline() -> None:
            async with asyncio.timeout(20):
                await test()

        asyncio.run(within_a_deadline())

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


class Driven:
    def __init__(self, seed: int) -> None:
        self.service = Service(SCRIPT, seed)
        self.holder = bind(0)
        self.port: int = self.holder.getsockname()[1]

    async def enter(self, phase: int) -> None:
        self.holder = await self.service._enter(SCRIPT.phases[phase], self.holder)

    async def ask(self, request: str) -> str:
        reader, writer = await asyncio.open_connection(HOST, self.port)
        try:
            writer.write(f"{request}\n".encode())
            return (await reader.readline()).decode()
        finally:
            writer.close()


@contextlib.asynccontextmanager
async def driven(seed: int = 1) -> AsyncIterator[Driven]:
    service = Driven(seed)
    try:
        yield service
    finally:
        if service.service._server is not None:
            service.service._server.close()
        for connection in set(service.service._connections):
            connection.transport.abort()
        await asyncio.sleep(0)
        service.holder.close()


@in_asyncio
async def test_a_healthy_service_answers_with_the_number_that_was_asked() -> None:
    async with driven() as service:
        await service.enter(HEALTHY)
        assert await service.ask("GET 17") == "OK 17\n"


@in_asyncio
async def test_what_is_no_request_gets_an_error() -> None:
    async with driven() as service:
        await service.enter(HEALTHY)
        assert await service.ask("PUT 17") == "ERR 17 unknown-request\n"


@in_asyncio
async def test_the_same_seed_fails_the_same_requests_and_another_seed_others() -> None:
    async def fates(seed: int) -> list[bool]:
        async with driven(seed) as service:
            await service.enter(HEALTHY)
            await service.enter(FAILING)
            answers = await asyncio.gather(*(service.ask(f"GET {number}") for number in range(40)))
            return [answer.startswith("ERR") for answer in answers]

    first, again, other = await fates(1), await fates(1), await fates(2)
    assert first == again
    assert first != other
    assert 20 < sum(first) < 40


@in_asyncio
async def test_a_hanging_service_accepts_and_stays_silent_until_it_dies() -> None:
    async with driven() as service:
        await service.enter(HEALTHY)
        await service.enter(HANGING)
        asked = asyncio.create_task(service.ask("GET 1"))
        done, _ = await asyncio.wait([asked], timeout=0.05)
        assert not done
        await service.enter(DEAD)
        with contextlib.suppress(ConnectionError):
            assert await asked == ""


@in_asyncio
async def test_a_dead_service_refuses_connections_and_comes_back_on_the_same_port() -> None:
    async with driven() as service:
        await service.enter(HEALTHY)
        await service.enter(DEAD)
        with pytest.raises(ConnectionRefusedError):
            await service.ask("GET 1")
        await service.enter(HEALED)
        assert await service.ask("GET 1") == "OK 1\n"


@in_asyncio
async def test_nobody_can_take_the_port_of_a_dead_service() -> None:
    async with driven() as service:
        await service.enter(HEALTHY)
        await service.enter(DEAD)
        with socket.socket() as thief, pytest.raises(OSError, match="in use"):
            thief.bind((HOST, service.port))
