"""Every request has one answer, at once, whatever leaves the operation."""

import asyncio
import gc
import json
import math
import threading
import time
import warnings
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from contextvars import ContextVar
from functools import wraps
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
from msgspec import Raw
from pydantic import BaseModel, field_validator

from strongroom import Agent, BaseAgent, BaseAgentState, Fabric, Settings, operation
from strongroom.errors import (
    AgentError,
    CallTimeout,
    Conflict,
    FabricError,
    InvalidArguments,
    MessageTooLarge,
    NoFabric,
    OperationFailed,
    StrongroomError,
)
from strongroom.messaging.rpc import MAX_ERROR_CHARACTERS
from strongroom.testing import serving
from support.fabrics import ADDRESS, Probe, fabric, sentinel, sentinel_agent_and_client
from support.peer import raw_child, say

if TYPE_CHECKING:
    from decimal import Decimal

AT_ONCE = 3.0  # seconds; a call without an answer would wait for thirty


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


class NoText(Exception):
    def __str__(self) -> str:
        return 5  # type: ignore[return-value]  # noqa: PLE0307 - it is what we want


class OddText(str):
    """A string that cannot be handled as one."""

    __slots__ = ()

    def _fail(self, *_: object, **__: object) -> Any:
        raise RuntimeError

    __len__ = __bool__ = __format__ = encode = _fail


class OddMessage(Exception):
    def __str__(self) -> str:
        return OddText("odd")


class NameFails(type):
    @property
    def __name__(cls) -> str:  # type: ignore[override]
        raise RuntimeError


class Nameless(Exception, metaclass=NameFails):
    pass


class NotInitialised(AgentError):
    def __init__(self) -> None:
        pass


class Picky(BaseModel):
    value: int

    @field_validator("value")
    @classmethod
    def check(cls, value: int) -> int:
        raise KeyError(value)


RAISED: dict[str, Callable[[], BaseException]] = {
    "exit": lambda: SystemExit(3),
    "interrupt": KeyboardInterrupt,
    "cancelled": asyncio.CancelledError,
    "generator exit": GeneratorExit,
    "stop": lambda: StopIteration(1),
    "async stop": StopAsyncIteration,
    "unprintable": Unprintable,
    "no text": NoText,
    "odd message": OddMessage,
    "no name": Nameless,
    "empty": ValueError,
    "huge": lambda: ValueError("x" * 1_000_000),
    "surrogate": lambda: ValueError("\ud800" * 1_000_000),
    "control": lambda: ValueError("\0" * 1_000_000),
    "group": lambda: BaseExceptionGroup("several", [SystemExit(1), ValueError()]),
    "own call": lambda: InvalidArguments("of another call", data=[object()]),
    "own size": lambda: MessageTooLarge("of another message"),
}


def raised(what: str) -> BaseException:
    return RAISED[what]()


