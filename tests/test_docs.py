"""The examples in the documentation run as they stand, each page from its first to its last."""

import ast
import inspect
import re
from pathlib import Path

import pytest

from strongroom.settings import variables

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
DOCS = ROOT / "docs"
PROSE = sorted([*ROOT.glob("*.md"), *DOCS.glob("*.md"), *ROOT.glob("examples/*/*.md")])
PAGES = ["store.md", "evolving-a-model.md", "writing-a-provider.md"]


@pytest.mark.parametrize("page", PAGES)
async def test_the_examples_of_a_page_run(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = (DOCS / page).read_text()
    blocks = list(re.finditer(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL))
    assert blocks
    names: dict[str, object] = {"__name__": "example"}
    for block in blocks:
        # Blank lines before the code, so that a traceback tells the page's own line.
        source = "\n" * text.count("\n", 0, block.start(1)) + block.group(1)
        flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        code = compile(source, page, "exec", flags=flags, dont_inherit=True)
        result = eval(code, names)
        if inspect.isawaitable(result):
            await result


def test_the_readme_has_every_setting_with_its_default() -> None:
    rows = re.findall(r"^\| `(FAME_\w+)` \|\s*(.*?)\s*\|", README.read_text(), re.MULTILINE)
    documented = {name: default.strip("`") for name, default in rows}
    expected = {
        name: "" if default is None else str(default).lower()
        for name, default in variables().items()
    }
    expected["FAME_NODE_ID"] = "kept in storage"
    assert documented == expected


@pytest.mark.parametrize("page", PROSE, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        if not target.startswith("https://"):
            assert (page.parent / target).exists(), target
