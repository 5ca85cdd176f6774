"""Recordings: what the core was told, told again, gives the same effects; and no secret is in what is written."""

import base64
import re
from dataclasses import replace

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crio_core import effects as fx
from crio_core import events as ev
from crio_core import requests as rq
from crio_core.codec import dump_line, from_values, load_line, to_values
from crio_core.cri import AuthConfig, ImageSpec, KeyValue
from crio_core.errors import LocalError, OperationError
from crio_core.node import Node
from crio_core.node.checkpoint import restore, take
from crio_core.records import ContainerRecord
from crio_core.redact import APPLIED, keyed_mask, no_value
from crio_core.replay import explanations, is_question, replay, segment_line, settings_line, step_line
from crio_core.replies import Created
from crio_core.sim import SETTINGS, Simulation, image
from crio_core.sim.checks import run_program
from crio_core.sim.images import APP, REGISTRY
from crio_core.sim.programs import container_config, pod_config, random_program

KEY = b"k" * 32
SECRET = "hunter2-correct-horse"
MASK = keyed_mask(KEY)


class Tape:
    """Writes a recording of a simulation, from any moment on; a segment begins with each life of the server."""

    def __init__(self, sim: Simulation, key: bytes = KEY) -> None:
        self.mask = keyed_mask(key)
        self.sim = sim
        self.lines: list[bytes] = []
        self.number = self.asked = 0
        self._inner = sim.on_event
        self._node: Node | None = None
        self._begin()
        sim.on_event = self.note

    def _begin(self) -> None:
        node = self.sim.node
        assert node is not None
        self._node = node
        self.asked = 0
        self.lines.append(segment_line("test", node.settings, take(node), self.mask))

    def note(self, event: ev.Event, effects: tuple[fx.Effect, ...]) -> None:
        """Take a step down, and tell whoever listened before."""
        if self._inner is not None:
            self._inner(event, effects)
        if self.sim.node is not self._node:
            # A new server: its first event is the journal, which leads from an empty node.
            assert isinstance(event, ev.JournalLoaded)
            self._node = self.sim.node
            self.asked = 0
            self.lines.append(segment_line("test", self.sim.settings, take(Node(self.sim.settings)), self.mask))
        if is_question(event):
            self.asked += 1
            return
        self.number += 1
        self.lines.append(step_line(self.number, self.asked, event, effects, self.mask))
        self.asked = 0


def _taped(seed: int, begin_after: int = 0) -> Tape | None:
    """A random program, recorded; the recording begins after so many of its steps."""
    tapes: list[Tape] = []
    count = 0

    def started(sim: Simulation) -> None:
        inner = sim.on_event

        def wait(event: ev.Event, effects: tuple[fx.Effect, ...]) -> None:
            nonlocal count
            if inner is not None:
                inner(event, effects)
            count += 1
            if count >= begin_after and not tapes and sim.node is not None:
                sim.on_event = inner
                tapes.append(Tape(sim))

        if begin_after:
            sim.on_event = wait
        else:
            tapes.append(Tape(sim))

    run_program(random_program(seed), watch=started)
    return tapes[0] if tapes else None


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(min_value=0, max_value=1_000_000), begin_after=st.integers(min_value=0, max_value=400))
def test_random_runs_recorded_and_replayed_give_identical_effects(seed: int, begin_after: int) -> None:
    """F13: a recording, begun at any moment, tells the whole story: no decision rests on what is not in it."""
    tapes = _taped(seed, begin_after)
    if tapes is None:
        return  # The program was over before the recording began.
    result = replay(tapes.lines)
    assert not result.differences, str(result.differences[0])
    assert result.events == tapes.number


def test_replay_when_a_recorded_effect_was_changed_names_the_event() -> None:
    """A replay that could not fail would prove nothing."""
    tape = _taped(7)
    assert tape is not None
    index, values = next(
        (index, load_line(line))
        for index, line in enumerate(tape.lines)
        if b'"effects":[[' in line and b"SaveRecord" in line
    )
    values["effects"][0][3] = "0" * 16
    lines = [*tape.lines[:index], dump_line(values), *tape.lines[index + 1 :]]
    result = replay(lines)
    assert [one.number for one in result.differences] == [values["n"]]
    assert "only recorded" in str(result.differences[0])


