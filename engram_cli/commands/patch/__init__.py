"""engram patch: rows of a table or bundle replaced, and put back."""
