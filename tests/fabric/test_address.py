"""Addresses are read and written without loss, and nothing else passes for one."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strongroom.errors import InvalidAddress
from strongroom.messaging.address import Address, check_node_id, new_id, source_id, source_of

LABEL = st.text(string.ascii_letters + string.digits + "-", min_size=1, max_size=12)
SEGMENT = st.text(string.ascii_letters + string.digits + "._-", min_size=1, max_size=12)
PARTICIPANT = st.text(string.ascii_letters + string.digits + "_-", min_size=1, max_size=20)
HOST = st.lists(LABEL, min_size=1, max_size=4).map(".".join)
PATH = st.lists(SEGMENT, min_size=1, max_size=4).map(lambda parts: "/" + "/".join(parts))


@given(PARTICIPANT, HOST, st.just("") | PATH)
def test_what_is_written_is_read_back(participant: str, host: str, path: str) -> None:
    address = Address(participant, host, path)
    assert Address.parse(str(address)) == address


@given(PARTICIPANT, HOST)
def test_a_pool_is_distinguished_from_its_members(participant: str, host: str) -> None:
    pool = Address.parse(f"{participant}@*.{host}")
    assert pool.is_pool
    assert pool.member("node-1") == Address(participant, f"node-1.{host}", "")


@pytest.mark.parametrize(
    "text",
    ["", "storage", "@fame.fabric", "storage@", "a@b@c", "a b@c", "a@*", "a@b.*", "a@/x/*", "é@b"],
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(InvalidAddress, match="not an address"):
        Address.parse(text)


def test_a_sender_is_named_by_the_digest_of_its_path() -> None:
    assert source_id("/bEW8rs2MWnAHc5NN") == "EGGh9yarQzJYV97CYYj0q"
    assert source_id("/bEW8rs2MWnAHc5NN/kaod0SF8rJ3KJTJx") == "5puoTnuXQxsjHa8nIgpXwf"


def test_ids_are_16_letters_and_digits_and_differ() -> None:
    ids = {new_id() for _ in range(1000)}
    assert len(ids) == 1000
    assert all(len(each) == 16 and each.isalnum() and each.isascii() for each in ids)


@pytest.mark.parametrize("node_id", ["", "..", "a/b", "a b", "x" * 129])
def test_a_node_id_that_would_break_a_path_is_refused(node_id: str) -> None:
    with pytest.raises(InvalidAddress):
        check_node_id(node_id)


@pytest.mark.parametrize(
    ("reply_to", "source"),
    [
        ("__rpc__x@/hub/node", "node"),
        ("__rpc__x@/hub/node/below/it", "node"),
        ("__rpc__x@/hub", ""),
        ("agent@fame.fabric", ""),
        (None, ""),
    ],
)
def test_the_source_of_a_message_is_the_sentinels_child(reply_to: str | None, source: str) -> None:
    assert source_of(reply_to) == source
