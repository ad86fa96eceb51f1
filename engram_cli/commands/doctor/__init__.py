"""`engram doctor`: what this machine offers for tables."""
