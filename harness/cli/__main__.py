"""`python -m harness.cli` is `lorebench`."""

from harness.cli.main import main

main()
