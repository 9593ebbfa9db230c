import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

import anyio
import pytest

from resilience.breaker import CircuitBreaker
from resilience.cli.demo.clients import (
    SLOTS,
    Client,
    ErrorAnswer,
    Limits,
    ask,
    connections,
    explain,
    naked,
    protected,
    protection,
)
from resilience.cli.demo.ledger import Outcome
from resilience.errors import CircuitOpenError

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    backend: str = request.param
    return backend


async def outcomes_of(call: Callable[[int], Awaitable[None]], requests: int, late_after: float = 60.0) -> Client:
    client = Client("tested", call, late_after)
    began = time.monotonic()
    async with anyio.create_task_group() as tasks:
        for number in range(requests):
            client.send(tasks, number, phase=0, intended=0.0, began=began)
    return client


async def answered(_: int) -> None:
    await anyio.lowlevel.checkpoint()


async def rejected(_: int) -> None:
    await anyio.lowlevel.checkpoint()
    raise CircuitOpenError("demo service", "open")


async def failed(_: int) -> None:
    await anyio.lowlevel.checkpoint()
    raise ErrorAnswer


@pytest.mark.parametrize(
    ("call", "outcome"),
    [(answered, Outcome.IN_TIME), (rejected, Outcome.REJECTED), (failed, Outcome.FAILED)],
)
async def test_each_request_is_booked_under_what_became_of_it(
    call: Callable[[int], Awaitable[None]], outcome: Outcome
) -> None:
    client = await outcomes_of(call, 3)
    assert [one.outcome for one in client.ledger.calls] == [outcome] * 3
    assert client.in_flight == 0


async def test_an_answer_beyond_the_limit_is_late() -> None:
    client = await outcomes_of(answered, 1, late_after=0.0)
    assert client.ledger.count(Outcome.LATE) == 1


async def test_requests_that_find_all_slots_busy_are_dropped_and_the_slots_come_back() -> None:
    client = await outcomes_of(answered, SLOTS + 5)
    assert client.ledger.count(Outcome.DROPPED) == 5
    assert client.ledger.count(Outcome.IN_TIME) == SLOTS
    assert client.in_flight == 0


async def test_cancelled_requests_give_their_slots_back_and_are_not_booked() -> None:
    async def hang(_: int) -> None:
        await anyio.sleep_forever()

    client = Client("tested", hang, 60.0)
    async with anyio.create_task_group() as tasks:
        client.send(tasks, 0, phase=0, intended=0.0, began=time.monotonic())
        await anyio.wait_all_tasks_blocked()
        assert client.in_flight == 1
        tasks.cancel_scope.cancel()
    assert client.in_flight == 0
    assert client.ledger.calls == []


async def test_a_silent_service_is_a_timeout_for_both_clients_and_a_failure_to_the_breaker() -> None:
    limits = Limits(patience=0.05, attempt=0.05, window=60.0, slow=30.0, first_open=1.0, longest_open=1.0)
    breaker = CircuitBreaker("demo service", limits.breaker_config())

    async def ignore(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            await anyio.sleep_forever()

    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener:
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(listener.serve, ignore)
            async with connections(port, limits) as pool, anyio.create_task_group() as calls:
                clients = naked(port, limits), protected(limits, protection(limits, breaker, pool))
                for client in clients:
                    client.send(calls, 0, phase=0, intended=0.0, began=time.monotonic())
            tasks.cancel_scope.cancel()
    assert [client.ledger.reasons for client in clients] == [{"timed out": 1}] * 2
    assert breaker.snapshot().failures == 1


async def test_the_protected_client_keeps_its_connections_and_hears_of_a_closed_port_at_once() -> None:
    limits = Limits.for_run(20)
    breaker = CircuitBreaker("demo service", limits.breaker_config())

    async def answer(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            with suppress(anyio.EndOfStream):
                while True:
                    number = (await stream.receive()).decode().split()[1]
                    await stream.send(f"OK {number}\n".encode())

    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener:
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        async with connections(port, limits) as pool:
            client = protected(limits, protection(limits, breaker, pool))
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(listener.serve, answer)
                for number in range(5):
                    async with anyio.create_task_group() as calls:
                        client.send(calls, number, phase=0, intended=0.0, began=time.monotonic())
                assert (pool.stats().acquired, pool.stats().opened) == (5, 1)
                tasks.cancel_scope.cancel()
            await listener.aclose()
            for number in range(2):  # the first finds the end of the one that was open
                async with anyio.create_task_group() as calls:
                    client.send(calls, number, phase=0, intended=0.0, began=time.monotonic())
    assert client.ledger.count(Outcome.IN_TIME) == 5
    assert client.ledger.reasons["connection refused"] >= 1
    assert "timed out" not in client.ledger.reasons


async def test_a_closed_port_and_a_broken_connection_have_names_of_their_own() -> None:
    async def hang_up(stream: anyio.abc.SocketStream) -> None:
        await stream.aclose()

    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener:
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(listener.serve, hang_up)
            with pytest.raises(Exception) as lost:  # noqa: PT011 - how a broken connection shows depends on the system
                await ask(port, 1)
            tasks.cancel_scope.cancel()
    with pytest.raises(OSError) as refused:  # noqa: PT011 - the errno is the system's
        await ask(port, 1)
    assert explain(lost.value) == "connection lost"
    assert explain(refused.value) == "connection refused"
