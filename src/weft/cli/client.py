"""
The client of the control plane's HTTP API (docs/reference/interfaces.md, 4.3): standard library only, one connection
for each call, over the Unix socket in the mesh's runtime directory.
"""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from weft.cli.main import INTERRUPTED
from weft.cli.problems import from_json
from weft.errors import InvalidConfiguration, MeshNotRunning, NotFound, UsageError, WeftError

TIMEOUT_SECONDS = 30.0
"""For one answer; a call that waits adds its own time to this. An edit has no limit, see `Client.edit`."""

RETURN_SECONDS = 5.0
"""How long a command waits for a control plane that died: `weft up` starts another within a second or two."""

PAUSE_SECONDS = 0.05
"""Between two looks for it."""

PROXY_SECONDS = 5.0
"""For what a proxy says of itself, where that is what was asked for."""

LONGEST_WAIT_SECONDS = 600.0
"""What one call may ask the control plane to wait (docs/reference/interfaces.md, 4.3)."""


class Unanswered(WeftError):
    """The control plane was asked and did not answer: what it was asked for may be done, or not."""


class Away(WeftError):
    """The mesh runs, its control plane does not, and that for longer than was to be waited: nothing was asked."""


class Interrupted(WeftError):
    """Ctrl-C, after something was asked for that goes on all the same; the message says what."""

    exit_code = INTERRUPTED


