"""The daemon's settings: flags over environment over TOML over defaults, checked as a whole, then frozen.

Read by the command line at start and at every SIGHUP; `wiring.py` hands plain values on. What cannot be used is refused
with all its reasons at once, each naming the place, the key and what to do. Must never touch the state directory, and
must never let a refused configuration through in part.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Literal, TypeAlias, cast

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from penstock.ports import PenstockError

ENVIRONMENT_PREFIX = "PENSTOCK_"
NESTING = "__"
"""Separates section and key in a variable's name. Names without it, PENSTOCK_PIPELINE_ID say, are no settings."""

BUILT_IN_TOOLCHAINS = ("command", "python")

_LONGEST_SOCKET_PATH_BYTES = 107
"""What fits into sockaddr_un.sun_path with its final NUL."""
_DAY_SECONDS = 86_400.0
_RESERVED_ENVIRONMENT = re.compile(r"PENSTOCK_|NOTIFY_SOCKET$|WATCHDOG_|LISTEN_|INVOCATION_ID$")
"""What a pipeline gets from nobody but the daemon, or must not get at all (design section 5)."""


# --- refusals -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Refusal:
    """One reason why a configuration cannot be used."""

    file: str
    """Where the value was given: a file, an environment variable or a flag."""
    key: str
    """Dotted, as in ``api.listen``; empty when the whole file is meant."""
    reason: str

    def __str__(self) -> str:
        return ": ".join(part for part in (self.file, self.key, self.reason) if part)


class ConfigRefused(PenstockError):
    """The configuration cannot be used; the text is one line for each of `refusals`."""

    def __init__(self, refusals: Iterable[Refusal]) -> None:
        self.refusals = tuple(refusals)
        super().__init__("\n".join(map(str, self.refusals)))


# --- addresses ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """A loopback host and a port; port 0 = any free one."""

    host: str
    port: int


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """The absolute path of a unix socket."""

    path: Path


Address: TypeAlias = TcpAddress | UnixAddress

_HOST_AND_PORT = re.compile(r"(?:\[(?P<v6>[^\[\]]*)\]|(?P<host>[^\[\]:]*)):(?P<port>[0-9]{1,5})")


def parse_listen(text: str) -> Address:
    """Read ``host:port`` or ``unix:/path``. Raises ValueError with the reason, also for what others could reach."""
    if text.startswith("unix:"):
        return UnixAddress(_socket_path(text.removeprefix("unix:")))
    match = _HOST_AND_PORT.fullmatch(text)
    if match is None:
        raise ValueError('must be "HOST:PORT", as in "127.0.0.1:8080", or "unix:/absolute/path"')
    host, port = match["host"] if match["v6"] is None else match["v6"], int(match["port"])
    if port > 65_535:
        raise ValueError(f"port {port} does not exist; the highest is 65535")
    if not _is_loopback(host):
        raise ValueError(
            f'others could reach "{host}", and there is no authentication; use a loopback address (127.0.0.1, [::1], '
            "localhost) or unix:/absolute/path"
        )
    return TcpAddress(host, port)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    for kind in (IPv4Address, IPv6Address):
        try:
            return kind(host).is_loopback
        except ValueError:
            continue
    return False


def _socket_path(path: str) -> Path:
    if not path.startswith("/") or path.endswith("/") or "\0" in path:
        raise ValueError('a unix socket is given by its absolute path, as in "unix:/run/penstock/api.sock"')
    if len(path.encode(errors="surrogateescape")) > _LONGEST_SOCKET_PATH_BYTES:
        raise ValueError(f"the path of a unix socket may have at most {_LONGEST_SOCKET_PATH_BYTES} bytes")
    return Path(path)


# --- what values may be ---------------------------------------------------------------------------------------------


