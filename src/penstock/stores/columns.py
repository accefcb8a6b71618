"""Turn rows and events into columns and back; the same for every SQL dialect.

Called by the stores. Must never guess: a value that does not decode is a StoreCorrupt that names row and column.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from functools import lru_cache
from operator import attrgetter
from typing import Any, TypeAlias, cast

import msgspec

from penstock.model import (
    Author,
    Bootstrap,
    Fault,
    Initial,
    JsonObject,
    MonitorEvent,
    Pipeline,
    ProgramError,
    ProgramStatus,
    ResourcesDesired,
    ResourcesStatus,
    Resume,
    RuntimeDesired,
    RuntimeStatus,
    Spec,
    StopMode,
    StorageStatus,
)
from penstock.ports import StoreCorrupt

Value: TypeAlias = "str | int | None"
"""What a column holds. None is NULL, and the member's own None."""
Columns: TypeAlias = "dict[str, Value]"


@dataclass(frozen=True, slots=True)
class _Codec:
    """How one member becomes a column; neither function ever sees None. None for a function = as it is."""

    encode: Callable[[Any], Value] | None
    decode: Callable[[Any], Any] | None
    optional: bool = False


class _Table:
    """The columns of one owner, laid out for speed: a row is encoded on each write."""

    def __init__(self, codecs: Mapping[str, _Codec]) -> None:
        self._decoders = tuple((name, codec.decode, codec.optional) for name, codec in codecs.items())
        self._names = tuple(codecs)
        self._encoders = tuple(codec.encode for codec in codecs.values())
        self._members = attrgetter(*codecs)

    def encode(self, owner: object) -> Columns:
        """What the owner's members become."""
        return {
            name: value if encode is None or value is None else encode(value)
            for name, encode, value in zip(self._names, self._encoders, self._members(owner), strict=True)
        }

    def decode(self, columns: Mapping[str, Value], where: str) -> dict[str, Any]:
        """The members that became `columns`. Raises StoreCorrupt, saying `where`."""
        decoded: dict[str, Any] = {}
        for name, decode, optional in self._decoders:
            value = columns[name]
            if value is None:
                if not optional:
                    raise StoreCorrupt(f"{where}, column {name}: empty")
            elif decode is not None:
                try:
                    value = decode(value)
                except ValueError as error:  # of which msgspec's decoding errors are
                    raise StoreCorrupt(f"{where}, column {name}: {error}; it holds {str(value)[:60]!r}") from error
            decoded[name] = value
        return decoded


class _StoredFault(msgspec.Struct):
    code: str
    message: str
    details: dict[str, Any]


class _StoredProgramError(msgspec.Struct):
    sql_compilation: dict[str, Any] | None
    rust_compilation: dict[str, Any] | None
    system_error: str | None


def _json_text(value: object) -> str:
    return _to_json(value).decode()


def _plain(value: object) -> object:
    """Give the encoder what it knows for a Mapping that it does not."""
    if isinstance(value, Mapping):
        return dict(cast("JsonObject", value))
    raise TypeError(f"{type(value).__name__} is not JSON")


@lru_cache(maxsize=4096)  # most stamps of a row are those of its last write
def _stamp(value: datetime) -> str:
    utc = value if value.tzinfo is UTC else value.astimezone(UTC)
    return utc.isoformat(timespec="microseconds")[:-6] + "Z"


def _json(kind: object) -> _Codec:
    return _Codec(_json_text, msgspec.json.Decoder(cast("type[Any]", kind)).decode)


def _enum(kind: type[StrEnum]) -> _Codec:
    return _Codec(str.__str__, kind)


def _fault(text: str) -> Fault:
    stored = _read_fault(text)
    return Fault(stored.code, stored.message, stored.details)


def _program_error(text: str) -> ProgramError:
    stored = _read_program_error(text)
    return ProgramError(stored.sql_compilation, stored.rust_compilation, stored.system_error)


def _maybe(codec: _Codec) -> _Codec:
    return _Codec(codec.encode, codec.decode, optional=True)


_to_json = msgspec.json.Encoder(enc_hook=_plain).encode
_read_fault = msgspec.json.Decoder(_StoredFault).decode
_read_program_error = msgspec.json.Decoder(_StoredProgramError).decode


def _text(value: str) -> str:
    value.encode()  # refuses the lone surrogates that stand for bytes which are not UTF-8
    return value


_TEXT = _Codec(None, _text)
_WHOLE = _Codec(None, None)
_TIME = _Codec(_stamp, datetime.fromisoformat)
_OBJECT = _json(dict[str, Any])
_FAULT = _Codec(_json_text, _fault)

