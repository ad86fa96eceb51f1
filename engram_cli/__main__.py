"""`python -m engram_cli` and the `engram` script."""

from __future__ import annotations

import sys

WINDOWS = "engram runs on Linux and macOS, not on Windows - run it in WSL (wsl --install)"


def main() -> None:
    """Run the command line and leave with its exit code; on Windows, say that it cannot run."""
    if sys.platform == "win32":
        sys.stderr.write(f"error: {WINDOWS}\n")
        sys.exit(2)
    from engram_cli import interrupts

    interrupts.before()
    from engram_cli.cli.app import run

    run()


if __name__ == "__main__":
    main()
