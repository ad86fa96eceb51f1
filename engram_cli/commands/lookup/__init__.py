"""`engram lookup`: the rows of a text, with their n-grams and hits."""
