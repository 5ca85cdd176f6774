"""Configuration: crio.conf and its drop-ins, environment variables and flags, as one frozen `Config`."""

from crio_server.config.handler import HANDLER_OPTIONS, RuntimeHandler
from crio_server.config.layers import ConfigWarning
from crio_server.config.load import CONFIG_DIR, CONFIG_FILE, Loaded, Sources, load
from crio_server.config.option import Option
from crio_server.config.options import OPTIONS, Config
from crio_server.config.reload import Change, apply_changes, reload

__all__ = [
    "CONFIG_DIR",
    "CONFIG_FILE",
    "HANDLER_OPTIONS",
    "OPTIONS",
    "Change",
    "Config",
    "ConfigWarning",
    "Loaded",
    "Option",
    "RuntimeHandler",
    "Sources",
    "apply_changes",
    "load",
    "reload",
]
