"""`python -m engram_cli` and the `engram` script."""

from __future__ import annotations

import gc
import sys

# Python looks for cycles after every 700 new containers. Loading code and results makes a hundred
# thousand that stay: looking took 0.17 s of the 2 s of a small hash-stats, 0.7 s of a larger one.
_CONTAINERS = 50_000

WINDOWS = "engram runs on Linux and macOS, not on Windows - run it in WSL (wsl --install)"


def main() -> None:
    """Run the command line and leave with its exit code; on Windows, say that it cannot run."""
    if sys.platform == "win32":
        sys.stderr.write(f"error: {WINDOWS}\n")
        sys.exit(2)
    gc.set_threshold(_CONTAINERS)
    from engram_cli import interrupts

    interrupts.before()
    from engram_cli.cli.app import run

    try:
        run()
    finally:
        # The process ends: looking at all objects once more took 0.25 s. Triton complains on stderr
        # about those of its own that are still there then.
        if "triton" not in sys.modules:
            gc.freeze()


if __name__ == "__main__":
    main()
