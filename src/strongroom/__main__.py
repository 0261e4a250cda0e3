"""`python -m strongroom` is the command `strongroom`."""

import sys

if __name__ == "__main__":
    if not sys.flags.safe_path:
        del sys.path[0]  # the working directory, whose files would come before all modules
    from strongroom.cli.main import main

    main()
