"""What the options of the streaming server do: TLS, the idle timeout, the address."""

import socket
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from crio_core.streaming.protocol import Wire
from crio_core.streaming.status import Exited
from tests.integration.harness import Crio, Site
from tests.integration.streaming_client import Command
from tests.integration.test_registry_security import certificate
from tests.integration.test_server_streaming import commands, url
from tests.integration.waiting import wait_for

IDLE_S = 2


@contextmanager
def serving(site: Site, *flags: str) -> Iterator[tuple[Crio, str]]:
    """A server with these flags, and a container on it."""
    with Crio(site, *flags) as crio:
        crio.pull(crio.images.busybox)
        crio.note_baseline()
        with crio.pod() as pod:
            yield crio, crio.begin(pod, ["sleep", "1000"])
        crio.assert_clean()


def trusting(authority: Path, *own: Path) -> ssl.SSLContext:
    """A client's context that trusts one certificate and, if it is given any, shows its own."""
    context = ssl.create_default_context(cafile=str(authority))
    context.check_hostname = False
    if own:
        context.load_cert_chain(*map(str, own))
    return context


@pytest.mark.parametrize("wire", [Wire.SPDY, Wire.WEBSOCKET])
def test_streams_over_tls_are_served_and_new_certificates_are_taken_up(site: Site, tmp_path: Path, wire: Wire) -> None:
    """A certificate is renewed while the server runs."""
    cert, key = certificate(tmp_path, "streams")
    other, other_key = certificate(tmp_path, "later")
    flags = ("--stream-enable-tls", "--stream-tls-cert", str(cert), "--stream-tls-key", str(key))
    with serving(site, *flags) as (crio, container):
        script = "cat; head -c 5000000 /dev/zero; exit 3"
        offered = url(crio, container, "sh", "-c", script, stdin=True)
        assert offered.startswith("https://127.0.0.1:")
        old = trusting(cert)
        with Command(offered, wire, old, stdin=True) as running:
            running.send(b"hello")
            running.end_input()
            assert running.result() == Exited(code=3)
            assert running.stdout == b"hello" + bytes(5_000_000)
        cert.write_bytes(other.read_bytes())
        key.write_bytes(other_key.read_bytes())
        with Command(url(crio, container, "true"), wire, trusting(other)) as running:
            assert running.result() == Exited(code=0)
        with pytest.raises(ssl.SSLError):
            Command(url(crio, container, "true"), wire, old)


def test_client_without_the_certificate_that_is_asked_for_gets_nothing(site: Site, tmp_path: Path) -> None:
    """stream_tls_ca is for nodes whose port others can reach."""
    cert, key = certificate(tmp_path, "streams")
    own, own_key = certificate(tmp_path, "client")
    flags = ("--stream-enable-tls", "--stream-tls-cert", str(cert), "--stream-tls-key", str(key))
    with serving(site, *flags, "--stream-tls-ca", str(own)) as (crio, container):
        offered = url(crio, container, "true")
        with pytest.raises((ssl.SSLError, ConnectionError)):
            Command(offered, Wire.SPDY, trusting(cert))
        with Command(offered, Wire.SPDY, trusting(cert, own, own_key)) as running:
            assert running.result() == Exited(code=0)


def test_stream_on_which_nothing_moves_is_ended_and_one_that_moves_is_not(site: Site) -> None:
    """A client that was cut off without a word holds its command no longer than that."""
    with serving(site, "--stream-idle-timeout", f"{IDLE_S}s") as (crio, container):
        with (
            Command(url(crio, container, "sleep", "1000")) as idle,
            Command(url(crio, container, "sh", "-c", "while :; do echo tick; sleep 0.2; done")) as busy,
        ):
            idle.sock.settimeout(20)
            while not idle.left:
                idle.step()
            assert idle.ended is None
            busy.until(lambda: busy.stdout.count(b"tick") > 5 * IDLE_S * 2)
        wait_for("the end of both", lambda: commands(crio, container) == [])


@pytest.mark.parametrize(("address", "host"), [("0.0.0.0", "0.0.0.0"), ("::", "::"), ("", "::"), ("::1", "::1")])
def test_address_is_listened_at_and_named(site: Site, address: str, host: str) -> None:
    """With every address, the one that stands for them is named, as CRI-O names it: clients are on the node."""
    with serving(site, f"--stream-address={address}") as (crio, container):
        offered = url(crio, container, "true")
        assert urlsplit(offered).hostname == host
        with Command(offered) as running:
            assert running.result() == Exited(code=0)


def test_port_is_the_configured_one_and_a_taken_one_stops_the_start(site: Site) -> None:
    """With one line that names the option."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        crio = Crio(site, "--stream-port", str(port))
        done = subprocess.run(crio.argv, capture_output=True, text=True, timeout=40, check=False)
        assert done.returncode == 1
        assert done.stderr.splitlines()[-1].startswith("crio: stream_address, stream_port: cannot listen at 127.0.0.1")
    with serving(site, "--stream-port", str(port)) as (crio, container):
        assert urlsplit(url(crio, container, "true")).port == port


def test_tls_without_files_stops_the_start(site: Site) -> None:
    """Streams must not be in the clear because a file was forgotten."""
    crio = Crio(site, "--stream-enable-tls")
    done = subprocess.run(crio.argv, capture_output=True, text=True, timeout=40, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("crio: crio.api.stream_tls_cert: ")
