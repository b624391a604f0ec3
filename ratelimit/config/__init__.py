"""Configuration: one TOML file, the same as keyword arguments, and environment variables over both."""

from ratelimit.config.load import Problems, load_config, read_config
from ratelimit.config.secrets import check_token, masked, masked_path, redacted
from ratelimit.config.settings import SETTINGS, Config, HeadersMode, SettingArgs, document

__all__ = [
    "SETTINGS",
    "Config",
    "HeadersMode",
    "Problems",
    "SettingArgs",
    "check_token",
    "document",
    "load_config",
    "masked",
    "masked_path",
    "read_config",
    "redacted",
]
