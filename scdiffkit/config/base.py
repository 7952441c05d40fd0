"""The base class of all settings."""

from pydantic import BaseModel, ConfigDict


class _Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)
