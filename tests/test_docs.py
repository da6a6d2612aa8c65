"""Documents: their examples run, and their links lead somewhere."""

import doctest
import re
from pathlib import Path

import pytest

from tests.device import cpu_only
from tests.isolated import ROOT

pytestmark = cpu_only
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("examples/*.md")])


@pytest.fixture(params=DOCUMENTS, ids=lambda path: path.name)
def document(request: pytest.FixtureRequest) -> Path:
    return request.param


def test_examples(document: Path) -> None:
    test = doctest.DocTestParser().get_doctest(
        document.read_text(), {}, document.name, str(document), 0
    )
    assert doctest.DocTestRunner().run(test).failed == 0


def test_python_blocks_compile(document: Path) -> None:
    for block in re.findall(r"```python\n(.*?)```", document.read_text(), re.DOTALL):
        if ">>>" not in block:
            compile(block, str(document), "exec")


def test_links(document: Path) -> None:
    visible = re.sub("<!--.*?-->", "", document.read_text(), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)]+)\)", visible):
        if not link.startswith("https://"):
            assert (document.parent / link.partition("#")[0]).exists(), link
