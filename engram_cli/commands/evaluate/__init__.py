"""`engram evaluate`: the loss of a model alone and with its memory."""
