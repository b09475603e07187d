"""What OpenAlex, arXiv and Semantic Scholar answer, as papers. Pure functions: text in, papers out."""

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Mapping
from typing import Any

from rankwise.research.artefacts import Paper, Statement
from rankwise.research.papers_entries import arxiv_in, doi_in, named
from rankwise.research.parse import text_of

_ATOM = "{http://www.w3.org/2005/Atom}"
_ARXIV_SPACE = "{http://arxiv.org/schemas/atom}"
_TAG = re.compile(r"</?[A-Za-z][^<>]{0,80}>")


def from_openalex(work: Mapping[str, Any]) -> Paper | None:
    """A work of OpenAlex; its abstract comes as words with their positions. None: it has no title."""
    authors = [_dict(_dict(one).get("author")).get("display_name") for one in _list(work.get("authorships"))]
    ids, places = _dict(work.get("ids")), _list(work.get("locations"))
    addresses = [str(_dict(place).get("landing_page_url") or "") for place in places]
    arxiv = next((arxiv_in(address) for address in addresses if "arxiv.org" in address), None)
    doi = doi_in(str(work.get("doi") or ids.get("doi") or ""))
    abstract = _inverted(_dict(work.get("abstract_inverted_index")))
    title = work.get("title") or work.get("display_name")
    return _paper(title, authors, work.get("publication_year"), doi, arxiv, abstract, str(work.get("id") or "OpenAlex"))


def from_semantic_scholar(paper: Mapping[str, Any]) -> Paper | None:
    """A paper of Semantic Scholar. None: it has no title."""
    ids = _dict(paper.get("externalIds"))
    authors = [_dict(one).get("name") for one in _list(paper.get("authors"))]
    name = paper.get("url") or f"Semantic Scholar {paper.get('paperId', '')}"
    arxiv = arxiv_in(str(ids.get("ArXiv") or ""))
    return _paper(
        paper.get("title"),
        authors,
        paper.get("year"),
        doi_in(str(ids.get("DOI") or "")),
        arxiv,
        paper.get("abstract"),
        name,
    )


def from_arxiv(feed: str) -> tuple[Paper, ...]:
    """The papers of an answer of arXiv (Atom).

    Raises:
        ValueError: it is not XML, or it declares a document type (arXiv's does not; entities can be made to explode).
    """
    if "<!DOCTYPE" in feed or "<!ENTITY" in feed:
        raise ValueError("the answer declares a document type")
    try:
        root = ElementTree.fromstring(feed)
    except ElementTree.ParseError as error:
        raise ValueError(str(error)) from None
    found = []
    for entry in root.iter(f"{_ATOM}entry"):
        address = entry.findtext(f"{_ATOM}id") or ""
        if "/api/errors" in address:
            continue
        authors = [one.findtext(f"{_ATOM}name") for one in entry.iter(f"{_ATOM}author")]
        doi = doi_in(entry.findtext(f"{_ARXIV_SPACE}doi") or "")
        year = (entry.findtext(f"{_ATOM}published") or "")[:4]
        title, abstract = entry.findtext(f"{_ATOM}title"), entry.findtext(f"{_ATOM}summary")
        number = arxiv_in(address.partition("/abs/")[2] or address)
        paper = _paper(title, authors, int(year) if year.isdigit() else None, doi, number, abstract, address)
        found += [paper] if paper else []
    return tuple(found)


def _paper(
    title: object,
    authors: Iterable[object],
    year: object,
    doi: str | None,
    arxiv: str | None,
    abstract: object,
    source: str,
) -> Paper | None:
    said = " ".join(_TAG.sub("", text_of(title, 2_000)).split())
    if not said:
        return None
    names = tuple(" ".join(str(name).split())[:300] for name in authors if name)
    told = " ".join(_TAG.sub(" ", text_of(abstract, 20_000)).split())
    published = year if isinstance(year, int) and 1800 <= year <= 2200 else None
    if doi and doi.startswith("10.48550/arxiv."):
        arxiv = arxiv or arxiv_in(doi.removeprefix("10.48550/arxiv."))
        doi = None
    return Paper(
        id=named(said, names, published),
        title=said,
        authors=names,
        year=published,
        doi=doi,
        arxiv=arxiv,
        source=source[:500],
        contributions=(Statement(text=told, passage=told),) if told else (),
    )


def _inverted(index: Mapping[str, Any]) -> str:
    at = {place: word for word, places in index.items() for place in _list(places) if isinstance(place, int)}
    return " ".join(at[place] for place in sorted(at)[:10_000])


def _dict(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []
