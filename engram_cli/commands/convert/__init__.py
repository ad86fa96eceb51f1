"""`engram convert`: tables from other formats to ours and back."""
