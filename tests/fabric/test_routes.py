"""A sentinel's decisions: which child a message goes to."""

import sys
from random import Random
from typing import Any

import pytest

from strongroom.errors import NoRoute
from strongroom.messaging.routes import Routes


@pytest.fixture
def routes() -> Routes:
    routes = Routes("/hub")
    for system_id in ("a", "b"):
        routes.attach(system_id)
    return routes


def test_an_address_stays_with_the_node_that_has_it_as_long_as_that_is_attached(
    routes: Routes,
) -> None:
    assert routes.bind("a", "x@fame.fabric") is None
    assert routes.bind("b", "x@fame.fabric") == "a"
    assert routes.bind("a", "x@fame.fabric") is None  # again, as after a restart
    assert routes.find("x@fame.fabric", None, "1") == "a"
    routes.unbind("b", "x@fame.fabric")  # which never had it
    assert routes.find("x@fame.fabric", None, "1") == "a"
    routes.left("a")
    assert routes.bind("b", "x@fame.fabric") is None
    assert routes.find("x@fame.fabric", None, "1") == "b"


def test_an_address_returns_to_its_older_owner_when_the_newer_one_has_left(routes: Routes) -> None:
    routes.bind("a", "x@fame.fabric")
    routes.left("a")
    routes.bind("b", "x@fame.fabric")
    routes.attach("a")
    assert routes.find("x@fame.fabric", None, "1") == "b"
    routes.left("b")
    assert routes.find("x@fame.fabric", None, "1") == "a"
    routes.attach("b")
    assert routes.find("x@fame.fabric", None, "1") == "a"


def test_of_two_nodes_that_are_both_away_the_first_to_return_gets_the_address(
    routes: Routes,
) -> None:
    routes.bind("a", "x@fame.fabric")
    routes.left("a")
    routes.bind("b", "x@fame.fabric")
    routes.left("b")
    routes.attach("a")
    assert routes.find("x@fame.fabric", None, "1") == "a"


def test_a_node_that_only_advertises_for_an_address_does_not_get_it(routes: Routes) -> None:
    routes.bind("a", "x@fame.fabric")
    routes.advertise("b", "x@fame.fabric", ["add"])
    routes.left("a")
    routes.attach("b")
    with pytest.raises(NoRoute):
        routes.find("x@fame.fabric", None, "1")


def test_an_address_that_is_unbound_is_unknown(routes: Routes) -> None:
    routes.bind("a", "x@fame.fabric")
    routes.unbind("a", "x@fame.fabric")
    with pytest.raises(NoRoute) as caught:
        routes.find("x@fame.fabric", None, "1")
    assert caught.value.code == "NO_ROUTE"


def test_a_pool_spreads_over_its_members(routes: Routes) -> None:
    routes.bind("a", "math@*.fame.fabric")
    routes.bind("b", "math@*.fame.fabric")
    for to in ("math@fame.fabric", "math@any.fame.fabric", "math@a.b.fame.fabric"):
        assert {routes.find(to, None, str(number)) for number in range(50)} == {"a", "b"}


def test_a_pool_leaves_out_members_that_are_away(routes: Routes) -> None:
    routes.bind("a", "math@*.fame.fabric")
    routes.bind("b", "math@*.fame.fabric")
    routes.left("a")
    assert {routes.find("math@fame.fabric", None, str(number)) for number in range(50)} == {"b"}


def test_a_physical_address_goes_to_the_child_in_its_path(routes: Routes) -> None:
    assert routes.find("__rpc__x@/hub/a", None, "1") == "a"
    assert routes.find("__rpc__x@/hub/b/deeper", None, "1") == "b"
    for elsewhere in ("x@/other/a", "x@/hub/nobody", "x@/hubris/a"):
        with pytest.raises(NoRoute):
            routes.find(elsewhere, None, "1")


