"""`engram verify`: whether an artifact is complete and its rows are right."""
