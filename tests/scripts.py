"""Processes of the tests: scripts, arguments in and what they print out, and forked children."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def run_script(script: str, *arguments: object, timeout: float | None = None) -> Any:
    """The JSON in the last line that `script`, a path below the tests, prints."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(HERE / script), *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE), *sys.path])},
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def run_on_ray(script: str, folder: Path) -> tuple[Any, Path]:
    """What `run_script` gives of a script on a Ray cluster that works in `folder`; and the folder.

    Ray's own checks end the process now and then when a node is lost while a task completes: the
    script then runs once more, in a copy of the folder as it was.
    """
    spare = folder.with_name(f"{folder.name}-again")
    shutil.copytree(folder, spare)
    try:
        return run_script(script, folder, timeout=300), folder
    except AssertionError as error:
        if "You have likely discovered a bug in Ray" not in str(error):
            raise
    return run_script(script, spare, timeout=300), spare


def dies(work: Callable[[], object], what: str, *, after: float | None = None) -> bool:
    """Return whether a forked child that does `work` was killed, by itself or `after` seconds.

    Raises SystemExit, which says `what` was done, where it failed instead.
    """
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException as error:
            print(repr(error), file=sys.stderr)
            os._exit(1)
        os._exit(0)
    if after is not None:
        time.sleep(after)
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    if not os.WIFSIGNALED(status) and os.WEXITSTATUS(status) != 0:
        raise SystemExit(f"{what} failed after a kill")
    return os.WIFSIGNALED(status)
