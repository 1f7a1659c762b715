"""Print which optimizers and paths work on this machine, and why the others do not: `python -m optim`."""

import argparse


def main() -> None:
    """Read the command line and print the table."""
    argparse.ArgumentParser(prog="python -m optim", description=__doc__).parse_args()
    from .registry import available

    available()


if __name__ == "__main__":
    main()