class UnixConnection(http.client.HTTPConnection):
    """http.client over a Unix socket."""

    def __init__(self, path: Path, timeout: float | None) -> None:
        super().__init__("weft", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def ask_proxy(admin: Path, target: str, *, method: str = "GET", seconds: float = PROXY_SECONDS) -> tuple[int, bytes]:
    """
    Ask a proxy on its admin socket, and wait at most *seconds* for each step of it; returns status and body.

    Raises:
        OSError, HTTPException: It does not answer, or says what is no HTTP.
    """
    with closing(UnixConnection(admin, seconds)) as connection:
        connection.request(method, target)
        answer = connection.getresponse()
        return answer.status, answer.read()


class Client:
    """
    Calls of the HTTP API. Values are what JSON gives: dicts, lists, strings, numbers.

    Args:
        patience: Seconds that a control plane may be away while its mesh runs. Only a connection is tried again, of which
            nobody has taken anything.

    Raises (every method):
        MeshNotRunning: Nobody answers at the socket.
        Away: Nobody answers there for longer than `patience`, and the mesh runs.
        Unanswered: The answer did not come, or broke off.
        NotFound, UsageError, InvalidConfiguration: The control plane's 404, 400, 422.
        WeftError: Any other refusal, with the exit code of what the control plane raised, or a broken answer.
    """

    def __init__(self, path: Path, mesh: str = "", *, patience: float = 0.0) -> None:
        self._path = path
        self._patience = patience
        self.mesh = mesh

    def admin_socket(self, workload: str) -> Path:
        """Return where the proxy of *workload* answers for itself (docs/reference/admin.md); see `ask_proxy`."""
        from weft.agent import paths  # the one home of every path

        return paths.mesh_paths(self.mesh).workload(workload).admin_socket

    def get(self, path: str, *, timeout: float = TIMEOUT_SECONDS, **query: object) -> Any:
        """Call `GET path?query`; absent (None) query values are left out."""
        return self._call("GET", _target(path, query), None, timeout)

    def post(self, path: str, body: object, *, timeout: float = TIMEOUT_SECONDS) -> Any:
        """Call `POST path` with *body* as JSON."""
        return self._call("POST", path, body, timeout)

    def edit(self, path: str, body: Mapping[str, object]) -> Any:
        """
        Call `POST path`, which changes the configuration if *body* says no `dry_run`, and wait for as long as that takes.

        The control plane bounds it, and nobody else can know the bound: an edit waits for those before it, and each step
        of one (`weft.controlplane.change`) for proxies that are silent. Who no longer waits takes nothing back.
        """
        try:
            return self._call("POST", path, body, None)
        except (Unanswered, KeyboardInterrupt) as error:
            if body.get("dry_run"):
                raise
            all_the_same = "The change may be made all the same: `weft get` shows what is in force."
            if isinstance(error, Unanswered):
                raise WeftError(f"{error} {all_the_same}") from error
            raise Interrupted(f"Interrupted. {all_the_same}") from error

    def events(
        self, path: str = "/v1/events", *, opened: Callable[[], None] | None = None, **query: object
    ) -> Iterator[dict[str, Any]]:
        """
        Yield the events of a stream of JSON lines until the server ends it, or is ended.

        Args:
            opened: Called once the server has begun to answer, before the first event comes.
        """
        target = _target(path, query)
        with closing(UnixConnection(self._path, None)) as connection:
            answer = self._send(connection, "GET", target, None)
            if answer.status != 200:
                raise _error(answer.status, answer.read())
            if opened is not None:
                opened()
            while line := _line(answer, target):
                if line.strip():
                    yield json.loads(line)

    def _call(self, method: str, target: str, body: object, timeout: float | None) -> Any:
        with closing(UnixConnection(self._path, timeout)) as connection:
            answer = self._send(connection, method, target, body)
            try:
                content = answer.read()
            except (OSError, http.client.HTTPException) as exc:
                raise Unanswered(f"The control plane's answer to {method} {target} broke off: {exc}.") from exc
        if answer.status >= 400:
            raise _error(answer.status, content)
        return json.loads(content)

    def _send(self, connection: UnixConnection, method: str, target: str, body: object) -> http.client.HTTPResponse:
        payload = None if body is None else json.dumps(body).encode()
        headers = {} if payload is None else {"Content-Type": "application/json"}
        try:
            self._connect(connection)
            connection.request(method, target, payload, headers)
            return connection.getresponse()
        except TimeoutError as exc:
            raise Unanswered(f"The control plane did not answer {method} {target} in time.") from exc
        except (OSError, http.client.HTTPException) as exc:
            raise Unanswered(f"The control plane did not answer {method} {target}: {exc}.") from exc

    def _connect(self, connection: UnixConnection) -> None:
        from weft.agent import paths  # the one home of every path

        deadline = time.monotonic() + self._patience
        while True:
            try:
                connection.connect()
                return
            except (FileNotFoundError, ConnectionRefusedError) as exc:
                connection.close()
                if not self._patience or paths.lock_holder(files := paths.mesh_paths(self.mesh)) is None:
                    name = f"mesh {self.mesh!r}" if self.mesh else "mesh"
                    raise MeshNotRunning(f"No {name} answers at {self._path}. `weft up` starts one.") from exc
                if time.monotonic() >= deadline:
                    raise Away(
                        f"The mesh {self.mesh!r} runs, and its control plane does not: `weft up` starts it again by itself."
                        f" What keeps it: {files.log('control-plane')}. `weft status` says what works meanwhile."
                    ) from exc
            time.sleep(PAUSE_SECONDS)


def connect(mesh: str | None, *, patience: float = RETURN_SECONDS) -> Client:
    """
    Return a client of *mesh*, or of the only mesh that runs.

    Raises:
        MeshNotRunning: No mesh of that name, none at all, or several and none named; the message lists what runs.
    """
    from weft.agent import paths  # the one home of every path

    found = paths.find(mesh)
    return Client(found.api_socket, found.mesh, patience=patience)


def _line(answer: http.client.HTTPResponse, target: str) -> bytes:
    """Return the next line of a stream; empty at its end, which is also how a killed server's stream looks."""
    try:
        line = answer.readline()
    except (OSError, http.client.HTTPException) as exc:
        raise Unanswered(f"The control plane's answer to GET {target} broke off: {exc}.") from exc
    if line and not line.endswith(b"\n"):
        raise Unanswered(f"The control plane's answer to GET {target} broke off.")
    return line


def _target(path: str, query: dict[str, Any]) -> str:
    given = {key: value for key, value in query.items() if value is not None}
    return f"{quote(path)}?{urlencode(given)}" if given else quote(path)


def _error(status: int, content: bytes) -> WeftError:
    try:
        body = json.loads(content)
        message = str(body["error"])
    except (ValueError, KeyError, TypeError):
        return WeftError(f"The control plane answered {status}: {content[:200].decode(errors='replace')}")
    if status == 422:
        return InvalidConfiguration(from_json(body.get("problems", ())))
    error = {400: UsageError, 404: NotFound}.get(status, WeftError)(message)
    error.exit_code = int(body.get("exit_code", error.exit_code))
    return error
