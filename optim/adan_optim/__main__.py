"""Print which optimizers and paths work here, and why the others do not: `python -m adan_optim`."""

import argparse


def main() -> None:
    """Read the command line and print the table."""
    argparse.ArgumentParser(prog="python -m adan_optim", description=__doc__).parse_args()
    from .registry import available

    available()


if __name__ == "__main__":
    main()