def _number(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError(f"must be a number, is {_shown(value)}")
    return value


def _argv(value: object) -> object:
    """A list as it is, or as JSON, which is how an environment variable holds one."""
    words = _from_json(value)
    example = 'must be a list of words, as in ["mytool", "{program_file}"]'
    if not isinstance(words, (list, tuple)):
        raise ValueError(f"{example}, is {_shown(value)}")
    for word in cast("Sequence[object]", words):
        if not isinstance(word, str):
            raise ValueError(f"{example}; {_shown(word)} is no text")
        if "\0" in word:
            raise ValueError("holds a NUL character, which no program can be given")
    if words and not words[0]:
        raise ValueError("its first word, the tool, is empty")
    return cast("object", words)


def _variables(value: object) -> object:
    table = _from_json(value)
    if not isinstance(table, dict):
        raise ValueError(f'must be a table of texts, as in {{ LANG = "C" }}, is {_shown(value)}')
    for name, text in cast("dict[object, object]", table).items():
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise ValueError(f"{_shown(name)} is no name of an environment variable")
        if _RESERVED_ENVIRONMENT.match(name):
            raise ValueError(f"{name} is reserved: the daemon alone decides what a pipeline gets there")
        if not isinstance(text, str) or "\0" in text:
            raise ValueError(f"{name} must be text without NUL characters, is {_shown(text)}")
    return cast("object", table)


def _from_json(value: object) -> object:
    if isinstance(value, str):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def _message_pattern(value: str) -> str:
    try:
        groups = re.compile(value, re.MULTILINE).groupindex
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"is no regular expression: {error}") from error
    if "line" not in groups:
        raise ValueError("has no group (?P<line>...), so that it could not tell where a message belongs")
    return value


def _absolute(value: Path) -> Path:
    if not value.is_absolute() or "\0" in str(value):
        raise ValueError(f"must be an absolute path, is {_shown(str(value))}")
    return value


def _listen(value: str) -> str:
    parse_listen(value)
    return value


_SQLITE = "sqlite:///"


def _store_url(value: str) -> str:
    path = value.removeprefix(_SQLITE).replace("{state_dir}", "/")
    if not value.startswith(_SQLITE):
        raise ValueError(f"must be {_SQLITE} and a path; there is no other kind of store")
    if not path.startswith("/") or path.endswith("/") or re.search(r"[\0?#{}]", path):
        raise ValueError(
            f'must name a file by its absolute path, as in "{_SQLITE}{{state_dir}}/penstock.db", is {_shown(value)}'
        )
    return value


_Argv = Annotated[tuple[str, ...], BeforeValidator(_argv)]


# --- the settings ---------------------------------------------------------------------------------------------------


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Daemon(_Section):
    """`[daemon]`: the process itself."""

    state_dir: Annotated[Path, AfterValidator(_absolute)]
    """Everything that lasts. Its default depends on the environment: `default_state_dir`."""
    log_format: Literal["auto", "text", "json"] = "auto"
    """`auto` = text on a terminal, JSON otherwise."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"


class Api(_Section):
    """`[api]`: where requests are served."""

    listen: Annotated[str, AfterValidator(_listen)] = "127.0.0.1:8080"

    @property
    def address(self) -> Address:
        """`listen`, read."""
        return parse_listen(self.listen)


class Store(_Section):
    """`[store]`: where rows and events are kept."""

    url: Annotated[str, AfterValidator(_store_url)] = "sqlite:///{state_dir}/penstock.db"


class Runner(_Section):
    """`[runner]`: how pipelines are run and stopped."""

    executor: Literal["process"] = "process"
    provisioning_timeout_seconds: Annotated[float, BeforeValidator(_number), Field(ge=1, le=_DAY_SECONDS)] = 20.0
    """How long Provisioning may last, unless `runtime_config.provisioning_timeout_secs` says otherwise."""
    stop_grace_seconds: Annotated[float, BeforeValidator(_number), Field(ge=0, le=_DAY_SECONDS)] = 30.0
    """How long a graceful stop may take before it becomes a forced one; 0 = each stop is forced."""
    on_exit: Literal["leave", "stop"] = "leave"
    """What becomes of running pipelines when the daemon is told to end."""
    after_reboot: Literal["start", "leave"] = "start"
    """What becomes of a pipeline that ran when the host went down."""


class Events(_Section):
    """`[events]`: the history of each pipeline."""

    retention: Annotated[int, BeforeValidator(_number), Field(ge=1, le=1_000_000)] = 720
    """How many events of a pipeline are kept."""
    details_interval_seconds: Annotated[float, BeforeValidator(_number), Field(ge=0, le=30 * _DAY_SECONDS)] = 600.0
    """How often at most a change of details alone becomes an event."""


class Logs(_Section):
    """`[logs]`: what pipelines print."""

    max_bytes: Annotated[int, BeforeValidator(_number), Field(ge=262_144, le=1 << 40)] = 10_000_000
    """How much of a pipeline's log is kept."""


