"""A service's settings: one typed class, one YAML file, the environment on top, validated in full before anything starts."""

from tessera.config._config import ServiceConfig, load, read

__all__ = ["ServiceConfig", "load", "read"]
