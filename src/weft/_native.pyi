"""The Rust part of weft, as Python sees it. docs/reference/interfaces.md, section 5, says what each call promises."""

from collections.abc import Sequence
from os import PathLike
from typing import Literal, TypeAlias, TypedDict, final

__all__ = ["Engine", "RecordStore", "StreamCore", "validate"]

_Event: TypeAlias = (
    tuple[Literal["connected"], int, bytes, int | None]
    | tuple[Literal["synced"], int, str, int]
    | tuple[Literal["refused"], int, str, str, str, str, str]
    | tuple[Literal["closed"], int]
)

@final
class StreamCore:
    """An xDS server on a Unix socket, in a thread of its own. Make it after forking, not before."""

    def __new__(cls, path: str | PathLike[str]) -> StreamCore: ...
    def publish(self, view: str, revision: int, resources: Sequence[tuple[str, str, str, bytes]]) -> None: ...
    def withdraw(self, view: str) -> None: ...
    def attach(self, stream: int, view: str) -> None: ...
    def events(self) -> list[_Event]: ...
    def fileno(self) -> int: ...
    def close(self) -> None: ...

_Record: TypeAlias = tuple[str, str, bool, float, bytes]

class _RecordStatus(TypedDict):
    records: int
    bytes: int
    limit_bytes: int
    lost: int

@final
class RecordStore:
    """The access log service on a Unix socket, and what it received. Make it after forking, not before."""

    def __new__(
        cls, socket: str | PathLike[str], directory: str | PathLike[str], *, limit_bytes: int = ...
    ) -> RecordStore: ...
    def find(self, request_id: str) -> list[_Record]: ...
    def recent(
        self, limit: int, logs: Sequence[str], *, nodes: Sequence[str] | None = None, failed: bool = False
    ) -> list[_Record]: ...
    def status(self) -> _RecordStatus: ...
    def close(self) -> None: ...

@final
class Engine:
    """The proxy's decision code on a set of resources; immutable once made."""

    def __new__(cls, resources: Sequence[tuple[str, str, bytes]], *, strict: bool = True) -> Engine: ...
    @property
    def not_applied(self) -> list[tuple[str, str, str, str]]: ...
    def explain(self, request: str) -> str: ...
    def decide(self, request: str) -> str: ...

def validate(type_url: str, value: bytes) -> list[tuple[str, str]]: ...
