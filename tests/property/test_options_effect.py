"""Every option does something: it reaches the engine, or the part of the server that is named here."""

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from crio_core.errors import OperationError
from crio_server.config import Config
from crio_server.config.handler import HANDLER_OPTIONS, RuntimeHandler
from crio_server.config.kinds import Choice, FilePath, Integer, Kind, ListOf, Switch
from crio_server.config.options import OPTIONS
from crio_server.options import engine_options
from crio_server.serve import set_up_logging

ROOT = Path(__file__).resolve().parent.parent.parent
READ_BY = {
    "enable_metrics": "crio_server/serve.py",
    "metrics_host": "crio_server/serve.py",
    "metrics_port": "crio_server/serve.py",
    "listen": "crio_server/serve.py",
    "version_file": "crio_server/serve.py",
    "internal_wipe": "crio_server/commands/wipe.py",
    "log_level": "crio_server/serve.py",
    "log_file": "crio_server/serve.py",
    "log_format": "crio_server/serve.py",
    "stream_address": "crio_server/options.py",
    "stream_port": "crio_server/options.py",
    "stream_enable_tls": "crio_server/options.py",
    "stream_tls_cert": "crio_server/options.py",
    "stream_tls_key": "crio_server/options.py",
    "stream_tls_ca": "crio_server/options.py",
}
"""What is no business of the engine's, and where it is read."""
OTHER: dict[str, Any] = {
    "default_runtime": "other",
    "conmon_cgroup": "/monitors",
    "conmon_env": ("A=b",),
    "default_env": ("A=b",),
    "default_capabilities": ("KILL",),
    "default_sysctls": ("net.ipv4.ip_forward=1",),
    "default_ulimits": ("nofile=1:2",),
    "additional_devices": ("/dev/fuse",),
    "apparmor_profile": "mine",
    "pause_image": "registry.example/pause:1",
    "pause_command": "/bin/pause",
    "pinned_images": ("registry.example/a",),
    "insecure_registries": ("registry.example",),
    "registries": ("registry.example",),
    "plugin_dirs": ("/plugins",),
    "metrics_host": "::1",
    "cdi_spec_dirs": ("/specifications",),
    "cni_default_network": "mine",
    "cgroup_manager": "systemd",
    "image_volumes": "ignore",
    "pull_progress_timeout": "3m",
    "stream_address": "::1",
    "stream_port": "10010",
    "stream_idle_timeout": "30m",
    "monitor_cgroup": "/monitors",
    "monitor_env": ("A=b",),
    "allowed_annotations": ("io.example",),
}
"""Another value than the default, where the kind alone does not say one."""


def another(name: str, kind: Kind, default: object) -> Any:
    """A valid value that is not the default."""
    match kind:
        case Switch():
            return not default
        case Integer(least=least):
            return least + 1
        case _ if name in OTHER:
            return OTHER[name]
        case FilePath():
            return "/elsewhere"
        case Choice(words=words):
            return next(word for word in words if word != default)
        case _:
            raise AssertionError(f"name another value of {name} in this test: {kind}")


@pytest.mark.parametrize("row", OPTIONS, ids=lambda row: row.name)
def test_another_value_of_an_option_changes_what_the_engine_or_the_server_does(row: Any, tmp_path: Path) -> None:
    """An option that nothing reads is a promise that nobody keeps; it belongs into elsewhere.py, with its warning."""
    other = RuntimeHandler(name="other")
    config = Config(runtimes=(*Config().runtimes, other))
    value = another(row.name, row.kind, getattr(config, row.name))
    if row.name == "seccomp_profile":
        value = str(tmp_path / "profile.json")
        Path(value).write_text("{}")
    row.kind.read(list(value) if isinstance(row.kind, ListOf) else value)
    if row.name in READ_BY:
        assert f"config.{row.name}" in (ROOT / READ_BY[row.name]).read_text()
    else:
        assert engine_options(replace(config, **{row.name: value})) != engine_options(config)


@pytest.mark.parametrize("row", HANDLER_OPTIONS, ids=lambda row: row.name)
def test_another_value_of_a_handlers_option_changes_its_runtime(row: Any) -> None:
    """The same for the tables of runtime handlers."""
    plain = RuntimeHandler(name="runc")
    changed = replace(plain, **{row.name: another(row.name, row.kind, getattr(plain, row.name))})
    assert engine_options(Config(runtimes=(changed,))) != engine_options(Config(runtimes=(plain,)))


@pytest.mark.parametrize("item", ["kernel.core_pattern=|x", "net.ipv4.ip_forward=1 ; x", "vm.swappiness=1"])
def test_default_sysctl_that_is_the_nodes_stops_the_start(item: str) -> None:
    """CVE-2022-0811: found at the start, and not with the first pod."""
    with pytest.raises(OperationError, match=r"crio\.runtime\.default_sysctls"):
        engine_options(replace(Config(), default_sysctls=(item,)))


def test_log_in_json_is_one_object_a_line_whatever_is_said(tmp_path: Path) -> None:
    """Programs read it: quotes, newlines and tracebacks must not end the object."""
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    path = tmp_path / "log"
    try:
        set_up_logging(replace(Config(), log_format="json", log_file=str(path)))
        log = logging.getLogger("criotest")
        log.info('image "%s" has\na newline', "a\\b")
        try:
            raise ValueError('say "what"')
        except ValueError:
            log.exception("it failed")
    finally:
        for handler in root.handlers:
            handler.close()
        root.handlers[:] = before
        root.setLevel(level)
    first, second = map(json.loads, path.read_text().splitlines())
    assert (first["level"], first["name"], first["msg"]) == ("INFO", "criotest", 'image "a\\b" has\na newline')
    assert second["msg"] == "it failed" and 'ValueError: say "what"' in second["traceback"]
