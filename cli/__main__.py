"""`python -m tlc.cli` is `tlc`."""

from tlc.cli.main import main

main()