class Toolchain(_Section):
    """`[toolchains.NAME]`: one toolchain, or what is changed of a built-in one (design section 4)."""

    check: _Argv = ()
    build: _Argv = ()
    run: _Argv = ()
    contract: Literal["process", "http"] = "process"
    timeout_seconds: Annotated[float, BeforeValidator(_number), Field(ge=1, le=_DAY_SECONDS)] = 600.0
    env: Annotated[dict[str, str], BeforeValidator(_variables)] = Field(default_factory=dict)
    messages: Annotated[str, AfterValidator(_message_pattern)] | None = None


class Toolchains(BaseModel):
    """`[toolchains]`: what gives programs their meaning; every key that is no field is the name of a toolchain."""

    model_config = ConfigDict(frozen=True, extra="allow")
    __pydantic_extra__: dict[str, Toolchain] = Field(init=False)  # pyright: ignore[reportIncompatibleVariableOverride] - pydantic's own way to type them

    default: str = "python"
    parallel: Annotated[int, BeforeValidator(_number), Field(ge=1, le=64)] = 2
    """How many checks and builds may run at a time."""

    @property
    def named(self) -> Mapping[str, Mapping[str, object]]:
        """The configured toolchains by name, each with the fields that were given and no others."""
        return MappingProxyType({name: one.model_dump(exclude_unset=True) for name, one in self._configured.items()})

    @property
    def _configured(self) -> dict[str, Toolchain]:
        return self.__pydantic_extra__ or {}


class Settings(BaseSettings):
    """Everything that can be set; see `config.example.toml` for units, defaults and reasons. Made by `load`."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid")

    daemon: Daemon
    api: Api = Field(default_factory=Api)
    store: Store = Field(default_factory=Store)
    runner: Runner = Field(default_factory=Runner)
    events: Events = Field(default_factory=Events)
    logs: Logs = Field(default_factory=Logs)
    toolchains: Toolchains = Field(default_factory=Toolchains)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        # Nothing is read behind the caller's back: `resolve` reads, since it must tell where each value came from.
        return (init_settings,)

    @property
    def database_path(self) -> Path:
        """The file of the store."""
        return Path(self.store.url.removeprefix(_SQLITE).replace("{state_dir}", str(self.daemon.state_dir)))

    def values(self) -> dict[str, object]:
        """Every setting by its dotted key; of toolchains what was given."""
        flat: dict[str, object] = {}
        for section, fields in self.model_dump(exclude={"toolchains"}).items():
            flat |= {f"{section}.{key}": value for key, value in fields.items()}
        flat |= {"toolchains.default": self.toolchains.default, "toolchains.parallel": self.toolchains.parallel}
        for name, fields in self.toolchains.named.items():
            flat |= {f"toolchains.{name}.{key}": value for key, value in fields.items()} or {f"toolchains.{name}": {}}
        return flat


_RELOADABLE = (
    "daemon.log_level",
    "runner.provisioning_timeout_seconds",
    "runner.stop_grace_seconds",
    "runner.on_exit",
    "runner.after_reboot",
    "events.",
    "logs.max_bytes",
    "toolchains.",
)


def reloadable_changes(old: Settings, new: Settings) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Tell which keys differ: those that a running daemon can take over, and those that need a restart; sorted."""
    before, after = old.values(), new.values()
    changed = sorted(key for key in before.keys() | after.keys() if before.get(key) != after.get(key))
    return (
        tuple(key for key in changed if key.startswith(_RELOADABLE)),
        tuple(key for key in changed if not key.startswith(_RELOADABLE)),
    )


