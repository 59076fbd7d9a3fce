"""The price catalogue as a YAML file: `prices.yaml` beside this package, or the one that the settings name."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tessera.domain.errors import InvalidInput
from tessera.node_agent.core.prices import ClassPrice, PriceCatalogue


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid")

    match: str = Field(min_length=1)
    usd_per_core_hour: float = Field(ge=0.0, le=1e6, allow_inf_nan=False)


class _Catalogue(BaseModel):
    model_config = ConfigDict(extra="forbid")

    as_of: str = ""
    source: str = ""
    classes: list[_Entry]


def load_prices(path: Path | None) -> PriceCatalogue:
    """The catalogue of `path`, else the one that Tessera brings.

    Raises:
        InvalidInput: it cannot be read, or is no catalogue; names the field, the value and the limit.
    """
    try:
        text = path.read_text() if path is not None else resources.files("tessera.node_agent").joinpath("prices.yaml").read_text()
        found = _Catalogue.model_validate(yaml.safe_load(text))
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, each['loc']))} {each['input']!r}: {each['msg']}" for each in error.errors())
        raise InvalidInput("price_catalogue", str(path), problems) from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InvalidInput("price_catalogue", str(path), " ".join(str(error).split())) from error
    return PriceCatalogue(found.as_of, found.source, tuple(ClassPrice(each.match, each.usd_per_core_hour) for each in found.classes))