class Raising(BaseAgent):
    """Raises everything, from operations of each form."""

    @operation
    async def coroutine(self, what: str) -> None:
        raise raised(what)

    @operation
    def plain(self, what: str) -> None:
        raise raised(what)

    @operation
    async def generator(self, what: str) -> AsyncIterator[int]:
        yield 1
        raise raised(what)

    @operation(streaming=True)
    def no_generator(self, what: str) -> AsyncIterator[int]:
        raise raised(what)

    @operation
    async def recursion(self) -> None:
        await self.recursion()

    @operation
    async def cancels_itself(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(1)

    @operation
    async def unencodable(self) -> Any:
        return object()

    @operation
    async def keyword(self, *, needed: int) -> int:
        return needed

    @operation
    async def numbers(self, numbers: list[int]) -> int:
        return len(numbers)

    @operation
    async def picky(self, value: Picky) -> None: ...

    @operation
    async def large(self, count: int) -> str:
        return "x" * count

    @operation(streaming=True)
    async def not_a_stream(self) -> Any:
        return 5

    @operation
    async def closes_badly(self) -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            raise ValueError("while closing")


@pytest.mark.parametrize("what", RAISED)
async def test_whatever_an_operation_raises_is_its_answer(what: str) -> None:
    async with sentinel_agent_and_client(Raising()):
        raising = Raising.remote(ADDRESS, timeout=AT_ONCE)
        for call, name in ((raising.coroutine, "coroutine"), (raising.plain, "plain")):
            with pytest.raises(OperationFailed, match=rf"{name}\(\)") as failed:
                await call(what)
            assert 0 < len(failed.value.what) < MAX_ERROR_CHARACTERS + 100
            assert failed.value.data["type"]
        for stream in (raising.generator, raising.no_generator):
            with pytest.raises(OperationFailed):
                async for _ in stream(what):
                    pass
        assert await raising.numbers([1]) == 1  # the node still serves


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (NotInitialised(), "refuse() raised AgentError without a message."),
        (AgentError(""), "refuse() raised AgentError without a message."),
        (AgentError(OddText("odd")), "odd"),
        (Conflict("\ud800"), "\\ud800"),
    ],
)
async def test_an_agents_own_error_arrives_even_if_its_message_is_strange(
    error: AgentError, text: str
) -> None:
    class Refusing(BaseAgent):
        @operation
        async def refuse(self) -> None:
            raise error

    async with sentinel_agent_and_client(Refusing()):
        with pytest.raises(AgentError) as refused:
            await Refusing.remote(ADDRESS, timeout=AT_ONCE).refuse()
        assert refused.value.what == text


async def test_what_goes_wrong_around_an_operation_is_answered() -> None:
    async with sentinel_agent_and_client(Raising()):
        raising = Raising.remote(ADDRESS, timeout=AT_ONCE)
        untyped = Agent.remote_by_address(ADDRESS, timeout=AT_ONCE)
        for call in (
            raising.recursion(),
            raising.cancels_itself(),
            raising.unencodable(),
        ):
            with pytest.raises(OperationFailed, match=r"\w+\(\)"):
                await call
        with pytest.raises(OperationFailed, match=r"not_a_stream\(\) returned a int"):
            async for _ in untyped._call("not_a_stream", _stream=True):
                pass
        with pytest.raises(InvalidArguments, match=r"keyword\(\).*needed"):
            await untyped.keyword()
        with pytest.raises(InvalidArguments, match=r"picky\(\): value: KeyError"):
            await untyped.picky({"value": 1})
        with pytest.raises(InvalidArguments, match="2980 more") as invalid:
            await untyped.numbers(["x"] * 3000)
        assert len(invalid.value.data) == 20
        assert await untyped.closes_badly() == 1


@pytest.mark.parametrize("params", [b"[", b'{"args":[1', b'"x"', b"[" * 100_000])
async def test_arguments_that_cannot_be_read_are_answered(params: bytes) -> None:
    async with serving(Probe()):
        agent = Probe()
        with pytest.raises(InvalidArguments):
            agent.__resident__().invoke("echo", Raw(params))


async def test_a_message_that_is_too_large_says_which_part_it_was() -> None:
    async with sentinel_agent_and_client(Raising()):
        raising = Raising.remote(ADDRESS, timeout=AT_ONCE)
        with pytest.raises(MessageTooLarge, match=r"result of large\(\)"):
            await raising.large(300_000)
        with pytest.raises(MessageTooLarge, match=r"arguments of numbers\(\)"):
            await raising.numbers([1] * 300_000)


async def test_a_message_whose_handler_exits_does_not_end_the_node() -> None:
    class Exits(Probe):
        async def on_message(self, message: Any) -> None:
            raise SystemExit(message)

    async with Fabric(Settings()) as node:
        await node.serve(Exits(), ADDRESS)
        await node.send_message(ADDRESS, 3)
        assert await Probe.remote(ADDRESS, timeout=AT_ONCE).echo(1) == 1


# --- plain functions --------------------------------------------------------------------------

asked_by: ContextVar[str] = ContextVar("asked_by", default="nobody")


