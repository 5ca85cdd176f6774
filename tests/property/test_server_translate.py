"""Answers about images: what the verbose status says, within its bounds. Requests: what older clients say."""

import json
from collections.abc import Mapping

import pytest

from crio_core.errors import Code, OperationError
from crio_core.records import ImageRecord, ImageState
from crio_server.cri.v1 import api_pb2 as pb
from crio_server.translate import HISTORY_SHOWN_MAX, TEXT_CHARS_MAX, image_info, take_old_profiles

HISTORY = [
    {"created": f"day {number}", "created_by": f"RUN {number}", "empty_layer": number % 2 == 0} for number in (1, 2)
]
CONFIG = {
    "created": "2026-01-02T03:04:05Z",
    "author": "somebody",
    "architecture": "arm",
    "variant": "v7",
    "os": "linux",
    "config": {"User": "7:8", "Env": ["A=b"], "Labels": {"k": "v"}},
    "rootfs": {"type": "layers", "diff_ids": []},
    "history": HISTORY,
}


def record(config: Mapping[str, object]) -> ImageRecord:
    return ImageRecord(id="sha256:1", state=ImageState.READY, layers=("d",), blobs=("b",), config=json.dumps(config))


def test_verbose_image_status_has_the_configuration_and_its_history() -> None:
    """What `crictl inspecti` and `crioctl image inspect` are asked for: who built it, when, from what."""
    info = image_info(record(CONFIG))
    assert {key: info[key] for key in ("created", "author", "architecture", "variant", "os")} == {
        key: CONFIG[key] for key in ("created", "author", "architecture", "variant", "os")
    }
    assert info["history"] == [
        {"created": "day 1", "createdBy": "RUN 1", "comment": "", "emptyLayer": False},
        {"created": "day 2", "createdBy": "RUN 2", "comment": "", "emptyLayer": True},
    ]
    assert (info["chainLayers"], info["blobs"]) == (["d"], ["b"])
    assert info["imageConfig"]["user"] == "7:8" and info["imageConfig"]["labels"] == {"k": "v"}


def test_verbose_image_status_is_bounded_whatever_the_author_wrote() -> None:
    """A history of thousands of steps, each a page long, must not exceed what a client receives."""
    steps = [{"created_by": f"{number} " + "x" * TEXT_CHARS_MAX} for number in range(2 * HISTORY_SHOWN_MAX)]
    info = image_info(record({**CONFIG, "history": steps, "author": "y" * 2 * TEXT_CHARS_MAX}))
    assert len(info["history"]) == HISTORY_SHOWN_MAX
    assert info["history"][-1]["createdBy"].startswith(f"{2 * HISTORY_SHOWN_MAX - 1} ")
    assert all(len(step["createdBy"]) == TEXT_CHARS_MAX for step in info["history"])
    assert len(info["author"]) == TEXT_CHARS_MAX


RUNTIME_DEFAULT = pb.SecurityProfile(profile_type=pb.SecurityProfile.RuntimeDefault)
UNCONFINED = pb.SecurityProfile(profile_type=pb.SecurityProfile.Unconfined)


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("runtime/default", RUNTIME_DEFAULT),
        ("unconfined", UNCONFINED),
        ("localhost//a/path", pb.SecurityProfile(profile_type=pb.SecurityProfile.Localhost, localhost_ref="/a/path")),
        ("localhost/mine", pb.SecurityProfile(profile_type=pb.SecurityProfile.Localhost, localhost_ref="mine")),
    ],
)
def test_profiles_in_the_deprecated_fields_count_where_the_newer_ones_are_absent(
    word: str, meant: pb.SecurityProfile
) -> None:
    """CRI: a client that asks for a narrow profile in the only field that it knows must not get a wider one."""
    context = pb.LinuxContainerSecurityContext(apparmor_profile=word, seccomp_profile_path=word)
    take_old_profiles(context, "c")
    assert context.apparmor == context.seccomp == meant
    sandbox = pb.LinuxSandboxSecurityContext(seccomp_profile_path=word, apparmor=UNCONFINED)
    take_old_profiles(sandbox, "c")
    assert sandbox.seccomp == meant and sandbox.apparmor == UNCONFINED
    both = pb.LinuxContainerSecurityContext(apparmor_profile=word, apparmor=UNCONFINED)
    take_old_profiles(both, "c")
    assert both.apparmor == UNCONFINED
    absent = pb.LinuxContainerSecurityContext()
    take_old_profiles(absent, "c")
    assert not (absent.HasField("apparmor") or absent.HasField("seccomp"))


@pytest.mark.parametrize("word", ["localhost/", "localhost", "mine", "Unconfined", "runtime/"])
def test_a_word_that_the_deprecated_fields_never_had_is_refused(word: str) -> None:
    """It may be a name in the wrong form, and running without that profile is not what was asked for."""
    with pytest.raises(OperationError, match=r"c\.apparmor_profile") as caught:
        take_old_profiles(pb.LinuxContainerSecurityContext(apparmor_profile=word), "c")
    assert caught.value.code is Code.INVALID_ARGUMENT
