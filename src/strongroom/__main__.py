"""The command `strongroom`, also as `python -m strongroom`."""

import sys


def main() -> None:
    """Run the command line. The version needs nothing of what takes time to load."""
    if sys.argv[1:] == ["--version"]:
        from strongroom.version import __version__  # noqa: PLC0415

        print(f"strongroom {__version__}")  # noqa: T201
        return
    from strongroom.cli.main import main as run  # noqa: PLC0415

    run()


if __name__ == "__main__":
    if not sys.flags.safe_path:
        del sys.path[0]  # the working directory, whose files would come before all modules
    main()