# --- reading them ---------------------------------------------------------------------------------------------------

_Path: TypeAlias = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Given:
    """One value and where it was given."""

    path: _Path
    value: object
    origin: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved:
    """Settings and where they came from."""

    settings: Settings
    file: Path | None
    """The file that was read; None when there is none."""
    origins: Mapping[str, str]
    """By dotted key: the file, variable or flag that gave the value; what has its default is not in it."""

    def changed(self) -> dict[str, object]:
        """The values that differ from their defaults, by dotted key."""
        state_dir = {"daemon": {"state_dir": self.settings.daemon.state_dir}}
        defaults = Settings(**state_dir).values()  # type: ignore[arg-type]
        return {
            key: value
            for key, value in self.settings.values().items()
            if key in self.origins and (key == "daemon.state_dir" or key not in defaults or value != defaults[key])
        }


def load(config_path: Path | None, *, environ: Mapping[str, str], overrides: Mapping[str, object]) -> Settings:
    """Read the settings; see `resolve`. Raises ConfigRefused."""
    return resolve(config_path, environ=environ, overrides=overrides).settings


def resolve(config_path: Path | None, *, environ: Mapping[str, str], overrides: Mapping[str, object]) -> Resolved:
    """Read the settings, and tell where each came from. Raises ConfigRefused with everything that is wrong.

    `config_path` None = the first of `config_files` that exists, if any. `overrides` are the flags, by dotted key.
    Reads one file and nothing else.
    """
    file = config_path or next((path for path in config_files(environ) if path.is_file()), None)
    refusals: list[Refusal] = []
    given = {
        one.path: one
        for one in (
            *_from_surroundings(environ),
            *(() if file is None else _from_file(file, refusals)),
            *_from_environment(environ, refusals),
            *(_Given(tuple(key.split(".")), value, _flag(key)) for key, value in overrides.items()),
        )
    }
    refusals += [
        Refusal(one.origin, ".".join(one.path), "must be UTF-8") for one in given.values() if _garbled(one.value)
    ]
    if ("daemon", "state_dir") not in given:
        refusals.append(
            Refusal("environment", "daemon.state_dir", "has no default without HOME, XDG_STATE_HOME or STATE_DIRECTORY")
        )
    settings = _validated(given, refusals)
    if settings is not None:
        refusals += [Refusal(_origin(given, path), ".".join(path), reason) for path, reason in _conflicts(settings)]
    if settings is None or refusals:
        raise ConfigRefused(refusals)
    origins = {".".join(one.path): one.origin for one in given.values() if one.origin != _DEFAULT}
    return Resolved(settings=settings, file=file, origins=MappingProxyType(origins))


def config_files(environ: Mapping[str, str]) -> tuple[Path, ...]:
    """Where the configuration is looked for when none is named, the nearest first."""
    home = environ.get("XDG_CONFIG_HOME", "")
    own = home if home.startswith("/") else f"{environ['HOME']}/.config" if environ.get("HOME") else None
    system = Path("/etc/penstock/config.toml")
    return (system,) if own is None else (Path(own) / "penstock" / "config.toml", system)


_DEFAULT = "default"


def _garbled(value: object) -> bool:
    """Whether the bytes of a variable or a flag were no UTF-8."""
    return isinstance(value, str) and value.encode(errors="replace").decode() != value


