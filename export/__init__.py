"""Changing format, one function per arrow, and checking that nothing was lost on the way."""