def _two_pods() -> tuple[Tape, Simulation, str]:
    """A pod with a container whose environment is secret, recorded from the beginning."""
    secret_image = image(APP, ("base", "app"), entrypoint=("sleep", "inf"))
    document = orjson.loads(secret_image.config)
    document["config"]["Env"] = [f"IMAGE_TOKEN={SECRET}", "PATH=/bin"]
    document["history"] = [{"created_by": f"ENV IMAGE_TOKEN={SECRET}"}]
    secret_image = replace(secret_image, config=orjson.dumps(document).decode())
    defaults = replace(SETTINGS.defaults, default_env=(f"PROXY={SECRET}",))
    sim = Simulation(3, settings=replace(SETTINGS, defaults=defaults), registry={**REGISTRY, APP: secret_image})
    tape = Tape(sim)
    sim.ask(rq.PullImage(image=ImageSpec(image=APP), auth="handle-of-credentials"))
    pod = sim.ask(rq.RunPodSandbox(config=pod_config(0)))
    assert isinstance(pod, Created)
    config = replace(
        container_config(0, 0),
        image=ImageSpec(image=APP),
        command=("sleep", "inf"),
        envs=(KeyValue(key="PASSWORD", value=SECRET), KeyValue(key="EMPTY", value="")),
    )
    made = sim.ask(rq.CreateContainer(sandbox_id=pod.id, config=config))
    assert isinstance(made, Created)
    container_id = made.id
    sim.ask(rq.StartContainer(container_id=container_id))
    sim.ask(rq.ExecSync(container_id=container_id, command=("echo", SECRET[::-1])))
    return tape, sim, container_id


def test_secrets_in_every_place_never_reach_a_recording() -> None:
    """Environment values hide in requests, records, specs, processes, images and settings; none may be written down."""
    tape, sim, container_id = _two_pods()
    sim.crash_server()
    sim.start_server()  # The journal's rows, with the secrets, are an event.
    sim.run()
    assert any(SECRET.encode() in row for row in sim.world.rows.values()), "the secret must have been there"
    node = sim.node
    assert node is not None
    whole = b"".join((*tape.lines, segment_line("test", node.settings, take(node), tape.mask)))
    assert SECRET.encode() not in whole
    for name in (b"PASSWORD", b"IMAGE_TOKEN", b"PROXY"):
        assert name in whole, "keys are kept"
    result = replay(tape.lines)
    assert not result.differences, str(result.differences[0])
    assert explanations(result.node, container_id)[0]["state"] == "running"


def test_output_of_commands_never_reaches_a_recording() -> None:
    """What a command printed belongs to its caller alone; only the command line is part of what was asked."""
    tape, _, _ = _two_pods()
    lines = [line for line in tape.lines if b"ExecFinished" in line]
    assert lines
    assert all(b'"stdout":{"$bytes":""}' in line for line in lines)


def test_credentials_met_in_an_event_are_refused_as_a_bug() -> None:
    """Credentials stay in the vault; an event that has some must not be written even by mistake."""
    with pytest.raises(LocalError, match="credentials"):
        to_values((AuthConfig(password=SECRET),), MASK)


def test_requests_that_differ_in_a_secret_value_differ_under_the_mask() -> None:
    """The core compares requests: a retry with another value is another request, in a replay too."""
    assert MASK("a") == MASK("a")
    assert MASK("a") != MASK("b")
    assert keyed_mask(b"other" * 4)("a") != MASK("a")
    assert "\0" in MASK("a\0b")
    assert no_value(SECRET) == ""


def test_explain_at_an_event_shows_the_node_as_it_was_then() -> None:
    """`--at N`: a pod that was being made at that moment is seen being made."""
    tape, _, container_id = _two_pods()
    states = []
    for number in range(1, tape.number + 1):
        result = replay(tape.lines, until=number)
        assert result.last == number
        states += [one["state"] for one in explanations(result.node, container_id)]
    path = list(dict.fromkeys(states))
    assert path == ["reserved", "rootfs", "creating", "created", "starting", "running"]