def _flag(key: str) -> str:
    return "--" + key.rpartition(".")[2].replace("_", "-")


def _from_surroundings(environ: Mapping[str, str]) -> Iterator[_Given]:
    """The default of `state_dir`: what systemd made for us, else the user's own."""
    path = ("daemon", "state_dir")
    home = environ.get("XDG_STATE_HOME", "")
    if directories := environ.get("STATE_DIRECTORY"):
        yield _Given(path, directories.split(":")[0], "$STATE_DIRECTORY")
    elif home.startswith("/"):
        yield _Given(path, f"{home}/penstock", _DEFAULT)
    elif environ.get("HOME"):
        yield _Given(path, f"{environ['HOME']}/.local/state/penstock", _DEFAULT)


def _from_file(file: Path, refusals: list[Refusal]) -> list[_Given]:
    try:
        table = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        refusals.append(Refusal(str(file), "", f"cannot be read: {error.strerror}"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        refusals.append(Refusal(str(file), "", f"is not valid TOML: {error}"))
    else:
        return list(_leaves(table, str(file), refusals))
    return []


def _from_environment(environ: Mapping[str, str], refusals: list[Refusal]) -> Iterator[_Given]:
    """One variable at a time, so that each value keeps the name of its variable."""
    source = EnvSettingsSource(
        Settings, case_sensitive=False, env_prefix=ENVIRONMENT_PREFIX, env_nested_delimiter=NESTING
    )
    for name in sorted(environ):
        words = name.removeprefix(ENVIRONMENT_PREFIX).lower().split(NESTING)
        if not name.startswith(ENVIRONMENT_PREFIX) or len(words) == 1:
            continue
        if words[0] not in Settings.model_fields:
            refusals.append(Refusal(name, ".".join(words), _unknown((words[0],))))
            continue
        if len(words) > (3 if words[0] == "toolchains" else 2):
            refusals.append(
                Refusal(name, ".".join(words), "unknown key; a table or a list is given as a whole, in JSON")
            )
            continue
        source.env_vars = {name.lower(): environ[name]}
        yield from _leaves(source(), name, refusals)


def _leaves(table: Mapping[str, object], origin: str, refusals: list[Refusal]) -> Iterator[_Given]:
    """Take the tables apart into their values; refuse what is no table where one belongs, or belongs nowhere."""
    for section, content in table.items():
        if section not in Settings.model_fields:
            refusals.append(Refusal(origin, section, _unknown((section,))))
        elif not isinstance(content, dict):
            refusals.append(Refusal(origin, section, f"must be a table, is {_shown(content)}"))
        else:
            for key, value in cast("dict[str, object]", content).items():
                if section != "toolchains" or key in Toolchains.model_fields:
                    yield _Given((section, key), value, origin)
                elif isinstance(value, dict):
                    yield _Given((section, key), {}, origin)
                    for field, each in cast("dict[str, object]", value).items():
                        yield _Given((section, key, field), each, origin)
                else:
                    refusals.append(Refusal(origin, f"{section}.{key}", _unknown((section, key))))


def _validated(given: Mapping[_Path, _Given], refusals: list[Refusal]) -> Settings | None:
    tables: dict[str, dict[str, object]] = {"daemon": {}}
    for (section, key, *field), one in ((one.path, one) for one in given.values()):
        table = tables.setdefault(section, {})
        if field:
            cast("dict[str, object]", table[key])[field[0]] = one.value
        else:
            table[key] = dict(cast("dict[str, object]", one.value)) if one.value == {} else one.value
    try:
        return Settings(**tables)  # type: ignore[arg-type]
    except ValidationError as error:
        for detail in error.errors(include_url=False):
            path = tuple(word for word in detail["loc"] if isinstance(word, str))
            if detail["type"] != "missing":
                refusals.append(Refusal(_origin(given, path), ".".join(path), _reason(path, detail)))
        return None


def _origin(given: Mapping[_Path, _Given], path: _Path) -> str:
    for length in range(len(path), 0, -1):
        if path[:length] in given:
            return given[path[:length]].origin
    return _DEFAULT


def _conflicts(settings: Settings) -> Iterator[tuple[_Path, str]]:
    """What is fine by itself and does not fit the rest."""
    toolchains = settings.toolchains
    names = {*BUILT_IN_TOOLCHAINS, *toolchains.named}
    if toolchains.default not in names:
        yield (
            ("toolchains", "default"),
            f"there is no toolchain {_shown(toolchains.default)}; {_nearest(toolchains.default, names)}",
        )
    for name, fields in toolchains.named.items():
        if not re.fullmatch(r"[a-z][a-z0-9_-]{0,63}", name):
            yield (
                ("toolchains", name),
                "a toolchain's name has at most 64 of a-z, 0-9, _ and -, and begins with a letter",
            )
        if fields.get("messages") is not None and not fields.get("check", name == "python"):
            yield ("toolchains", name, "messages"), "reads what a check prints, but there is no check; give one"
    pipelines = settings.daemon.state_dir / "pipelines"
    if settings.database_path.is_relative_to(pipelines):
        yield ("store", "url"), f"{pipelines} belongs to the pipelines, whose data is deleted there; keep it elsewhere"
    address = settings.api.address
    if isinstance(address, UnixAddress) and address.path.is_relative_to(pipelines):
        yield ("api", "listen"), f"{pipelines} belongs to the pipelines, whose data is deleted there; keep it elsewhere"
    if isinstance(address, UnixAddress) and address.path == settings.database_path:
        yield ("api", "listen"), "is the file of the store; the socket needs a path of its own"


# --- plain words ----------------------------------------------------------------------------------------------------


def _reason(path: _Path, detail: ErrorDetails) -> str:
    """Say what pydantic found in words for somebody who wrote a configuration."""
    context, is_ = detail.get("ctx", {}), f"is {_shown(detail['input'])}"
    match detail["type"]:
        case "extra_forbidden":
            return _unknown(path)
        case "value_error":
            return str(context["error"])
        case "literal_error":
            choices = str(context["expected"]).replace("'", '"')
            return f"must be {choices}, {is_}"
        case "greater_than_equal":
            return f"must be at least {context['ge']:.15g}, {is_}"
        case "less_than_equal":
            return f"must be at most {context['le']:.15g}, {is_}"
        case "int_type" | "int_parsing" | "int_from_float" | "int_parsing_size":
            return f"must be a whole number, {is_}"
        case "float_type" | "float_parsing" | "finite_number":
            return f"must be a number, {is_}"
        case "string_type" | "path_type":
            return f"must be text, {is_}"
        case _:
            return f"cannot be used: {detail['msg']}"


def _unknown(path: _Path) -> str:
    """Say that there is no such key, and which one may have been meant."""
    fields = {name: _fields(name) for name in Settings.model_fields}
    here = list(fields) if len(path) == 1 else list(Toolchain.model_fields) if len(path) == 3 else fields[path[0]]
    elsewhere = [f"{section}.{path[-1]}" for section, keys in fields.items() if path[-1] in keys]
    if elsewhere and not get_close_matches(path[-1], here, n=1):
        return f'unknown key; did you mean "{elsewhere[0]}"?'
    return f"unknown key; {_nearest(path[-1], here)}"


def _fields(section: str) -> list[str]:
    annotation = Settings.model_fields[section].annotation
    return list(cast("type[BaseModel]", annotation).model_fields)


def _nearest(word: str, known: Iterable[str]) -> str:
    names = sorted(known)
    found = get_close_matches(word, names, n=1)
    return f'did you mean "{found[0]}"?' if found else f"known are {', '.join(names)}"


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else f"{text[:77]}..."
