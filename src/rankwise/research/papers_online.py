"""Papers by identifier or title, from OpenAlex, arXiv and Semantic Scholar. Needs the extra `research` and a network;
without a network it says so once, and files go on working."""

import json
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Literal, TypeAlias
from urllib.parse import quote as quoted_for_url
from urllib.parse import urlsplit

from rankwise import __version__
from rankwise.errors import ConfigError, Finding, MissingPackageError
from rankwise.research.artefacts import Paper
from rankwise.research.papers_entries import arxiv_in, doi_in
from rankwise.research.papers_merge import same_title, title_words
from rankwise.research.papers_services import from_arxiv, from_openalex, from_semantic_scholar

Kind: TypeAlias = Literal["arxiv", "doi", "openalex", "s2", "title"]
SECONDS = 20.0
TRIES = 4
LONGEST_WAIT = 30.0
MAX_ANSWER = 10_000_000
S2_FIELDS = "title,abstract,authors,year,externalIds,url"
ADDRESSES = {
    "openalex": ("RANKWISE_OPENALEX_URL", "https://api.openalex.org"),
    "arxiv": ("RANKWISE_ARXIV_URL", "https://export.arxiv.org/api"),
    "s2": ("RANKWISE_SEMANTIC_SCHOLAR_URL", "https://api.semanticscholar.org/graph/v1"),
}
NAMES = {"openalex": "OpenAlex", "arxiv": "arXiv", "s2": "Semantic Scholar"}
MAIL = "RANKWISE_MAIL"
OPENALEX_KEY = "RANKWISE_OPENALEX_KEY"
S2_KEY = "RANKWISE_SEMANTIC_SCHOLAR_KEY"


@dataclass(frozen=True)
class Reference:
    """What somebody wants: a kind of name, and the name."""

    kind: Kind
    name: str


class Unreachable(Exception):
    """A service cannot be reached, or answers with an error after all tries; the message says which."""


def reference(text: str) -> Reference | None:
    """What a source on the command line means, if it is the name of a paper: an arXiv number, a DOI, an OpenAlex or
    Semantic Scholar id, one of their addresses, or a title (two words or more). None: none of these."""
    text = text.strip()
    if not text.isprintable():
        return None
    web = re.match(r"https?://", text) is not None
    if (arxiv := arxiv_in(text)) and (not web or "arxiv.org" in text) and not doi_in(text):
        bare = re.sub(r"^(?:arxiv:|https?://(?:www\.|export\.)?arxiv\.org/\w+/)|v\d+$|\.pdf$", "", text, flags=re.I)
        if re.sub(r"v\d+$", "", bare).lower() == arxiv:
            return Reference("arxiv", arxiv)
    if (doi := doi_in(text)) and re.fullmatch(r"(?:doi:\s*|https?://(?:dx\.)?doi\.org/)?\S+", text, re.I):
        of_arxiv = arxiv_in(doi.removeprefix("10.48550/arxiv.")) if doi.startswith("10.48550/arxiv.") else None
        return Reference("arxiv", of_arxiv) if of_arxiv else Reference("doi", doi)
    if found := re.fullmatch(r"(?:https?://(?:api\.)?openalex\.org/(?:works/)?)?(W\d{4,12})", text):
        return Reference("openalex", found[1])
    if found := re.fullmatch(r"(?:s2:|https?://\S*semanticscholar\.org/\S*?)?([0-9a-f]{40})", text):
        return Reference("s2", found[1])
    if found := re.fullmatch(r"corpus_?id:(\d+)", text, re.I):
        return Reference("s2", f"CorpusId:{found[1]}")
    return Reference("title", text) if not web and len(title_words(text)) > 1 and len(text) < 400 else None


