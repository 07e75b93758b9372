"""Every path that Ray's dashboard and a node's agent know, asked without the cluster's token and with a wrong one."""

import json
import re
import subprocess
import sys
import urllib.error
import urllib.request

import pytest

from tests.cluster.ray_head import Head

ROUTES = """
import json
import ray.dashboard.http_server_head
from ray.dashboard import optional_utils, utils
from ray.dashboard.subprocesses.module import SubprocessModule
from ray.dashboard.subprocesses.routes import SubprocessRouteTable

for kind in (utils.DashboardHeadModule, SubprocessModule, utils.DashboardAgentModule):
    utils.get_all_modules(kind)  # imports them, by which their paths become known
head = [*optional_utils.DashboardHeadRouteTable.routes(), *SubprocessRouteTable.routes()]
agent = optional_utils.DashboardAgentRouteTable.routes()
print(json.dumps({name: [(route.method, route.path) for route in routes]
                  for name, routes in (("dashboard", head), ("agent", agent))}))
"""

PUBLIC = {
    ("GET", "/"),  # the page that asks for the token
    ("GET", "/favicon.ico"),
    ("GET", "/api/authentication_mode"),
    ("GET", "/api/gcs_healthz"),
    ("GET", "/api/healthz"),
    ("GET", "/api/local_raylet_healthz"),
}
"""What answers everybody: none of it acts, or tells anything but that Ray is there."""
LOGIN = ("POST", "/api/authenticate")


@pytest.fixture(scope="module")
def routes() -> dict[str, list[tuple[str, str]]]:
    """Method and path of each, by who serves it; as Ray's own modules register them."""
    shown = subprocess.run([sys.executable, "-c", ROUTES], capture_output=True, check=True, text=True).stdout
    return {server: [tuple(route) for route in found] for server, found in json.loads(shown.splitlines()[-1]).items()}


def status(method: str, url: str, token: str | None) -> int:
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    request = urllib.request.Request(url, method=method, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


@pytest.mark.parametrize(("token", "refused"), [(None, 401), ("f" * 32, 403)], ids=["no token", "a wrong one"])
@pytest.mark.parametrize("server", ["dashboard", "agent"])
def test_who_has_no_token_is_told_nothing_and_starts_nothing(
    head: Head, routes: dict[str, list[tuple[str, str]]], server: str, token: str | None, refused: int
) -> None:
    root = head.dashboard if server == "dashboard" else head.agent
    asked = {route: root + re.sub(r"\{\w+\}", "x", route[1]) for route in routes[server]}
    assert len(asked) > 5
    answers = {route: status(route[0], url, token) for route, url in asked.items() if route != LOGIN}
    assert {route for route, code in answers.items() if code != refused} <= PUBLIC


def test_the_page_takes_no_wrong_token(head: Head) -> None:
    method, path = LOGIN
    for token in (None, "f" * 32):
        assert status(method, head.dashboard + path, token) in (401, 403)
    assert status(method, head.dashboard + path, head.token.read_text()) == 200
