"""What surrounds every request: errors, routing, hosts and origins, serving and its end."""

from __future__ import annotations

from tests.api.house import House


async def test_T1_an_unknown_route_is_a_404_and_routes_are_case_sensitive(house: House) -> None:
    for path in ("/v0/nothing", "/V0/pipelines", "/v0/pipelines/", "/v0/pipelines/p1/Start", "/"):
        answer = await house.post(path)
        assert (answer.status, answer.error_code) == (404, "UnknownRoute"), path