@dataclass
class Services:
    """The three services behind one client. Use it as a context manager.

    Addresses, a mail address for politeness and keys come from the environment. `sleep` waits between tries.

    Raises:
        MissingPackageError: on entering, if httpx2 is not installed.
    """

    environment: Mapping[str, str] = field(default_factory=lambda: os.environ)
    seconds: float = SECONDS
    sleep: Callable[[float], None] = time.sleep

    def __enter__(self) -> "Services":
        try:
            import httpx2
        except ImportError:
            raise MissingPackageError('papers by name need httpx2: pip install "rankwise[research]"') from None
        mail = self.environment.get(MAIL, "").strip()
        agent = f"rankwise/{__version__}" + (f" (mailto:{mail})" if mail else "")
        usual = httpx2.Timeout(self.seconds, connect=min(self.seconds, 5.0))
        self._http = httpx2.Client(
            timeout=usual,
            headers={"User-Agent": agent},
            follow_redirects=True,
            event_hooks={"request": [self._keep_key]},
        )
        self._trouble: tuple[type[Exception], ...] = (httpx2.TransportError, httpx2.TooManyRedirects)
        self._invalid: tuple[type[Exception], ...] = (httpx2.InvalidURL, httpx2.UnsupportedProtocol)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def find(self, wanted: Reference) -> Paper:
        """The paper of a name.

        Raises:
            LookupError: no service knows it (with the nearest title that was found).
            Unreachable: the services that could know it cannot be asked; the first one's trouble.
        """
        troubles: list[Unreachable] = []
        near: list[Paper] = []
        for ask in self._ways(wanted):
            try:
                papers = ask()
            except Unreachable as trouble:
                troubles.append(trouble)
                continue
            for paper in papers:
                if wanted.kind != "title" or same_title(paper.title, wanted.name):
                    return paper
            near += papers
        if troubles and not near:
            raise troubles[0]
        nearest = f"; nearest is {near[0].title!r} ({near[0].arxiv or near[0].doi or near[0].source})" if near else ""
        raise LookupError(f"no paper of that {'title' if wanted.kind == 'title' else 'id'} is known{nearest}")

    def _ways(self, wanted: Reference) -> list[Callable[[], Sequence[Paper]]]:
        name = wanted.name
        url_name = quoted_for_url(name, safe="")
        arxiv = (
            {"id_list": name}
            if wanted.kind == "arxiv"
            else {"search_query": f'ti:"{_plain(name)}"', "max_results": "5"}
        )
        by_kind: dict[Kind, list[Callable[[], Sequence[Paper]]]] = {
            "arxiv": [lambda: self._arxiv(arxiv), lambda: self._s2(f"paper/ARXIV:{url_name}")],
            "doi": [lambda: self._openalex(f"works/doi:{url_name}"), lambda: self._s2(f"paper/DOI:{url_name}")],
            "openalex": [lambda: self._openalex(f"works/{url_name}")],
            "s2": [lambda: self._s2(f"paper/{url_name}")],
            "title": [
                lambda: self._openalex("works", {"search": _plain(name), "per-page": "5"}),
                lambda: self._arxiv(arxiv),
                lambda: self._s2("paper/search/match", {"query": _plain(name)}),
            ],
        }
        return by_kind[wanted.kind]

    def _openalex(self, path: str, query: Mapping[str, str] | None = None) -> Sequence[Paper]:
        said = {"mailto": self.environment.get(MAIL, ""), "api_key": self.environment.get(OPENALEX_KEY, "")}
        body = self._json("openalex", path, {**(query or {}), **{name: text for name, text in said.items() if text}})
        works = body.get("results") if "results" in body else [body]
        return _papers(works, from_openalex)

    def _s2(self, path: str, query: Mapping[str, str] | None = None) -> Sequence[Paper]:
        key = self.environment.get(S2_KEY, "")
        body = self._json("s2", path, {**(query or {}), "fields": S2_FIELDS}, {"x-api-key": key} if key else {})
        return _papers(body.get("data") if "data" in body else [body], from_semantic_scholar)

    def _arxiv(self, query: Mapping[str, str]) -> Sequence[Paper]:
        text = self._get("arxiv", "query", query)
        try:
            return from_arxiv(text) if text else ()
        except ValueError as error:
            raise Unreachable(f"arXiv answers with something that is no feed ({str(error)[:120]})") from None

    def _json(
        self, service: str, path: str, query: Mapping[str, str], headers: Mapping[str, str] | None = None
    ) -> Mapping[str, Any]:
        text = self._get(service, path, query, headers)
        try:
            body = json.loads(text) if text else {}
        except (ValueError, RecursionError):
            raise Unreachable(f"{NAMES[service]} answers with something that is no JSON") from None
        return body if isinstance(body, dict) else {}

    def _keep_key(self, request: Any) -> None:  # noqa: ANN401 - an httpx2.Request, imported lazily
        """Take the key out of a request that a redirect sends to somebody else."""
        home = _origin(self._base("s2"))
        if home is None or _origin(str(request.url)) != home:
            request.headers.pop("x-api-key", None)

    def _base(self, service: str) -> str:
        variable, usual = ADDRESSES[service]
        return (self.environment.get(variable, "").strip() or usual).rstrip("/")

    def _get(self, service: str, path: str, query: Mapping[str, str], headers: Mapping[str, str] | None = None) -> str:
        """The body of an answer; empty if there is no such thing (404).

        Raises:
            Unreachable: no answer, or none but errors, after all tries. Neither query nor headers are shown: keys.
        """
        variable, base = ADDRESSES[service][0], self._base(service)
        for number in range(1, TRIES + 1):
            wait, problem = min(2.0 ** (number - 1), LONGEST_WAIT), ""
            try:
                with self._http.stream("GET", f"{base}/{path}", params=query, headers=headers) as answer:
                    if answer.status_code == 404:
                        return ""
                    if answer.status_code < 400:
                        return self._read(answer, service)
                    problem = f"answers with status {answer.status_code}"
                    if answer.status_code != 429 and answer.status_code < 500:
                        break
                    wait = _asked_to_wait(answer.headers.get("retry-after"), wait)
            except self._invalid as error:
                raise Unreachable(f"{variable} is no address ({error})") from None
            except self._trouble as error:
                problem = f"cannot be reached ({type(error).__name__})"
                if number == 2 and "Connect" in type(error).__name__:  # no network: more tries only take time
                    break
            if number < TRIES:
                self.sleep(wait)
        raise Unreachable(f"{NAMES[service]} {problem}")

    def _read(self, answer: Any, service: str) -> str:  # noqa: ANN401 - an httpx2.Response, imported lazily
        parts, size = [], 0
        for part in answer.iter_bytes():
            size += len(part)
            if size > MAX_ANSWER:
                raise Unreachable(f"{NAMES[service]} answers with more than {MAX_ANSWER:,} bytes")
            parts.append(part)
        return b"".join(parts).decode("utf-8", "replace")