async def test_a_plain_operation_holds_up_nobody_and_knows_its_fabric() -> None:
    class Blocking(BaseAgent):
        @operation
        def block(self, seconds: float) -> str:
            time.sleep(seconds)
            assert Fabric.current() is not None
            return threading.current_thread().name

        @operation
        async def quick(self) -> str:
            return threading.current_thread().name

    async with serving(Blocking()) as blocking:
        slow = asyncio.create_task(blocking.block(0.5))
        await asyncio.sleep(0.1)
        begun = time.perf_counter()
        assert await blocking.quick() == threading.main_thread().name
        assert time.perf_counter() - begun < 0.3
        assert not slow.done()
        assert await slow != threading.main_thread().name


# --- classes ----------------------------------------------------------------------------------


class Base(BaseAgent):
    @operation(name="wire")
    async def first(self) -> str:
        return "base"

    @operation
    async def removed(self) -> None: ...

    @operation
    @staticmethod
    async def outer_static(value: int) -> int:
        return value

    @staticmethod
    @operation
    async def inner_static(value: int) -> int:
        return value

    @operation
    @classmethod
    async def outer_class(cls, value: int) -> str:
        return f"{cls.__name__} {value}"

    @classmethod
    @operation
    async def inner_class(cls, value: int) -> str:
        return f"{cls.__name__} {value}"


class Derived(Base):
    removed: ClassVar[None] = None  # type: ignore[assignment]

    async def first(self) -> str:  # type: ignore[override]  # an operation still
        return f"derived of {await super().first()}"


async def test_operations_are_inherited_overridden_and_bound_as_methods_are() -> None:
    async with serving(Derived()) as typed:
        derived: Any = typed
        assert await derived.first() == "derived of base"
        assert await Agent.remote_by_address(repr(typed).split()[-1][:-1]).wire() == (
            "derived of base"
        )
        assert await derived.outer_static(1) == await derived.inner_static(1) == 1
        assert await derived.outer_class(value=2) == await derived.inner_class(2) == "Derived 2"


def unfit_classes() -> dict[str, type[BaseAgent]]:
    class Local: ...

    class Unreadable(BaseAgent):
        @operation
        async def op(self, thing: Local) -> None: ...

    class Unresolved(BaseAgent):
        @operation
        async def op(self, amount: "Decimal") -> None: ...

    class UnreadableResult(BaseAgent):
        @operation
        async def op(self) -> Local:
            return Local()

    class Ours(BaseAgent):
        @operation
        async def start(self) -> None: ...

    class NoStream(BaseAgent):
        @operation(streaming=True)
        async def op(self) -> int:
            return 1

    class PlainGenerator(BaseAgent):
        @operation(streaming=True)
        def op(self) -> Any:
            yield 1

    class NotStreaming(BaseAgent):
        @operation
        async def op(self) -> AsyncIterator[int]:
            return Raising().generator("empty")

    class Twice(BaseAgent):
        @operation(name="op")
        async def one(self) -> None: ...

        @operation(name="op")
        async def two(self) -> None: ...

    return {
        r"Unreadable\.op\(\).*parameter 'thing'": Unreadable,
        r"Unresolved\.op\(\).*parameter 'amount'.*Decimal": Unresolved,
        r"UnreadableResult\.op\(\).*result": UnreadableResult,
        r"Ours\.start\(\)": Ours,
        r"NoStream\.op\(\).*streaming=True": NoStream,
        r"PlainGenerator\.op\(\).*streaming=True": PlainGenerator,
        r"NotStreaming\.op\(\).*result": NotStreaming,
        r"Twice.*'op'.*one\(\).*two\(\)": Twice,
    }


@pytest.mark.parametrize("what", unfit_classes())
async def test_what_is_wrong_with_a_class_is_refused_when_it_is_served(what: str) -> None:
    async with Fabric(Settings()) as node:
        with pytest.raises(StrongroomError, match=f"(?s){what}"):
            await node.serve(unfit_classes()[what](), ADDRESS)
        await node.serve(Probe(), ADDRESS)


