"""Envelopes cross the wire without loss, and anything else is refused."""

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from strongroom.errors import ProtocolError
from strongroom.messaging.envelope import (
    Data,
    DeliveryAck,
    Envelope,
    NodeAttachAck,
    Unknown,
    decode,
    encode,
)

NAME = st.text(max_size=20)
MAYBE = st.none() | NAME
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAME, inner, max_size=4),
    max_leaves=10,
)


FIELDS = st.fixed_dictionaries(
    {"id": NAME},
    optional={
        "to": MAYBE,
        "reply_to": MAYBE,
        "corr_id": MAYBE,
        "flow_id": MAYBE,
        "rtype": st.integers(0, 7),
        "capabilities": st.none() | st.lists(NAME, min_size=1),
    },
)


@given(FIELDS, JSON)
def test_an_envelope_crosses_the_wire_without_loss(fields: dict[str, Any], payload: object) -> None:
    envelope = Envelope(**fields, frame=Data(payload=Raw(json.dumps(payload).encode())))
    back = decode(encode(envelope))
    assert back is not None
    assert isinstance(back.frame, Data)
    assert json.loads(bytes(back.frame.payload)) == payload
    back.frame = envelope.frame
    assert back == envelope


def test_absent_fields_are_left_out_and_ok_is_always_written() -> None:
    sent = json.loads(encode(Envelope(id="1", frame=DeliveryAck(ok=False, code="NO_ROUTE"))))
    assert sent == {"id": "1", "frame": {"type": "DeliveryAck", "ok": False, "code": "NO_ROUTE"}}


def test_keys_are_in_camel_case() -> None:
    sent = json.loads(encode(Envelope(corr_id="c", frame=NodeAttachAck(ok=True, ref_id="r"))))
    assert sent["corrId"] == "c"
    assert sent["frame"]["refId"] == "r"


def test_unknown_keys_are_ignored() -> None:
    envelope = decode(b'{"id":"1","x":{"y":[1]},"frame":{"type":"NodeHeartbeat","z":null}}')
    assert envelope is not None
    assert envelope.id == "1"


def test_an_unknown_frame_is_skipped_and_not_an_error() -> None:
    unknown = decode(b'{"id":"1","flowId":"f","frame":{"type":"KeyRequest","kid":"k"}}')
    assert (type(unknown.frame), unknown.flow_id) == (Unknown, "f")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"id":"1"}',
        b'{"frame":{}}',
        b'{"frame":{"type":"AddressBind"}}',
        b'{"frame":{"type":"CreditUpdate","flowId":"f","credits":"many"}}',
        b'{"sid":{"wrong":1},"and then" no JSON',
        b'{"x":"\xff","frame":{"type":"NodeHeartbeat"}}',
        b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b',"frame":{"type":"NodeHeartbeat"}}',
    ],
)
def test_anything_else_is_a_protocol_error(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode(data)


@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_else(data: bytes) -> None:
    with contextlib.suppress(ProtocolError):
        decode(data)
