"""The configuration directory, treated as installers and administrators treat it (R43)."""

import json
import os
import shutil
import tempfile
from contextlib import ExitStack
from pathlib import Path

import pytest
from anyio.from_thread import start_blocking_portal
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from crio_io.cni_watch import NetworkConfigs
from tests.integration.leftovers import MINE

pytestmark = pytest.mark.integration

CONTENTS = {
    "bridge": {"cniVersion": "1.0.0", "name": "b", "plugins": [{"type": "bridge", "ipam": {"type": "host-local"}}]},
    "ptp": {"cniVersion": "1.0.0", "name": "p", "plugins": [{"type": "ptp"}]},
    "loopback": {"cniVersion": "0.2.0", "name": "l", "type": "loopback"},
    "broken": "neither list nor network",
}
NEEDS = {"bridge": ("bridge", "host-local"), "ptp": ("ptp",)}
names = st.sampled_from(["10-a.conflist", "20-b.conf", "30-c.json", "readme.txt"])


def write(path: Path, kind: str) -> None:
    """Put a configuration in place, not atomically, as `cat >` does."""
    path.write_text(json.dumps(CONTENTS[kind]))


class ConfDirMachine(RuleBasedStateMachine):
    """Any order of changes; after each one the answer is that of a simple model."""

    def __init__(self) -> None:
        super().__init__()
        self.stack = ExitStack()
        base = Path(self.stack.enter_context(tempfile.TemporaryDirectory(prefix=f"{MINE}-")))
        self.conf, self.aside, self.bin = base / "net.d", base / "aside", base / "bin"
        self.files: dict[str, str] = {}
        self.files_aside: dict[str, str] | None = None
        self.plugins: set[str] = set()
        self.portal = self.stack.enter_context(start_blocking_portal())
        self.configs = NetworkConfigs(str(self.conf), [str(base / "absent"), str(self.bin)])

    def teardown(self) -> None:
        self.stack.close()

    @rule(name=names, kind=st.sampled_from(sorted(CONTENTS)))
    def write(self, name: str, kind: str) -> None:
        self.conf.mkdir(exist_ok=True)
        write(self.conf / name, kind)
        self.files[name] = kind

    @precondition(lambda self: self.files)
    @rule(data=st.data(), to=names)
    def rename(self, data: st.DataObject, to: str) -> None:
        name = data.draw(st.sampled_from(sorted(self.files)))
        (self.conf / name).rename(self.conf / to)
        self.files[to] = self.files.pop(name)

    @precondition(lambda self: self.files)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.files)))
        (self.conf / name).unlink()
        del self.files[name]

    @rule()
    def remove_directory(self) -> None:
        shutil.rmtree(self.conf, ignore_errors=True)
        self.files = {}

    @rule()
    def swap_directory_with_another(self) -> None:
        parked = self.conf.with_name("parked")
        if self.conf.exists():
            self.conf.rename(parked)
        if self.aside.exists():
            self.aside.rename(self.conf)
        if parked.exists():
            parked.rename(self.aside)
        self.files, self.files_aside = self.files_aside or {}, self.files

    @rule(name=st.sampled_from(["bridge", "host-local", "ptp"]), there=st.booleans())
    def change_plugin(self, name: str, there: bool) -> None:
        self.bin.mkdir(exist_ok=True)
        path = self.bin / name
        if there:
            path.write_bytes(b"#!/bin/sh\n")
            path.chmod(0o755)
            self.plugins.add(name)
        else:
            path.unlink(missing_ok=True)
            self.plugins.discard(name)

    @invariant()
    def answer_is_right_at_once(self) -> None:
        state = self.portal.call(self.configs.state)
        counted = sorted(name for name in self.files if name != "readme.txt")
        kinds = [kind for name in counted if (kind := self.files[name]) in NEEDS]
        if not kinds:
            assert state.network is None and state.error is not None and state.error.reason == "CNI_NOT_CONFIGURED"
        elif not self.plugins.issuperset(NEEDS[kinds[0]]):
            assert state.network is None and state.error is not None and state.error.reason == "CNI_PLUGIN_NOT_FOUND"
        else:
            assert state.network is not None and state.error is None
            assert state.network.plugins[0].type == kinds[0]
        broken = [name for name in counted if self.files[name] == "broken"]
        assert [fault for fault in state.faults if fault.startswith(tuple(broken or ["-"]))] == [
            fault for fault in state.faults if "document" in fault
        ]


ConfDirMachine.TestCase.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)
TestConfDir = ConfDirMachine.TestCase


async def name_of(configs: NetworkConfigs) -> str:
    """The name of the network that pods get now."""
    network = (await configs.state()).network
    return network.name if network else ""


@pytest.mark.anyio
async def test_state_without_directory_is_not_configured_and_right_as_soon_as_it_appears(tmp_path: Path) -> None:
    """R43: a node often starts before its network is installed."""
    conf = tmp_path / "net.d"
    configs = NetworkConfigs(str(conf), [str(tmp_path)])
    error = (await configs.state()).error
    assert error is not None and error.reason == "CNI_NOT_CONFIGURED"
    assert f"{conf} cannot be read: No such file or directory" in error.message
    conf.mkdir()
    write(conf / "10-p.conflist", "ptp")
    error = (await configs.state()).error
    assert error is not None and error.reason == "CNI_PLUGIN_NOT_FOUND"
    assert "'ptp' of network 'p' is not an executable file in any of" in error.message
    (tmp_path / "ptp").touch(mode=0o755)
    assert await name_of(configs) == "p"


@pytest.mark.anyio
async def test_state_with_a_missing_plugin_does_not_fall_back_to_another_network(tmp_path: Path) -> None:
    """Pods on a wrong network are worse than pods that wait."""
    write(tmp_path / "10-p.conflist", "ptp")
    write(tmp_path / "87-b.conflist", "bridge")
    for plugin in ("bridge", "host-local"):
        (tmp_path / plugin).touch(mode=0o755)
    state = await NetworkConfigs(str(tmp_path), [str(tmp_path)]).state()
    assert state.network is None and state.error is not None and "'ptp'" in state.error.message
    assert await name_of(NetworkConfigs(str(tmp_path), [str(tmp_path)], "b")) == "b"


@pytest.mark.anyio
async def test_state_sees_a_rewrite_of_equal_length_within_one_tick_of_the_clock(tmp_path: Path) -> None:
    """Two writes can carry the same time; the second one must not be missed."""
    (tmp_path / "ptp").touch(mode=0o755)
    configs = NetworkConfigs(str(tmp_path), [str(tmp_path)])
    file = tmp_path / "10-p.conf"
    for round_number in range(50):
        file.write_text(json.dumps({"cniVersion": "1.0.0", "name": f"n{round_number:03}", "type": "ptp"}))
        assert await name_of(configs) == f"n{round_number:03}"


@pytest.mark.anyio
async def test_state_with_a_pipe_a_directory_and_a_dead_link_among_the_files_reports_them(tmp_path: Path) -> None:
    """What is no file must neither block the server nor hide the good files."""
    os.mkfifo(tmp_path / "05-pipe.conf")
    (tmp_path / "06-dir.conf").mkdir()
    (tmp_path / "07-dead.conf").symlink_to("nowhere")
    write(tmp_path / "10-p.conflist", "ptp")
    (tmp_path / "ptp").touch(mode=0o755)
    state = await NetworkConfigs(str(tmp_path), [str(tmp_path)]).state()
    assert state.network is not None and state.network.name == "p"
    assert [fault.split(":")[0] for fault in state.faults] == ["05-pipe.conf", "06-dir.conf", "07-dead.conf"]