def test_capabilities_must_all_be_there(routes: Routes) -> None:
    routes.bind("a", "x@fame.fabric")
    routes.advertise("a", "x@fame.fabric", ["add", "multiply"])
    routes.advertise("b", "y@fame.fabric", ["add"])
    assert routes.find(None, ["add", "multiply"], "1") == "a"
    routes.withdraw("a", "x@fame.fabric", ["multiply"])
    with pytest.raises(NoRoute):
        routes.find(None, ["add", "multiply"], "1")
    with pytest.raises(NoRoute):
        routes.find(None, [], "1")


def test_a_child_that_is_away_is_not_an_unknown_address(routes: Routes) -> None:
    routes.bind("a", "x@fame.fabric")
    routes.left("a")
    routes.left("b")
    assert list(routes.children) == ["a"]
    with pytest.raises(NoRoute) as caught:
        routes.find("x@fame.fabric", None, "1")
    assert caught.value.code == "CHILD_UNREACHABLE"
    routes.unbind("a", "x@fame.fabric")
    with pytest.raises(NoRoute) as caught:
        routes.find("x@fame.fabric", None, "1")
    assert caught.value.code == "NO_ROUTE"


def test_a_child_that_is_forgotten_leaves_nothing_behind(routes: Routes) -> None:
    for address in ("x@fame.fabric", "math@*.fame.fabric"):
        routes.bind("a", address)
        routes.advertise("a", address, ["add", "multiply"])
    routes.left("a")
    routes.forget("a")
    assert list(routes.children) == ["b"]
    assert not routes._owners
    assert not routes._pools
    assert not routes._able


def test_any_sequence_of_changes_leaves_the_decisions_of_a_plain_search() -> None:
    random = Random(7)
    routes, ids = Routes("/hub"), [f"c{number}" for number in range(5)]
    addresses = ["x@fame.fabric", "y@fame.fabric", "m@*.fame.fabric", "m@*.a.fame.fabric"]
    for _ in range(3000):
        system_id, address = random.choice(ids), random.choice(addresses)
        capabilities = random.sample(["add", "multiply", "divide"], random.randint(1, 3))
        change = random.choice(["attach", "left", "bind", "unbind", "advertise", "withdraw"])
        if change in {"attach", "left"}:
            getattr(routes, change)(system_id)
        elif change in {"bind", "unbind"}:
            getattr(routes, change)(system_id, address)
        else:
            getattr(routes, change)(system_id, address, capabilities)
        able = {
            child.system_id
            for child in routes.children.values()
            if any(set(capabilities) <= known.keys() for known in child.addresses.values())
        }
        attached = {each for each in able if routes.children[each].is_attached}
        try:
            found = routes.find(None, capabilities, str(random.random()))
            assert found in attached
        except NoRoute as error:
            assert not attached
            assert error.code == ("CHILD_UNREACHABLE" if able else "NO_ROUTE")


def time_of_a_decision(children: int, addresses: int) -> int:
    """Instructions are not counted here, but steps are: calls made by Python code."""
    routes, steps = Routes("/hub"), 0
    for number in range(children):
        routes.attach(f"c{number}")
        for each in range(addresses // children):
            address = f"a{number}-{each}@fame.fabric"
            routes.bind(f"c{number}", address)
            routes.advertise(f"c{number}", address, ["fame.capability.agent", f"only-{number}"])
        routes.bind(f"c{number}", "pool@*.fame.fabric")

    def count(_frame: Any, event: str, _arg: Any) -> None:
        nonlocal steps
        steps += event in {"call", "c_call"}

    sys.setprofile(count)
    routes.find("a3-0@fame.fabric", None, "1")
    routes.find("pool@x.fame.fabric", None, "1")
    routes.find(None, ["fame.capability.agent"], "1")
    routes.find(None, ["fame.capability.agent", "only-3"], "1")
    routes.find("__rpc__x@/hub/c3", None, "1")
    sys.setprofile(None)
    return steps


def test_a_decision_takes_no_more_steps_among_thousands_of_names() -> None:
    assert time_of_a_decision(1000, 10_000) <= 1.2 * time_of_a_decision(10, 100)
