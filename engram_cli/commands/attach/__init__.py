"""`engram attach`: a bundle for a checkpoint, from a table or from other people's weights."""
