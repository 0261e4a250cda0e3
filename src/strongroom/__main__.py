"""`python -m strongroom` is the command `strongroom`."""

from strongroom.cli.main import main

if __name__ == "__main__":
    main()
