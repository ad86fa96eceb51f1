"""Threads that gather records from host memory, and copy them to a GPU, without the interpreter."""
