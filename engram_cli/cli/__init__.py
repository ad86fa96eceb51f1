"""The command line: the only home of typer and rich. Each file mirrors one of `commands`."""
