"""What the documents say of the code, where a program can compare the two."""

import re
from pathlib import Path

import pytest

from crio_server.cri.v1 import api_pb2 as pb
from crio_server.services.image import ImageService
from crio_server.services.runtime import RuntimeService

REPOSITORY = Path(__file__).resolve().parent.parent.parent
DOCUMENTS = sorted([*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/**/*.md")])
PLACES = ("crio_core/", "crio_io/", "crio_server/", "conmon/", "spec/", "tests/", "scripts/", "docs/", "examples/")


def _name(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


@pytest.mark.parametrize("document", DOCUMENTS, ids=_name)
def test_links_and_paths_of_a_document_exist(document: Path) -> None:
    """A page that points at what has moved is worse than no page."""
    text = document.read_text()
    links = re.findall(r"\]\((?!https?:|#)([^)#\s]+)", text)
    missing = [link for link in links if not (document.parent / link).exists()]
    paths = [path for path in re.findall(r"`([\w./-]+/[\w./-]*)`", text) if path.startswith(PLACES)]
    if "decisions" in document.parts:
        paths = []  # a record tells how things were when it was written
    missing += [path for path in paths if not (REPOSITORY / path).exists()]
    assert missing == []


def test_readme_names_exactly_the_calls_that_are_unimplemented() -> None:
    """Limits are said honestly: neither a gap that is not named, nor one that is closed already."""
    services = {"RuntimeService": RuntimeService, "ImageService": ImageService}
    unimplemented = {
        method.name
        for name, service in services.items()
        for method in pb.DESCRIPTOR.services_by_name[name].methods
        if not hasattr(service, method.name)
    }
    rows = (REPOSITORY / "README.md").read_text().split("<!-- unimplemented", 1)[1].split("\n\n", 1)[0].splitlines()[3:]
    named = {name for row in rows for name in re.findall(r"`(\w+)`", re.sub(r"\(.*?\)", "", row))}
    assert named == unimplemented


def test_architecture_names_things_that_exist() -> None:
    """Names of effects, events, classes and tables on that page are the code's own."""
    text = (REPOSITORY / "docs/architecture.md").read_text()
    names = set(re.findall(r"`_?([A-Z][a-z]+[A-Z]\w+)[`(.]", text))
    names |= set(re.findall(r"\b((?:[A-Z][a-z]+){2,})(?= →|,|$)", text.split("```")[3]))
    assert len(names) > 15
    defined = {message.name for message in pb.DESCRIPTOR.message_types_by_name.values()}
    for package in ("crio_core", "crio_io", "crio_server"):
        for module in (REPOSITORY / package).rglob("*.py"):
            defined.update(re.findall(r"^ *(?:class |async def |def )?(\w+)", module.read_text(), re.MULTILINE))
    defined |= {method.name for service in pb.DESCRIPTOR.services_by_name.values() for method in service.methods}
    assert names - defined == set()