async def test_names_that_only_the_node_needs_are_free_for_operations() -> None:
    class Free(BaseAgent):
        @operation
        async def invoke(self) -> str:
            return "invoked"

        @operation
        async def begin(self) -> str:
            return "begun"

        @operation
        async def end(self) -> str:
            return "ended"

        @operation
        async def receive(self) -> str:
            return "received"

    async with serving(Free()) as free:
        assert await free.invoke() == "invoked"
        assert await free.begin() == "begun"
        assert await free.end() == "ended"
        assert await free.receive() == "received"


async def test_a_decorated_coroutine_function_stays_on_the_event_loop() -> None:
    def logged(function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            return function(*args, **kwargs)

        return wrapper

    class Decorated(BaseAgent):
        @operation
        @logged
        async def op(self, value: int) -> str:
            return f"{threading.current_thread().name} {value}"

    async with serving(Decorated()) as decorated:
        remote: Any = decorated
        assert await remote.op("5") == f"{threading.main_thread().name} 5"


# --- what a Python programmer expects ---------------------------------------------------------


class Counted(BaseAgentState):
    count: int = 0


class Counting(BaseAgent[Counted]):
    @operation
    async def count(self) -> int:
        async with self.state as state:
            state.count += 1
        return state.count


async def test_two_agents_of_one_class_do_not_share_a_state() -> None:
    async with Fabric(Settings()) as node:
        await node.serve(Counting(), ADDRESS)
        with pytest.raises(StrongroomError, match=r"'counting'.*overwrite") as refused:
            await node.serve(Counting(), "other@fame.fabric")
        assert 'Counting("first")' in str(refused.value)
        await node.serve(Counting("other"), "other@fame.fabric")
        assert await Counting.remote(ADDRESS).count() == 1
        assert await Counting.remote("other@fame.fabric").count() == 1


async def test_a_forgotten_await_is_a_warning_that_names_the_call() -> None:
    async with serving(Probe()) as probe:
        with pytest.warns(RuntimeWarning, match=r"echo\(\) of .* was never awaited"):
            probe.echo(1)  # type: ignore[unused-coroutine]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            call = probe.echo(1)
            call.close()
            del call
            probe.count(3)
            assert await probe.echo(2) == 2
            gc.collect()


async def test_a_timeout_is_a_number_of_seconds_and_none_are_left_at_zero() -> None:
    async with serving(Probe()) as probe:
        for seconds in (0, -1, 0.0):
            with pytest.raises(CallTimeout):
                await probe.echo(1, _timeout=seconds)
            with pytest.raises(CallTimeout):
                await anext(probe.count(1, _timeout=seconds))
        for wrong in ("5", math.nan, True):
            with pytest.raises(TypeError, match="number of seconds"):
                await probe.echo(1, _timeout=wrong)  # type: ignore[arg-type]
        assert await probe.echo(1, _timeout=math.inf) == 1


async def test_capabilities_are_a_list_of_strings() -> None:
    async with Fabric(Settings()) as node:
        for wrong in ("math.add", [], [1], [""]):
            with pytest.raises(ValueError, match="list of strings"):
                Agent.remote(capabilities=wrong)  # type: ignore[arg-type]

        class Wrong(Probe):
            @property
            def capabilities(self) -> str:
                return "math.add"

        with pytest.raises(ValueError, match="list of strings"):
            await node.serve(Wrong(), ADDRESS)

        class Without(Probe):
            @property
            def capabilities(self) -> Sequence[str]:
                return []

        await node.serve(Without(), ADDRESS)
        assert await Without.remote(ADDRESS).echo(1) == 1


async def test_a_fabric_is_entered_once_at_a_time() -> None:
    node = Fabric(Settings())
    async with node:
        with pytest.raises(FabricError, match="entered already"):
            async with node:
                pass
        assert Fabric.current() is node
    async with node:
        assert Fabric.current() is node


async def test_a_fabric_may_be_left_in_another_task_and_is_not_current_any_more() -> None:
    node = await Fabric(Settings()).__aenter__()
    await asyncio.create_task(node.__aexit__(None, None, None))
    with pytest.raises(NoFabric):
        Fabric.current()


async def test_of_fabrics_that_overlap_the_last_that_is_open_is_current() -> None:
    first, second = Fabric(Settings()), Fabric(Settings())
    await first.__aenter__()
    await second.__aenter__()
    await first.__aexit__(None, None, None)
    assert Fabric.current() is second
    await second.__aexit__(None, None, None)
    with pytest.raises(NoFabric):
        Fabric.current()


@pytest.mark.parametrize(
    "verb", ["call", "stream", "send_message", "serve", "bind", "unbind", "stop"]
)
async def test_whatever_is_done_from_another_thread_says_that_a_fabric_has_one_loop(
    verb: str,
) -> None:
    async with Fabric(Settings()) as node:
        await node.serve(Raising(), ADDRESS)
        remote = Raising.remote(ADDRESS, fabric=node)

        async def use() -> None:
            match verb:
                case "call":
                    await remote.numbers([1])
                case "stream":
                    await anext(remote.generator("empty"))
                case "send_message":
                    await node.send_message(ADDRESS, 1)
                case "serve":
                    await node.serve(Raising(), "other@fame.fabric")
                case "bind":
                    await node.bind("other@fame.fabric", Raising().__resident__())
                case "unbind":
                    await node.unbind(ADDRESS)
                case "stop":
                    await node.stop()

        with pytest.raises(FabricError, match="belongs to one event loop"):
            await asyncio.to_thread(asyncio.run, use())
        assert await remote.numbers([1]) == 1


async def test_an_at_least_once_call_that_exits_is_answered_once() -> None:
    async with sentinel() as hub:
        settings = {"delivery_profile": "at-least-once"}
        async with fabric(hub, **settings) as node, fabric(hub, **settings):
            await node.serve(Raising(), ADDRESS)
            raising = Raising.remote(ADDRESS, timeout=AT_ONCE)
            with pytest.raises(OperationFailed, match=r"coroutine\(\) raised SystemExit"):
                await raising.coroutine("exit")
            with pytest.raises(MessageTooLarge, match="result of large"):
                await raising.large(300_000)
            with suppress(OperationFailed):
                await raising.plain("exit")


@pytest.mark.parametrize(
    ("payload", "code"),
    [
        ({"jsonrpc": "2.0", "id": "1", "method": 5, "params": {}}, -32600),
        ({"jsonrpc": "1.0", "id": "1", "method": "echo"}, -32600),
        ([1], -32600),
        ({"jsonrpc": "2.0", "id": "1", "method": "nothing"}, -32601),
        ({"jsonrpc": "2.0", "id": "1", "method": "add", "params": 5}, -32602),
        ({"jsonrpc": "2.0", "id": "1", "method": "add", "params": [1, "x"]}, -32602),
        ({"jsonrpc": "2.0", "id": "1", "method": "add", "params": [1, 2]}, None),
        ({"jsonrpc": "2.0", "id": "1", "method": "echo"}, None),
    ],
)
async def test_a_request_that_cannot_be_read_is_answered_with_an_error(
    payload: Any, code: int | None
) -> None:
    async with sentinel() as hub, fabric(hub) as node, raw_child(hub) as link:
        await node.serve(Probe(), ADDRESS)
        frame = {"type": "Data", "payload": payload}
        reply_to = f"__rpc__1@{hub.path}/raw"
        await say(link, "2", frame, to=ADDRESS, replyTo=reply_to, corrId="1", rtype=2)
        async with asyncio.timeout(AT_ONCE):
            while (answer := json.loads(await link.recv()))["frame"]["type"] != "Data":
                pass
        assert answer["corrId"] == "1"
        assert answer["frame"]["payload"].get("error", {}).get("code") == code
