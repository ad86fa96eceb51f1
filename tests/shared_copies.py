"""Shares copies between processes, and kills them: run by test_shared_copy.py as a program.

    ENGRAM_SHARED_MEMORY=FOLDER python shared_copies.py fill|use|other|forked|once|COUNT [kill|-]

fill, use, other: a forked child takes a copy and releases it, and is killed (SIGKILL) at its n-th
line of `shared_copy`, for n = 1, 2, ... until it ends by itself. After each, the next start must
get the whole copy, and leave no folder when it is done. "use": the copy lies there, left by a
killed process. "other": the next start wants other contents, and must remove what the child left.
Prints how many lines there were. COUNT processes take the copy at the same time.
"""

from __future__ import annotations

import mmap
import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any

from engram_cli import shared_copy
from engram_cli.shared_copy import HEADER_BYTES, Advance, Contents, SharedCopy

SIZE = 3 * mmap.PAGESIZE + 7
WANTED = Contents(about={"layer": 1}, size=SIZE)
OTHER = Contents(about={"layer": 2}, size=SIZE)
FOLDER = shared_copy.shared_folder()


def bytes_of(contents: Contents) -> bytes:
    """The bytes that a copy must have."""
    return (bytes(range(251)) * (1 + contents.size // 251))[contents.about["layer"] :][
        : contents.size
    ]


def take(contents: Contents) -> SharedCopy[mmap.mmap]:
    """Take a copy, filled piece by piece, and check its bytes."""
    whole = bytes_of(contents)

    def fill(memory: mmap.mmap, advance: Advance) -> None:
        for begin in range(0, len(whole), 5000):
            piece = whole[begin : begin + 5000]
            memory[HEADER_BYTES + begin : HEADER_BYTES + begin + len(piece)] = piece
            advance(len(piece))

    copy = shared_copy.open_copy(contents, fill, mmap.mmap)
    assert copy.memory[HEADER_BYTES : HEADER_BYTES + contents.size] == whole
    return copy


def killed_at(line: int) -> bool:
    """Take and release in a child that is killed at its n-th line; False if it ended before."""
    child = os.fork()
    if child:
        return os.WIFSIGNALED(os.waitpid(child, 0)[1])
    left = line

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal left
        if frame.f_code.co_filename != shared_copy.__file__ and frame.f_code.co_name != "fill":
            return None
        if event == "line":
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace

    sys.settrace(trace)
    take(WANTED).release()
    sys.settrace(None)
    os._exit(0)


def leave_whole() -> None:
    """Leave a whole copy, as a process does that is killed while it uses it."""
    child = os.fork()
    if not child:
        take(WANTED)
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)


def sweep(case: str) -> None:
    """Kill at all lines."""
    line = 1
    while True:
        if case == "use":
            leave_whole()
        killed = killed_at(line)
        wanted = OTHER if case == "other" else WANTED
        shared_copy.check_room([wanted])
        take(wanted).release()
        assert not FOLDER.exists(), (line, sorted(os.listdir(FOLDER)))
        if not killed:
            break
        line += 1
    print(line - 1)


def together(count: int, *, kill: bool) -> None:
    """Let processes take a copy at the same time; with `kill`, the first dies while it fills it.

    The first is halfway through when the others start, and continues or dies when they wait.
    """
    started, fillers = os.pipe(), os.pipe()

    def child(number: int) -> None:
        whole = bytes_of(WANTED)

        def fill(memory: mmap.mmap, advance: Advance) -> None:
            os.write(fillers[1], bytes([number]))
            memory[HEADER_BYTES : HEADER_BYTES + 9] = whole[:9]
            advance(9)
            if number == 0:
                os.write(started[1], b".")
                time.sleep(0.2)
                if kill:
                    os.kill(os.getpid(), signal.SIGKILL)
            memory[HEADER_BYTES : HEADER_BYTES + len(whole)] = whole

        copy = shared_copy.open_copy(WANTED, fill, mmap.mmap)
        assert copy.memory[HEADER_BYTES : HEADER_BYTES + len(whole)] == whole
        time.sleep(0.1)  # all use it at the same time
        copy.release()

    children = []
    for number in range(count):
        child_id = os.fork()
        if not child_id:
            child(number)
            os._exit(0)
        children.append(child_id)
        if number == 0:
            os.read(started[0], 1)
    codes = [os.waitstatus_to_exitcode(os.waitpid(each, 0)[1]) for each in children]
    assert codes == [-signal.SIGKILL if kill else 0] + [0] * (count - 1), codes
    found = os.read(fillers[0], 99)
    assert found[0] == 0
    assert len(found) == 1 + kill, found
    assert not FOLDER.exists()
    print(len(found))


def forked() -> None:
    """A forked child ends, and lets go of its parent's copy: the parent still has it."""
    copy = take(WANTED)
    child = os.fork()
    if not child:
        copy.release()
        os._exit(0)
    os.waitpid(child, 0)
    assert copy.path.exists()
    other = take(WANTED)
    assert not other.filled
    other.release()
    assert copy.path.exists()
    copy.release()
    assert not FOLDER.exists()
    print(1)


def counted_once() -> None:
    """Two processes map a large copy: the kernel counts half of its memory for each."""
    large = Contents(about={"layer": 3}, size=16 * 2**20)
    ready, measured, measure, leave = (os.pipe() for _ in range(4))
    for _ in range(2):
        if os.fork():
            continue
        copy = take(large)  # which reads all of it
        os.write(ready[1], b".")
        os.read(measure[0], 1)
        lines = Path("/proc/self/smaps").read_text().splitlines()
        at = next(i for i, line in enumerate(lines) if line.endswith(copy.path.name))
        sizes = {line.split(":")[0]: int(line.split()[1]) for line in lines[at + 1 : at + 12]}
        os.write(measured[1], f"{sizes['Rss']} {sizes['Pss']}\n".encode())
        os.read(leave[0], 1)
        copy.release()
        os._exit(0)
    for pipe, mark, after in ((ready, b".", measure), (measured, b"\n", leave)):
        text = b""
        while text.count(mark) < 2:
            text += os.read(pipe[0], 999)
        os.write(after[1], b"..")
    for line in text.decode().splitlines():
        rss, pss = (int(word) * 1024 for word in line.split())
        assert rss >= large.size, line
        assert abs(pss - rss / 2) < 2**20, line
    for _ in range(2):
        assert os.wait()[1] == 0
    assert not FOLDER.exists()
    print(1)


if __name__ == "__main__":
    case = sys.argv[1]
    if case in ("forked", "once"):
        {"forked": forked, "once": counted_once}[case]()
    elif case.isdecimal():
        together(int(case), kill=sys.argv[2] == "kill")
    else:
        sweep(case)
