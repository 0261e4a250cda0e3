"""Print each dependency of pyproject.toml pinned to its lower bound, as constraints for pip."""

import re
import tomllib
from itertools import chain
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    optional = chain.from_iterable(project["optional-dependencies"].values())
    for requirement in [*project["dependencies"], *optional]:
        found = re.match(r"([\w-]+) *>= *([\w.]+)", requirement)
        if found is None:
            raise SystemExit(f"{requirement!r} declares no lower bound. Try: name >= version")
        print(f"{found[1]}=={found[2]}")


if __name__ == "__main__":
    main()
