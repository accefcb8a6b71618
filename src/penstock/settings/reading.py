"""Reads settings from flags, environment and one file, remembers where each value came from, and words the refusals.

Called through `load` and `resolve`. Reads one file and nothing else.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType
from typing import cast

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import EnvSettingsSource

from penstock.ports import PenstockError
from penstock.settings.schema import KeyPath, Settings, Toolchain, Toolchains, conflicts
from penstock.settings.values import nearest, shown

ENVIRONMENT_PREFIX = "PENSTOCK_"
NESTING = "__"
"""Separates section and key in a variable's name. Names without it, PENSTOCK_PIPELINE_ID say, are no settings."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """One reason why a configuration cannot be used."""

    file: str
    """Where the value was given: a file, an environment variable or a flag."""
    key: str
    """Dotted, as in ``api.listen``; empty when the whole file is meant."""
    reason: str

    def __str__(self) -> str:
        """One line, whatever was written into names and values."""
        text = ": ".join(part for part in (self.file, self.key, self.reason) if part)
        return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)


class ConfigRefused(PenstockError):
    """The configuration cannot be used; the text is one line for each of `refusals`."""

    def __init__(self, refusals: Iterable[Refusal]) -> None:
        self.refusals = tuple(refusals)
        super().__init__("\n".join(map(str, self.refusals)))


@dataclass(frozen=True, slots=True)
class _Given:
    """One value and where it was given."""

    path: KeyPath
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
    file = config_path or next((path for path in config_files(environ) if _is_there(path)), None)
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
        refusals += [Refusal(_origin(given, path), ".".join(path), reason) for path, reason in conflicts(settings)]
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


def _is_there(file: Path) -> bool:
    """Whether `file` exists, or may: what cannot be looked at is refused when it is read, rather than passed over."""
    try:
        file.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    return True


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
            refusals.append(Refusal(origin, section, f"must be a table, is {shown(content)}"))
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


def _validated(given: Mapping[KeyPath, _Given], refusals: list[Refusal]) -> Settings | None:
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


def _origin(given: Mapping[KeyPath, _Given], path: KeyPath) -> str:
    for length in range(len(path), 0, -1):
        if path[:length] in given:
            return given[path[:length]].origin
    return _DEFAULT


def _reason(path: KeyPath, detail: ErrorDetails) -> str:
    """Say what pydantic found in words for somebody who wrote a configuration."""
    context, is_ = detail.get("ctx", {}), f"is {shown(detail['input'])}"
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


def _unknown(path: KeyPath) -> str:
    """Say that there is no such key, and which one may have been meant."""
    fields = {name: _fields(name) for name in Settings.model_fields}
    here = list(fields) if len(path) == 1 else list(Toolchain.model_fields) if len(path) == 3 else fields[path[0]]
    elsewhere = [f"{section}.{path[-1]}" for section, keys in fields.items() if path[-1] in keys]
    if elsewhere and not get_close_matches(path[-1], here, n=1):
        return f'unknown key; did you mean "{elsewhere[0]}"?'
    return f"unknown key; {nearest(path[-1], here)}"


def _fields(section: str) -> list[str]:
    annotation = Settings.model_fields[section].annotation
    return list(cast("type[BaseModel]", annotation).model_fields)
