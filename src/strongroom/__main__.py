"""The command `strongroom`, also as `python -m strongroom`."""

import sys

from strongroom.version import __version__


def main() -> None:
    """Run the command line. The version needs nothing of what takes time to load."""
    if sys.argv[1:] == ["--version"]:
        print(f"strongroom {__version__}")  # noqa: T201
        return
    from strongroom.cli.main import main as run  # noqa: PLC0415

    run()


if __name__ == "__main__":
    main()
