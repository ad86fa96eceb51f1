"""`python -m engram_cli` and the `engram` script."""

from __future__ import annotations


def main() -> None:
    """Run the command line and leave with its exit code."""
    from engram_cli import interrupts

    interrupts.before()
    from engram_cli.cli.app import run

    run()


if __name__ == "__main__":
    main()
