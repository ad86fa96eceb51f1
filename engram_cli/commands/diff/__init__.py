"""`engram diff`: which rows of two tables differ, and which n-grams they stand for."""
