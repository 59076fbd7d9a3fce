"""Where a setting's value comes from: `TESSERA_<FIELD>`, else the file given by `--config`, else the default in the class.

An unknown key in the file is an error, as is a key that stands there twice. Every problem is reported at once, by field, value and
limit; values of fields that hold secrets are not shown.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Hashable, Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, TypeVar, get_args

import yaml
from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, SettingsError

from tessera.domain.errors import InvalidInput

ENV_PREFIX = "TESSERA_"
_SECRET_WORDS = ("token", "secret", "password", "key")
_MAX_SHOWN_CHARS = 120
_EVERY_INTERFACE = ("", "0.0.0.0", "[::]", "*")


class ServiceConfig(BaseSettings):
    """Base of every service's settings. Nested fields are written `TESSERA_<FIELD>__<INNER>` in the environment."""

    model_config: ClassVar[SettingsConfigDict] = SettingsConfigDict(
        extra="forbid", env_prefix=ENV_PREFIX, env_nested_delimiter="__", case_sensitive=False, frozen=True, validate_default=True
    )

    otlp_endpoint: str | None = Field(default=None, description="where spans go by OTLP over gRPC, e.g. http://127.0.0.1:4317")
    trace_ring_size: int = Field(default=4096, ge=1, le=1_000_000, description="finished spans kept for Traces.GetSpans")
    trace_sample_ratio: float = Field(default=1.0, ge=0.0, le=1.0, description="share of traces recorded where the caller did not decide")
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    advertise_host: str = Field(
        default="",
        pattern=r"^[A-Za-z0-9._:\[\]-]*$",
        description="the host by which others reach this service; empty: the one it listens on",
    )

    @field_validator("otlp_endpoint")
    @classmethod
    def _empty_is_none(cls, endpoint: str | None) -> str | None:
        """An environment variable that Compose passes on is there, and empty, where nobody set it."""
        return endpoint or None

    told_addresses: ClassVar[tuple[str, ...]] = ("address",)
    """The fields whose addresses are told to others."""

    @model_validator(mode="after")
    def _can_be_told(self) -> Self:
        """Nobody can call 0.0.0.0."""
        for name in self.told_addresses:
            host, colon, _ = (address := str(getattr(self, name, ""))).rpartition(":")
            if colon and host in _EVERY_INTERFACE and not self.advertise_host:
                raise ValueError(f"advertise_host is required where {name} is {address}: others are told to call it")
        return self

    def advertised(self, address: str) -> str:
        """What others call for what listens on `address` (HOST:PORT) here."""
        return f"{self.advertise_host}:{address.rpartition(':')[2]}" if self.advertise_host else address

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return env_settings, init_settings


C = TypeVar("C", bound=ServiceConfig)


def read(config_type: type[C], path: Path | None = None) -> C:
    """The settings from a file (or none) and the environment.

    Raises:
        InvalidInput: one readable message that names every field in question, its value and its limit.
    """
    values = {} if path is None else _read_yaml(path)
    try:
        return config_type(**values)
    except ValidationError as error:
        raise InvalidInput(str(path or "settings"), None, "\n" + "\n".join(_lines(config_type, error))) from None
    except SettingsError as error:
        cause = f" ({error.__cause__})" if error.__cause__ else ""
        raise InvalidInput("environment", None, f"{error}{cause}") from None


def load(config_type: type[C], argv: Sequence[str]) -> C:
    """Reads `--config FILE` from the arguments (without the program's name). `--show-config` prints the effective YAML and ends.

    Ends the process with code 2 and a readable message on stderr when a setting is wrong.
    """
    parser = argparse.ArgumentParser(description=f"Every setting is also read from {ENV_PREFIX}<FIELD>, which wins over the file.")
    parser.add_argument("--config", type=Path, metavar="FILE", help="YAML file with the settings")
    parser.add_argument("--show-config", action="store_true", help="print the effective settings as YAML and exit")
    arguments = parser.parse_args(argv)
    try:
        config = read(config_type, arguments.config)
    except InvalidInput as error:
        sys.stderr.write(f"configuration error: {error}\n")
        raise SystemExit(2) from None
    if arguments.show_config:
        sys.stdout.write(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True))
        raise SystemExit(0)
    return config


class _StrictLoader(yaml.SafeLoader):
    """YAML lets a key stand twice and takes the last; in a settings file that is a mistake."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Hashable] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, Hashable) and key in seen:
                raise yaml.MarkedYAMLError(None, None, f"key {key!r} stands twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InvalidInput("--config", str(path), error.strerror or str(error)) from None
    except UnicodeDecodeError:
        raise InvalidInput("--config", str(path), "is not UTF-8 text") from None
    try:
        values = yaml.load(text, Loader=_StrictLoader)  # a SafeLoader
    except yaml.YAMLError as error:
        raise InvalidInput("--config", str(path), f"is not valid YAML: {error}") from None
    if values is None:
        return {}
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise InvalidInput("--config", str(path), "must hold a mapping from field to value")
    return values


def _lines(config_type: type[ServiceConfig], error: ValidationError) -> list[str]:
    lines = []
    for problem in error.errors(include_url=False):
        path = [str(part) for part in problem["loc"]]
        field = ".".join(path)
        if not path:
            # Several fields do not go together; the words name them.
            lines.append(f"  {problem['msg'].removeprefix('Value error, ')}")
            continue
        if problem["type"] == "extra_forbidden":
            known = ", ".join(sorted(_fields_beside(config_type, problem["loc"])))
            lines.append(f"  {field}: unknown key; known are {known}")
            continue
        if problem["type"] == "missing":
            lines.append(f"  {field}: is required (in the file, or as {ENV_PREFIX}{'__'.join(path).upper()})")
            continue
        value = "(not shown)" if _is_secret(field) else _shown(problem["input"])
        lines.append(f"  {field} = {value}: {problem['msg']}")
    return lines


def _fields_beside(model: type[BaseModel], path: tuple[int | str, ...]) -> Iterable[str]:
    """The names that the last part of `path` could have had: the fields of the model that it stands in."""
    for part in path[:-1]:
        inner = _model_in(model.model_fields[part].annotation) if isinstance(part, str) and part in model.model_fields else None
        if inner is not None:
            model = inner
    return model.model_fields


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The model in `Model`, `Model | None`, `list[Model]`, `dict[str, Model]`; None where there is none."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_model_in, get_args(annotation))), None)


def _is_secret(field: str) -> bool:
    return any(word in field.lower() for word in _SECRET_WORDS)


def _shown(value: object) -> str:
    if isinstance(value, dict):
        # It may hold a secret further in.
        return f"a mapping of {', '.join(map(str, value)) or 'nothing'}"[:_MAX_SHOWN_CHARS]
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN_CHARS else text[:_MAX_SHOWN_CHARS] + "..."
