"""`python -m magbatch` is the `magbatch` command."""

from magbatch.cli import main

if __name__ == "__main__":
    main()
