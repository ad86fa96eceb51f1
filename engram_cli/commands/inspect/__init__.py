"""`engram inspect`: what a table, a bundle or a folder holds."""
