"""How commands find a daemon, what they tell it, and what they say when it is not there or is something else."""

from __future__ import annotations

import os
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from penstock.cli.client import DEFAULT_LISTEN, Client, find, key_for
from penstock.cli.failures import Failure, Refused, Unreachable
from penstock.settings import load


def http(status: str, body: bytes = b"", *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


class Server:
    """Gives the answers, one connection after another; a connection lasts for as many answers as its list has."""

    def __init__(self, path: Path, *connections: list[bytes]) -> None:
        self.url = f"unix:{path}"
        self.requests: list[bytes] = []
        self._connections = connections
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        for answers in self._connections:
            with suppress(OSError):
                connection, _ = self._listener.accept()
                with connection:
                    connection.settimeout(10)
                    for answer in answers:
                        request = b""
                        while not _is_whole(request):
                            data = connection.recv(65536)
                            if not data:
                                return
                            request += data
                        self.requests.append(request)
                        connection.sendall(answer)

    def end(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(10)


def _is_whole(request: bytes) -> bool:
    head, end, body = request.partition(b"\r\n\r\n")
    found = re.search(rb"Content-Length: (\d+)", head)
    return bool(end) and len(body) >= (int(found[1]) if found else 0)


@pytest.fixture
def client_of(tmp_path: Path) -> Iterator[object]:
    ended: list[Client | Server] = []

    def begin(*connections: list[bytes], key: str | None = None) -> tuple[Client, Server]:
        server = Server(tmp_path / "api.sock", *connections)
        client = Client(find(server.url, {}), key, patience_seconds=1)
        ended.extend((client, server))
        return client, server

    yield begin
    for each in ended:
        each.__exit__() if isinstance(each, Client) else each.end()


class TestFinding:
    @pytest.mark.parametrize(
        ("flag", "environ", "url"),
        [
            (None, {}, "http://127.0.0.1:8080"),
            ("unix:/a", {"PENSTOCK_URL": "unix:/b"}, "unix:/a"),
            (None, {"PENSTOCK_URL": "h:1", "FELDERA_HOST": "http://x"}, "http://h:1"),
            (None, {"FELDERA_HOST": "https://x/base/", "PENSTOCK_API__LISTEN": "unix:/c"}, "https://x/base/"),
            (None, {"PENSTOCK_URL": "", "PENSTOCK_API__LISTEN": "unix:/c"}, "unix:/c"),
            ("0.0.0.0:80", {}, "http://127.0.0.1:80"),
            ("[::]:80", {}, "http://[::1]:80"),
        ],
    )
    def test_what_is_nearest_counts(self, flag: str | None, environ: dict[str, str], url: str) -> None:
        assert find(flag, environ).url == url

    @pytest.mark.parametrize(
        "where", ["", "[api]\n", "[api]\nlisten = 'unix:/run/x.sock'\n", "[api]\nlisten='[::1]:9'\n"]
    )
    @pytest.mark.parametrize("by", ["HOME", "XDG_CONFIG_HOME"])
    def test_as_serve_reads_its_configuration(self, tmp_path: Path, where: str, by: str) -> None:
        home = tmp_path / "config"
        file = (home / ".config" if by == "HOME" else home) / "penstock" / "config.toml"
        file.parent.mkdir(parents=True)
        file.write_text(where)
        environ = {"HOME": "/nonexistent", by: str(home)}
        listen = load(None, environ=environ, overrides={}).api.listen
        assert find(None, environ).url == (listen if listen.startswith("unix:") else f"http://{listen}")

    def test_default(self) -> None:
        assert load(None, environ={"HOME": "/nonexistent"}, overrides={}).api.listen == DEFAULT_LISTEN

    def test_a_configuration_that_cannot_be_read(self, tmp_path: Path) -> None:
        (tmp_path / "penstock").mkdir()
        (tmp_path / "penstock" / "config.toml").write_text("[api")
        with pytest.raises(Failure) as caught:
            find(None, {"XDG_CONFIG_HOME": str(tmp_path)})
        assert caught.value.exit_code == 78

    @pytest.mark.parametrize("url", ["ftp://x", "http://", "x:port", "x:0", "http://[::1", "unix"])
    def test_what_is_no_address(self, url: str) -> None:
        if url == "unix":  # a host of that name
            Client(find(url, {})).__exit__()
            return
        with pytest.raises(Failure) as caught:
            Client(find(url, {}))
        assert caught.value.exit_code == 2

    def test_a_key_for_feldera_is_not_shown_to_others(self) -> None:
        feldera = {"FELDERA_API_KEY": "f"}
        both = {**feldera, "PENSTOCK_API_KEY": "p"}
        assert key_for(find("http://x", feldera), feldera) is None
        assert key_for(find(None, {"PENSTOCK_URL": "http://x"}), feldera) is None
        assert key_for(find(None, {"FELDERA_HOST": "http://x"}), feldera) == "f"
        assert key_for(find(None, {}), feldera) == "f"
        assert key_for(find("http://x", both), both) == "p"
        assert key_for(find(None, {}), {}) is None


class TestAsking:
    def test_what_has_not_changed_is_the_very_same(self, client_of) -> None:  # type: ignore[no-untyped-def]
        one, two = http("200 OK", b'{"a":1}', 'ETag: "1"'), http("200 OK", b'{"a":2}', 'ETag: "2"')
        client, server = client_of([one, http("304 Not Modified"), two])
        first = client.get("/v0/x", selector="status")
        assert client.get("/v0/x", selector="status") is first
        assert client.get("/v0/x", selector="status") == {"a": 2}
        assert server.requests[0].startswith(b"GET /v0/x?selector=status HTTP/1.1\r\n")
        assert b"If-None-Match" not in server.requests[0]
        assert b'If-None-Match: "1"\r\n' in server.requests[1]

    def test_the_key_and_the_body(self, client_of) -> None:  # type: ignore[no-untyped-def]
        client, server = client_of([http("202 Accepted", b'"ok"')], key="secret")
        assert client.send("POST", "/v0/x", {"name": "ü"}, if_match='"1"') == "ok"
        (request,) = server.requests
        assert b"Authorization: Bearer secret\r\n" in request
        assert b"Content-Type: application/json\r\n" in request
        assert b'If-Match: "1"\r\n' in request

    def test_a_kept_connection_that_was_given_up(self, client_of) -> None:  # type: ignore[no-untyped-def]
        """A question is asked again; what may have been done is not."""
        client, server = client_of([http("200 OK", b"1")], [http("200 OK", b"2")], [http("200 OK", b"3")])
        assert [client.get("/x"), client.get("/x")] == [1, 2]
        with pytest.raises(Unreachable, match="broke off"):
            client.send("POST", "/x")
        assert len(server.requests) == 2

    @pytest.mark.parametrize(
        ("answer", "message", "code"),
        [
            (http("404 Not Found", b'{"message":"m","error_code":"UnknownPipelineName","details":{}}'), "m", 3),
            (http("400 Bad Request", b'{"message":"m","error_code":"InvalidJson","details":{}}'), "m", 1),
            (http("503 Unavailable", b'{"message":"m","error_code":"StoreUnavailable","details":{}}'), "m", 75),
            (http("401 Unauthorized"), "asks for an API key", 1),
            (http("404 Not Found", b"<html>"), "is no Penstock: 404 Not Found", 5),
            (http("200 OK", b"<html>"), "is no Penstock: 200 OK", 5),
            (http("302 Found", b"", "Location: /login"), "is no Penstock: 302 Found", 5),
            (b"220 mail.example.org ESMTP\r\n\r\n", "broke off before the answer: ", 5),
            (b"", "has not answered in time", 5),
        ],
    )
    def test_what_may_be_answered(self, client_of, answer: bytes, message: str, code: int) -> None:  # type: ignore[no-untyped-def]
        client, _ = client_of([answer, b""], [answer])
        with pytest.raises(Failure) as caught:
            client.send("POST", "/x")
        assert message in caught.value.message
        assert caught.value.exit_code == code
        assert isinstance(caught.value, Refused) is (code in (1, 3, 75))

    def test_nobody_is_there(self, tmp_path: Path) -> None:
        with pytest.raises(Unreachable) as caught:
            Client(find(f"unix:{tmp_path}/x", {})).get("/x")
        assert caught.value.lines() == [
            f"penstock: no daemon at unix:{tmp_path}/x (--url): No such file or directory",
            "  try: penstock serve, or say where it is by --url",
        ]

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may use every socket")
    def test_the_daemon_of_somebody_else(self, client_of) -> None:  # type: ignore[no-untyped-def]
        client, server = client_of([])
        os.chmod(server.url.removeprefix("unix:"), 0)
        with pytest.raises(Unreachable, match="you may not use"):
            client.get("/x")
