"""`engram plan`: how many rows a model and a corpus need."""
