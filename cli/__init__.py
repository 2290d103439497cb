"""The `tlc` command: parse, call one function, print."""
