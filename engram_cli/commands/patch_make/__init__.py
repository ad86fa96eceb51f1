"""engram patch make: facts in, a patch of the rows that teach them out."""