def fetch(wanted: Mapping[str, Reference], services: Services) -> dict[str, Paper]:
    """Papers by what was asked for. `wanted` maps the words on the command line to what they mean.

    Raises:
        ConfigError: some cannot be had; every one is named, and a missing network is said once.
        MissingPackageError: httpx2 is not installed.
    """
    found: dict[str, Paper] = {}
    problems: list[Finding] = []
    unreachable: dict[str, list[str]] = {}
    with services as asked:
        for said, one in wanted.items():
            try:
                found[said] = asked.find(one)
            except LookupError as error:
                problems.append(Finding(said, str(error)))
            except Unreachable as error:
                unreachable.setdefault(str(error), []).append(said)
                if "cannot be reached" in str(error):
                    unreachable[str(error)] = [name for name in wanted if name not in found]
                    break
    for trouble, names in unreachable.items():
        advice = "papers from files need no network"
        problems.append(Finding(", ".join(names), f"{trouble}; {advice}"))
    if problems:
        raise ConfigError("papers", problems)
    return found


def _papers(values: object, read: Callable[[Mapping[str, Any]], Paper | None]) -> Sequence[Paper]:
    listed = values if isinstance(values, list) else []
    return [paper for one in listed if isinstance(one, dict) and (paper := read(one))]


def _origin(address: str) -> tuple[str, str | None, int] | None:
    """Scheme, host and port; None: it is no address, and whoever asks there is told."""
    try:
        parts = urlsplit(address)
        return parts.scheme, parts.hostname, parts.port or (80 if parts.scheme == "http" else 443)
    except ValueError:
        return None


def _plain(title: str) -> str:
    """A title without signs that a search could take for its own."""
    return " ".join(re.findall(r"[\w'’-]+", title))


def _asked_to_wait(said: str | None, otherwise: float) -> float:
    """Seconds of a `Retry-After`, within reason."""
    return min(float(said), LONGEST_WAIT) if said and re.fullmatch(r"\d{1,6}(?:\.\d+)?", said) else otherwise
