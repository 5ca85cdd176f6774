"""The tree of pods: processes read from /proc whatever they call themselves, and the picture that is drawn."""

import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from crio_server.crioctl import processes, tree


def write_process(
    proc: Path, pid: int, parent: int, name: bytes, command: bytes, threads: tuple[str, ...] = ()
) -> None:
    entry = proc / str(pid)
    (entry / "task" / str(pid)).mkdir(parents=True)
    fields = b" ".join([b"S", str(parent).encode(), *[b"0"] * 15, str(1 + len(threads)).encode(), *[b"0"] * 30])
    (entry / "stat").write_bytes(b"%d (%s) %s\n" % (pid, name, fields))
    (entry / "cmdline").write_bytes(command)
    (entry / "task" / str(pid) / "comm").write_bytes(name + b"\n")
    for index, thread in enumerate(threads, start=1):
        task = entry / "task" / str(pid + index)
        task.mkdir()
        (task / "comm").write_text(f"{thread}\n")


names = st.binary(min_size=1, max_size=15).filter(lambda name: b"\0" not in name)


@settings(max_examples=50)
@given(name=names, command=st.binary(max_size=80))
def test_process_with_any_name_is_read(name: bytes, command: bytes) -> None:
    """A process names itself: `) R 1 (` must not give it another parent, and no bytes may break the reading."""
    with tempfile.TemporaryDirectory() as directory:
        proc = Path(directory)
        write_process(proc, 10, 1, b"conmon", b"conmon\0-c\0x\0")
        write_process(proc, 20, 10, name, command)
        table = processes.look(proc)
    assert table.processes[20].parent == 10
    assert table.children[10] == (20,)
    assert table.parent_of(20) == 10
    assert table.parent_of(10) is None, "init watches nobody's container"
    assert table.parent_of(99) is None


def test_threads_are_counted_by_name(tmp_path: Path) -> None:
    """As in process pictures: `2*[{bio}]` and not two lines."""
    write_process(tmp_path, 20, 1, b"redis-server", b"redis-server\0*:6379\0", ("bio", "bio", "jemalloc"))
    assert processes.thread_names(20, tmp_path) == {"bio": 2, "jemalloc": 1}
    assert processes.look(tmp_path).processes[20].threads == 4
    assert processes.thread_names(99, tmp_path) == {}


def test_picture_draws_each_branch_once() -> None:
    """The form of the seed's picture: what hangs below what is seen without counting spaces."""
    leaf = tree.Node(text="16090 redis-server", data={"pid": 16090})
    monitor = tree.Node(text="16081 conmon", data={"pid": 16081}, children=(leaf,))
    pods = tuple(tree.Node(text=f"pod {name}", data={"name": name}, children=(monitor,)) for name in "ab")
    root = tree.Node(text="crio", data={}, children=pods)
    assert tree.as_lines(root) == [
        "crio",
        "├─pod a",
        "│ └─16081 conmon",
        "│   └─16090 redis-server",
        "└─pod b",
        "  └─16081 conmon",
        "    └─16090 redis-server",
    ]
    assert tree.as_data(root)["children"][1]["children"][0]["children"][0]["pid"] == 16090