_PIPELINE = _Table(
    {
        "id": _TEXT,
        "tenant": _TEXT,
        "revision": _WHOLE,
        "created_at": _TIME,
        "version": _WHOLE,
        "program_version": _WHOLE,
        "refresh_version": _WHOLE,
        "platform_version": _TEXT,
        "program_status": _enum(ProgramStatus),
        "program_status_since": _TIME,
        "resources_status": _enum(ResourcesStatus),
        "resources_status_since": _TIME,
        "resources_status_details": _maybe(_OBJECT),
        "resources_desired": _enum(ResourcesDesired),
        "resources_desired_since": _TIME,
        "deployment_id": _maybe(_TEXT),
        "deployment_initial": _maybe(_enum(Initial)),
        "bootstrap": _maybe(_json(Bootstrap)),
        "deployment_error": _maybe(_FAULT),
        "runtime_status": _maybe(_enum(RuntimeStatus)),
        "runtime_status_since": _maybe(_TIME),
        "runtime_status_details": _maybe(_OBJECT),
        "runtime_desired": _maybe(_enum(RuntimeDesired)),
        "runtime_desired_since": _maybe(_TIME),
        "storage_status": _enum(StorageStatus),
        "storage_status_details": _maybe(_OBJECT),
        "deployment_location": _maybe(_TEXT),
        "artifact": _maybe(_TEXT),
        "runtime_intent": _maybe(_enum(RuntimeDesired)),
        "stop_mode": _maybe(_enum(StopMode)),
        "stop_deadline": _maybe(_TIME),
        "suspect_since": _maybe(_TIME),
        "resume": _maybe(_json(Resume)),
        "details_written_at": _maybe(_TIME),
        "event_at": _maybe(_TIME),
    }
)
_OUTCOME = _Table(
    {
        "program_error": _Codec(_json_text, _program_error),
        "program_info": _maybe(_OBJECT),
    }
)
_SPEC = _Table(
    {
        "name": _TEXT,
        "description": _TEXT,
        "tags": _json(tuple[str, ...]),
        "program_code": _TEXT,
        "udf_rust": _TEXT,
        "udf_toml": _TEXT,
        "runtime_config": _OBJECT,
        "program_config": _OBJECT,
    }
)
_EVENT = _Table(
    {
        "event_id": _TEXT,
        "sequence": _WHOLE,
        "pipeline_id": _TEXT,
        "tenant": _TEXT,
        "recorded_at": _TIME,
        "cause": _TEXT,
        "author": _enum(Author),
        "deployment_id": _maybe(_TEXT),
        "resources_status": _enum(ResourcesStatus),
        "resources_status_details": _maybe(_OBJECT),
        "resources_desired": _enum(ResourcesDesired),
        "runtime_status": _maybe(_enum(RuntimeStatus)),
        "runtime_status_details": _maybe(_OBJECT),
        "runtime_desired": _maybe(_enum(RuntimeDesired)),
        "deployment_error": _maybe(_FAULT),
        "program_status": _enum(ProgramStatus),
        "storage_status": _enum(StorageStatus),
        "storage_status_details": _maybe(_OBJECT),
    }
)


def of_pipeline(row: Pipeline) -> Columns:
    """The columns of table ``pipeline``."""
    return {**_PIPELINE.encode(row), "name": row.spec.name}


def of_body(row: Pipeline) -> Columns:
    """The columns of table ``pipeline_body``, and the name."""
    return {**_SPEC.encode(row.spec), **_OUTCOME.encode(row), "id": row.id}


def same_body(before: Pipeline, after: Pipeline) -> bool:
    """Tell whether `of_body` is the same for both; quick when the members are the very same objects."""
    return (before.spec, before.program_error, before.program_info) == (
        after.spec,
        after.program_error,
        after.program_info,
    )


def of_event(event: MonitorEvent) -> Columns:
    """The columns of table ``event``; `sequence` is the database's to give."""
    return _EVENT.encode(event)


def to_pipeline(columns: Mapping[str, Value]) -> Pipeline:
    """The row that was stored as `of_pipeline` and `of_body`. Raises StoreCorrupt."""
    where = f"pipeline {columns['id']}"
    spec = Spec(**_SPEC.decode(columns, where))
    return Pipeline(spec=spec, **_PIPELINE.decode(columns, where), **_OUTCOME.decode(columns, where))


def to_event(columns: Mapping[str, Value]) -> MonitorEvent:
    """The event that was stored as `of_event`. Raises StoreCorrupt."""
    return MonitorEvent(**_EVENT.decode(columns, f"event {columns['sequence']}"))