def test_reloaded_settings_are_part_of_a_recording() -> None:
    """A reload changes what is decided, and is no event."""
    sim = Simulation(1)
    tape = Tape(sim)
    node = sim.node
    assert node is not None
    changed = replace(SETTINGS, pause_image=APP, drop_infra=False)
    node.reload(changed)
    tape.lines.append(settings_line(changed, tape.mask))
    sim.ask(rq.RunPodSandbox(config=pod_config(0)))
    assert not replay(tape.lines).differences
    without = [line for line in tape.lines if b'"reloaded"' not in line]
    assert replay(without).differences, "the settings decide which image the pod needs"


@pytest.mark.parametrize(
    "lines",
    [
        [],
        [b"not json\n", b"{}\n"],
        [b'{"n":1,"event":{},"effects":[]}\n'],
        [b'{"format":99}\n'],
        [b'{"format":2,"version":"0","settings":{"$":"os.system"},"state":{"scalars":[],"tables":[],"history":[]}}\n'],
        [b"[]\n"],
    ],
)
def test_a_file_that_is_no_recording_is_refused_with_its_reason(lines: list[bytes]) -> None:
    """Anything may be given to `crio replay`; it must neither crash nor build a class that is not the core's."""
    with pytest.raises(OperationError, match="not a recording"):
        replay(lines)


def test_a_last_line_cut_off_by_a_crash_is_left_out() -> None:
    """A recording ends with its server, maybe in the midst of a line."""
    tape, _, _ = _two_pods()
    result = replay([*tape.lines[:-1], tape.lines[-1][:-20]])
    assert result.events == tape.number - 1


def test_a_checkpoint_restored_is_the_same_node() -> None:
    """Taking a checkpoint and restoring it loses nothing, in memory and through its written form."""
    _, sim, _ = _two_pods()
    node = sim.node
    assert node is not None
    checkpoint = take(node)
    assert take(restore(node.settings, checkpoint)) == checkpoint
    masked = from_values(load_line(dump_line(to_values(checkpoint.tables, MASK))))
    assert to_values(masked, no_value) == to_values(checkpoint.tables, no_value)


def test_the_manifest_in_kubectls_annotation_is_never_recorded() -> None:
    """It repeats the variables of every container: in requests, records, orders, and specs that are let have it."""
    manifest = orjson.dumps({"spec": {"containers": [{"env": [{"name": "PASSWORD", "value": SECRET}]}]}}).decode()
    noted = {APPLIED: manifest, "example.com/harmless": "kept"}
    (handler,) = SETTINGS.handlers.values()
    handler = replace(handler, allowed_annotations=("kubectl.kubernetes.io/*",))
    sim = Simulation(3, settings=replace(SETTINGS, handlers={handler.name: handler}))
    orders: list[fx.Order] = []
    sim.on_event = lambda event, effects: orders.extend(effect.order for effect in effects)
    tape = Tape(sim)
    sim.ask(rq.PullImage(image=ImageSpec(image=APP, annotations=noted)))
    pod = sim.ask(rq.RunPodSandbox(config=replace(pod_config(0), annotations=noted)))
    assert isinstance(pod, Created)
    config = replace(container_config(0, 0), image=ImageSpec(image=APP), annotations=noted)
    sim.ask(rq.CreateContainer(sandbox_id=pod.id, config=config))
    sim.crash_server()
    sim.start_server()
    sim.run()
    # Orders are recorded as sums of what they are without secrets; rows of the journal and specs are bytes.
    text = b"".join((*tape.lines, dump_line([to_values(order, MASK) for order in orders])))
    text += b"".join(map(base64.b64decode, re.findall(rb'"\$bytes":"([^"]*)"', text)))
    assert SECRET.encode() not in text
    assert {type(order).__name__ for order in orders} >= {"AttachNetwork", "SaveRecord", "CreateContainer"}
    assert text.count(MASK(manifest).encode()) == text.count(APPLIED.encode()) >= 9
    assert b"kept" in text
    assert not replay(tape.lines).differences


def test_records_in_a_recording_keep_everything_but_secrets() -> None:
    """What is written can be read back as the same classes."""
    _, sim, container_id = _two_pods()
    record = next(one for one in sim.world.records() if one.id == container_id)
    assert isinstance(record, ContainerRecord)
    back = from_values(load_line(dump_line(to_values(record, MASK))))
    assert replace(back, request="", process="") == replace(record, request="", process="")
    assert orjson.loads(back.request)["envs"][0] == {"key": "PASSWORD", "value": MASK(SECRET)}
