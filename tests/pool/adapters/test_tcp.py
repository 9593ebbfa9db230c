"""Bare TCP streams in a pool, on asyncio and trio, in real time: what the other side does to them is seen."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from anyio.abc import ByteStream

from resilience.errors import PoolTimeoutError
from resilience.events import CheckFailed, ConnectionClosed, ResetFailed, capture
from resilience.pool import ConnectionPool, create_pool
from resilience.pool.adapters import network

from .conftest import until_idle

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Both backends, in real time."""
    name: str = request.param
    return name


@contextmanager
def listening() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(5)
        yield listener


def make_pool(listener: socket.socket, **options: Any) -> ConnectionPool[ByteStream]:
    host, port = listener.getsockname()
    return create_pool(f"tcp://{host}:{port}", check_after_idle=0, **options)


async def wait_until_seen(stream: ByteStream) -> None:
    """Wait until what the other side did has arrived."""
    with anyio.fail_after(5):
        while network.peek(stream.extra(anyio.abc.SocketAttribute.raw_socket).fileno()) == "quiet":  # noqa: ASYNC110
            await anyio.sleep(0.001)


async def test_a_stream_that_is_quiet_is_lent_again() -> None:
    with listening() as listener:
        async with make_pool(listener) as pool:
            async with pool.acquire() as stream:
                peer, _ = listener.accept()
                await stream.send(b"hello")
                assert peer.recv(9) == b"hello"
                peer.sendall(b"you")
                assert await stream.receive() == b"you"
            async with pool.acquire() as again:
                assert again is stream
            peer.close()


async def test_a_stream_on_which_the_other_side_hung_up_is_replaced_before_it_is_lent() -> None:
    with listening() as listener:
        async with make_pool(listener) as pool:
            async with pool.acquire() as stream:
                first, _ = listener.accept()
            with capture(CheckFailed) as failed:
                await until_idle(pool)
                first.close()
                await wait_until_seen(stream)
                async with pool.acquire() as other:
                    second, _ = listener.accept()
                    assert other is not stream
                    await other.send(b"hello")
                    assert second.recv(9) == b"hello"
            assert [event.error_type for event in failed] == ["ConnectionError"]
            second.close()


async def test_a_stream_with_bytes_that_nobody_read_is_not_lent_again() -> None:
    with listening() as listener:
        async with make_pool(listener) as pool:
            with capture(ResetFailed) as failed:
                async with pool.acquire() as stream:
                    peer, _ = listener.accept()
                    peer.sendall(b"late answer")
                    await wait_until_seen(stream)
                async with pool.acquire() as other:
                    assert other is not stream
            assert len(failed) == 1
            peer.close()


async def test_a_stream_with_bytes_that_were_received_and_not_taken_is_not_lent_again() -> None:
    with listening() as listener:
        async with make_pool(listener) as pool:
            async with pool.acquire() as stream:
                peer, _ = listener.accept()
                peer.sendall(b"two words")
                assert await stream.receive(3) == b"two"
                await anyio.sleep(0.01)
            async with pool.acquire() as other:
                assert other is not stream
            peer.close()


async def test_closing_the_pool_closes_its_streams() -> None:
    with listening() as listener:
        with capture(ConnectionClosed) as closed:
            async with make_pool(listener, min_size=2) as pool:
                await pool.wait_ready(5)
                peers = [listener.accept()[0] for _ in range(2)]
        assert [peer.recv(1) for peer in peers] == [b"", b""]
        assert [event.reason for event in closed] == ["closed", "closed"]
        for peer in peers:
            peer.close()


async def test_a_host_that_nobody_knows_reaches_the_caller_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(anyio, "connect_tcp", unknown)
    async with create_pool("tcp://nowhere.invalid:80") as pool:
        with anyio.fail_after(1), pytest.raises(socket.gaierror):
            async with pool.acquire():
                pass


async def test_a_port_where_nobody_listens_is_tried_until_the_deadline_and_told() -> None:
    async with create_pool("tcp://127.0.0.1:1", reconnect_base=0.01, reconnect_cap=0.02) as pool:
        with pytest.raises(PoolTimeoutError) as refusal:
            async with pool.acquire(timeout=0.15):
                pass
        assert isinstance(refusal.value.__cause__, OSError)
        assert pool.stats().connect_failures >= 2


async def test_a_stream_whose_borrower_did_not_wait_for_the_answer_is_not_lent_again() -> None:
    with listening() as listener:
        async with make_pool(listener) as pool:
            with anyio.CancelScope() as scope:
                async with pool.acquire() as stream:
                    peer, _ = listener.accept()
                    await stream.send(b"question")
                    scope.cancel()
                    await stream.receive()
            async with pool.acquire() as other:
                assert other is not stream
            peer.close()


@pytest.mark.parametrize("how", ["closed", "ended"])
async def test_a_stream_that_a_borrower_closed_or_ended_is_not_lent_again(how: str) -> None:
    with listening() as listener:
        async with make_pool(listener) as pool:
            async with pool.acquire() as stream:
                peer, _ = listener.accept()
                await (stream.aclose() if how == "closed" else stream.send_eof())
            async with pool.acquire() as other:
                assert other is not stream
            peer.close()


async def test_a_stream_has_the_attributes_of_anyios() -> None:
    with listening() as listener:
        async with make_pool(listener) as pool, pool.acquire() as stream:
            peer, _ = listener.accept()
            assert stream.extra(anyio.abc.SocketAttribute.remote_port) == listener.getsockname()[1]
            with pytest.raises(anyio.ClosedResourceError):
                await break_and_send(stream)
            peer.close()


async def break_and_send(stream: ByteStream) -> None:
    await stream.aclose()
    await stream.send(b"x")
