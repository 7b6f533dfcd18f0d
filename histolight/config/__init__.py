"""From words to a checked request: the schema, Hydra's composition, and the keys of each command."""

from histolight.config.schema import Config

__all__ = ["Config"]
