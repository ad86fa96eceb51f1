"""Draws views as one HTML page that opens offline; it knows no stage that gives them."""
