"""What a server does to stay small, each in a process of its own."""

import subprocess
import sys

SMALL = "from crio_server.lean import load_when_used, stay_small; stay_small();"


def run(program: str) -> str:
    """What a program prints."""
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout


def test_server_imported_has_loaded_nothing_that_it_never_uses() -> None:
    """Each of these costs every node a megabyte or more; a new import brings them back unnoticed."""
    unused = {
        "dataclasses_json",
        "marshmallow",
        "google.protobuf.text_format",
        "pickle",
        "trio",
        "yaml",
        "cryptography",
        "rich",
    }
    unused |= {"httpx", "tarfile", "email", "prometheus_client"}
    unused |= {"wsproto", "crio_core.streaming.spdy", "crio_core.streaming.websocket"}
    program = (
        f"{SMALL} import sys, crio_server.main, crio_server.serve;"
        f"print({unused!r} & {{*filter(sys.modules.get, sys.modules)}})"
    )
    assert run(program) == "set()\n"


def test_messages_made_by_a_small_server_are_read_again() -> None:
    """What is not loaded was of no use to the messages of the CRI."""
    program = (
        f"{SMALL} from crio_server.cri.v1 import api_pb2 as pb;"
        "sent = pb.ListContainersResponse(containers=[pb.Container(id='a', labels={'b': 'c'})]);"
        "print(pb.ListContainersResponse.FromString(sent.SerializeToString()) == sent, len(str(sent)) > 0)"
    )
    assert run(program) == "True True\n"


def test_module_put_off_is_loaded_when_it_is_used() -> None:
    """A library that does need it finds it whole, by whichever name it has got hold of it."""
    program = (
        "import sys; from crio_server.lean import load_when_used; load_when_used('colorsys'); import colorsys;"
        "before = 'ONE_THIRD' in vars(colorsys);"
        "print(before, colorsys.rgb_to_hsv(0, 0, 0), 'ONE_THIRD' in vars(sys.modules['colorsys']))"
    )
    assert run(program) == "False (0.0, 0.0, 0) True\n"


def test_package_put_off_is_loaded_for_a_module_inside_it() -> None:
    """`import package.module` finds the package's place."""
    program = (
        "import sys; from crio_server.lean import load_when_used; load_when_used('xml'); import xml.sax.saxutils;"
        "print(xml.sax.saxutils.escape('<'), xml.__name__, sys.modules['xml'].__file__ is not None)"
    )
    assert run(program) == "&lt; xml True\n"


def test_http_client_loaded_by_a_small_server_leaves_what_it_seldom_uses() -> None:
    """A first pull costs a megabyte less, and an international name of a registry is still understood."""
    program = (
        f"{SMALL} import sys, crio_server.main, crio_server.serve, httpx, httpcore;"
        "seldom = [sys.modules[name] for name in ('certifi', 'idna', 'zstandard', 'bz2', 'lzma')];"
        "print([one.__spec__ for one in seldom], httpx.URL('https://bücher.example/').raw_host)"
    )
    assert run(program) == "[None, None, None, None, None] b'xn--bcher-kva.example'\n"


def test_memory_freed_below_what_is_in_use_goes_back() -> None:
    """After a pull an idle server has its old size: malloc by itself returns only what lies above everything in use."""
    program = (
        f"{SMALL} from crio_server.lean import give_back;"
        "size = lambda: int(open('/proc/self/statm').read().split()[1]) >> 8;"
        "before = size(); small = [bytes(1000) for _ in range(20_000)]; most = size();"
        "in_use = small[-1]; small.clear(); freed = size(); give_back();"
        "print(most - before > 15, freed - before > 15, size() - before < 5)"
    )
    assert run(program) == "True True True\n"


def test_server_settled_collects_garbage_but_not_what_it_started_with() -> None:
    """A collector that stayed off would let a server grow for ever."""
    program = (
        f"import gc; gc.disable(); {SMALL} from crio_server.lean import settle; settle();"
        "print(gc.isenabled(), gc.get_freeze_count() > 10_000, len(gc.get_objects()) < 1000)"
    )
    assert run(program) == "True True True\n"
