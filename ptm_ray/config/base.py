"""The base of all settings: one strict way from a dict to a model, whatever the dict came from."""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any, Self, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from ptm_ray.errors import ConfigError, did_you_mean


class Settings(BaseModel):
    """Frozen, closed, documented settings."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True)

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """The settings that a (nested) dict describes. Raises `ConfigError` in one line, near names included."""
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            raise ConfigError(one_line(cls, error)) from None

    def replace(self, **changes: Any) -> Self:
        """These settings with some changed (nested dicts merge) and all of them validated again."""
        return type(self).of(merge(self.model_dump(), changes))

    def fingerprint(self) -> str:
        """SHA-256 of every setting."""
        return hashlib.sha256(json.dumps(self.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()


def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Tables merge key by key; anything else of `above` replaces what is below."""
    out = dict(below)
    for key, value in above.items():
        under = out.get(key)
        out[key] = merge(under, value) if isinstance(value, Mapping) and isinstance(under, Mapping) else value
    return out


def _fields_at(model: type[BaseModel], path: tuple[int | str, ...]) -> list[str]:
    """Names that are known where a validation error happened."""
    for key in path:
        field = model.model_fields.get(str(key))
        kinds = [field.annotation, *get_args(field.annotation)] if field else []
        inner = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
        if not inner:
            break
        model = inner[0]
    return list(model.model_fields)


def one_line(model: type[BaseModel], error: ValidationError) -> str:
    """The first thing that is wrong, with its value and, for unknown names, the nearest known ones."""
    # A misspelt name comes first: it is why another may seem to be missing.
    first = min(error.errors(), key=lambda one: one["type"] != "extra_forbidden")
    where = ".".join(map(str, first["loc"]))
    if first["type"] == "extra_forbidden":
        known = _fields_at(model, first["loc"][:-1])
        return f"unknown setting {where!r}; {did_you_mean(str(first['loc'][-1]), known)}"
    if first["type"] == "value_error":
        # Our own validators say the value themselves.
        own = first["msg"].removeprefix("Value error, ")
        return f"{where}: {own}" if where else own
    if first["type"] == "missing":
        return f"{where} is missing; known: {', '.join(_fields_at(model, first['loc'][:-1]))}"
    message = first["msg"]
    if first["type"] == "literal_error":
        known = re.findall(r"'([^']+)'", first["ctx"]["expected"])
        return f"unknown {where} {first['input']!r}; {did_you_mean(str(first['input']), known)}"
    return f"{where}: {message}, got {first['input']!r}"
