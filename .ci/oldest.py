"""Print, as constraints for pip, the oldest versions that pyproject.toml allows, tests included."""

import re
import tomllib
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1] / "pyproject.toml"


def oldest(project: dict) -> list[str]:
    """name==version of every requirement of the package and of its tests.

    Raises ValueError where one has no lower bound, or something beside it that is not checked.
    """
    found = []
    for requirement in (
        project["dependencies"] + project["optional-dependencies"]["test"]
    ):
        match = re.fullmatch(r"([\w.-]+)>=([\w.]+)", requirement)
        if not match:
            raise ValueError(
                f"{requirement} in {PROJECT} is not of the form name>=version"
            )
        found.append("{}=={}".format(*match.groups()))
    return found


if __name__ == "__main__":
    print(
        "\n".join(oldest(tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]))
    )
