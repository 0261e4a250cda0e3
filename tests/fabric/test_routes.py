"""A sentinel's decisions: which child a message goes to."""

import pytest

from strongroom.errors import NoRoute
from strongroom.messaging.routes import Routes


@pytest.fixture
def routes() -> Routes:
    routes = Routes("/hub")
    for system_id in ("a", "b"):
        routes.child(system_id).is_attached = True
    return routes


def test_messages_for_an_address_go_to_the_node_that_bound_it_last(routes: Routes) -> None:
    routes.bind("a", "x@fame.fabric")
    routes.bind("b", "x@fame.fabric")
    assert routes.find("x@fame.fabric", None, "1") == "b"
    routes.unbind("a", "x@fame.fabric")
    assert routes.find("x@fame.fabric", None, "1") == "b"
    routes.unbind("b", "x@fame.fabric")
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
    routes.child("a").is_attached = False
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
