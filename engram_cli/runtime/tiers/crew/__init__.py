"""Threads that gather records out of host memory and stay awake between requests."""
