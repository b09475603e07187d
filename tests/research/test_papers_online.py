"""Papers by name, against a server on this machine that speaks like OpenAlex, arXiv and Semantic Scholar."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import pytest

from rankwise.errors import ConfigError
from rankwise.research.papers_online import MAX_ANSWER, Reference, Services, Unreachable, fetch, reference
from rankwise.research.papers_services import from_arxiv

pytest.importorskip("httpx2", reason="httpx2 is in the extra `research`")

WORK = {
    "id": "https://openalex.org/W123456",
    "title": "AdaRank: <i>Adaptive</i> Ranks for Adapters",
    "publication_year": 2023,
    "doi": "https://doi.org/10.1000/ada",
    "authorships": [{"author": {"display_name": "Ann Lee"}}, {"author": None}],
    "locations": [{"landing_page_url": "http://arxiv.org/abs/2303.10512"}, None],
    "abstract_inverted_index": {"Ranks": [0], "adapt": [1, 3], "and": [2]},
}
S2 = {
    "paperId": "f" * 40,
    "title": "AdaRank: Adaptive Ranks for Adapters",
    "year": 2023,
    "abstract": "Ranks adapt.",
    "url": "https://s2.example/x",
    "externalIds": {"ArXiv": "2303.10512", "DOI": "10.1000/ADA"},
    "authors": [{"name": "Ann Lee"}],
}
FEED = """<?xml version="1.0" encoding="UTF-8"?>
<feed xmlns="http://www.w3.org/2005/Atom"><entry><id>http://arxiv.org/abs/2303.10512v2</id>
<published>2023-03-18T00:00:00Z</published><title>AdaRank: Adaptive
  Ranks for Adapters</title><summary> Ranks adapt &amp; adapt. </summary><author><name>Ann Lee</name></author>
<doi xmlns="http://arxiv.org/schemas/atom">10.1000/ada</doi></entry></feed>"""
EMPTY = FEED[: FEED.index("<entry>")] + "</feed>"


class Server:
    """Answers each path with what a test put there: (status, headers, body), one after the other; the last stays."""

    def __init__(self):
        self.answers: dict[str, list[tuple[int, dict[str, str], str]]] = {}
        self.seen: list[tuple[str, dict[str, list[str]], dict[str, str]]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                parts = urlsplit(self.path)
                outer.seen.append((parts.path, parse_qs(parts.query), dict(self.headers)))
                left = outer.answers.get(parts.path, [(404, {}, "not found")])
                status, headers, body = left.pop(0) if len(left) > 1 else left[0]
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                data = body.encode()
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"

    def put(self, path, *bodies):
        self.answers[path] = [
            body if isinstance(body, tuple) else (200, {}, body if isinstance(body, str) else json.dumps(body))
            for body in bodies
        ]

    def services(self, **more):
        waits = []
        environment = {
            "RANKWISE_OPENALEX_URL": f"{self.url}/oa",
            "RANKWISE_ARXIV_URL": f"{self.url}/ax/",
            "RANKWISE_SEMANTIC_SCHOLAR_URL": f"{self.url}/s2",
            **more,
        }
        return Services(environment, seconds=5.0, sleep=waits.append), waits


@pytest.fixture
def server():
    made = Server()
    yield made
    made.http.shutdown()
    made.http.server_close()


@pytest.mark.parametrize(
    ("text", "kind", "name"),
    [
        ("2303.10512", "arxiv", "2303.10512"),
        ("arXiv:2303.10512v2", "arxiv", "2303.10512"),
        ("https://arxiv.org/abs/2303.10512", "arxiv", "2303.10512"),
        ("https://arxiv.org/pdf/2303.10512v1.pdf", "arxiv", "2303.10512"),
        ("10.48550/arXiv.2303.10512", "arxiv", "2303.10512"),
        ("cs.CL/0501001", "arxiv", "cs.cl/0501001"),
        ("10.18653/v1/N19-1423", "doi", "10.18653/v1/n19-1423"),
        ("https://doi.org/10.18653/v1/N19-1423", "doi", "10.18653/v1/n19-1423"),
        ("doi:10.1000/x", "doi", "10.1000/x"),
        ("W2741809807", "openalex", "W2741809807"),
        ("https://openalex.org/W2741809807", "openalex", "W2741809807"),
        ("a" * 40, "s2", "a" * 40),
        ("CorpusID:215416146", "s2", "CorpusId:215416146"),
        ("Adaptive Budget Allocation", "title", "Adaptive Budget Allocation"),
        ("word", None, ""),
        ("https://example.org/x", None, ""),
        ("", None, ""),
    ],
)
def test_what_a_name_means(text, kind, name):
    found = reference(text)
    assert (found.kind, found.name) == (kind, name) if kind else found is None


def test_the_key_does_not_follow_a_redirect_to_somebody_else(server):
    other = Server()
    try:
        there = f"/s2/paper/{'f' * 40}"
        server.put(there, (302, {"Location": f"{server.url}/s2/moved"}, ""))
        server.put("/s2/moved", (302, {"Location": f"{other.url}/s2/moved"}, ""))
        other.put("/s2/moved", S2)
        services, _ = server.services(RANKWISE_SEMANTIC_SCHOLAR_KEY="sesame")
        assert fetch({"x": Reference("s2", "f" * 40)}, services)["x"].title == S2["title"]
        keys = [headers.get("x-api-key") for _, _, headers in (*server.seen, *other.seen)]
        assert keys == ["sesame", "sesame", None]
    finally:
        other.http.shutdown()
        other.http.server_close()


@pytest.mark.parametrize("address", ["http://127.0.0.1:99999", "http://[host"])
def test_an_address_that_is_none_matters_only_to_who_asks_there(server, address):
    server.put("/oa/works/doi:10.1000%2Fada", WORK)
    services, _ = server.services(RANKWISE_SEMANTIC_SCHOLAR_URL=address)
    assert fetch({"x": Reference("doi", "10.1000/ada")}, services)["x"].id == "lee-2023-adarank"
    with pytest.raises(ConfigError, match=r"RANKWISE_SEMANTIC_SCHOLAR_URL is no address|cannot be reached"):
        fetch({"x": Reference("s2", "f" * 40)}, services)


def test_by_doi_from_openalex(server):
    server.put("/oa/works/doi:10.1000%2Fada", WORK)
    services, _ = server.services(RANKWISE_MAIL="me@example.org", RANKWISE_OPENALEX_KEY="sesame")
    paper = fetch({"x": Reference("doi", "10.1000/ada")}, services)["x"]
    assert (paper.title, paper.id, paper.year) == ("AdaRank: Adaptive Ranks for Adapters", "lee-2023-adarank", 2023)
    assert (paper.doi, paper.arxiv, paper.authors) == ("10.1000/ada", "2303.10512", ("Ann Lee",))
    assert paper.contributions[0].text == "Ranks adapt and adapt"
    assert paper.source == "https://openalex.org/W123456"
    _, query, headers = server.seen[0]
    assert query == {"mailto": ["me@example.org"], "api_key": ["sesame"]}
    assert "mailto:me@example.org" in headers["User-Agent"]


def test_by_number_from_arxiv_and_then_from_semantic_scholar(server):
    server.put("/ax/query", FEED, EMPTY)
    server.put("/s2/paper/ARXIV:2303.10512", S2)
    services, _ = server.services(RANKWISE_SEMANTIC_SCHOLAR_KEY="sesame")
    with services as asked:
        first, second = (asked.find(Reference("arxiv", "2303.10512")) for _ in range(2))
    assert (first.title, first.arxiv, first.doi, first.year) == (
        "AdaRank: Adaptive Ranks for Adapters",
        "2303.10512",
        "10.1000/ada",
        2023,
    )
    assert first.contributions[0].text == "Ranks adapt & adapt."
    assert first.source == "http://arxiv.org/abs/2303.10512v2"
    assert (second.title, second.doi, second.source) == (
        "AdaRank: Adaptive Ranks for Adapters",
        "10.1000/ada",
        "https://s2.example/x",
    )
    assert server.seen[0][1] == {"id_list": ["2303.10512"]}
    assert server.seen[-1][2]["x-api-key"] == "sesame"


def test_by_title_only_the_same_title_counts(server):
    server.put("/oa/works", {"results": [WORK | {"title": "Another Paper Altogether"}]})
    server.put("/ax/query", EMPTY)
    server.put("/s2/paper/search/match", {"data": [S2]})
    services, _ = server.services()
    paper = fetch({"t": Reference("title", "ADARANK - adaptive ranks for adapters")}, services)["t"]
    assert paper.arxiv == "2303.10512"
    with pytest.raises(
        ConfigError,
        match=r"Ranks of Somebody Else: no paper of that title is known; nearest is 'Another Paper Altogether' \(2303",
    ):
        fetch({"Ranks of Somebody Else": Reference("title", "Ranks of Somebody Else")}, services)


def test_busy_services_are_asked_again_after_a_while(server):
    busy, broken = (429, {"Retry-After": "7"}, "slow down"), (503, {}, "oops")
    server.put("/oa/works/W123456", busy, broken, WORK)
    services, waits = server.services()
    assert fetch({"x": Reference("openalex", "W123456")}, services)["x"].year == 2023
    assert waits == [7.0, 2.0]


@pytest.mark.parametrize(
    ("answer", "message", "requests"),
    [
        ((500, {}, "oops"), "OpenAlex answers with status 500", 4),
        ((429, {"Retry-After": "99999"}, ""), "OpenAlex answers with status 429", 4),
        ((403, {}, "key?"), "OpenAlex answers with status 403", 1),
        ((200, {}, "<html>"), "OpenAlex answers with something that is no JSON", 1),
        ((200, {}, "[" * 100_000), "OpenAlex answers with something that is no JSON", 1),
        ((200, {}, "x" * (MAX_ANSWER + 1)), "OpenAlex answers with more than 10,000,000 bytes", 1),
        ((200, {}, "[]"), "no paper of that id is known", 1),
        ((200, {}, '{"title": null}'), "no paper of that id is known", 1),
        ((404, {}, ""), "no paper of that id is known", 1),
    ],
)
def test_trouble_is_said_in_one_sentence_without_the_key(server, answer, message, requests):
    server.put("/oa/works/W123456", answer)
    services, waits = server.services(RANKWISE_OPENALEX_KEY="sesame")
    with pytest.raises(ConfigError, match=message) as caught:
        fetch({"W123456": Reference("openalex", "W123456")}, services)
    assert "sesame" not in str(caught.value)
    assert len(server.seen) == requests
    assert max(waits, default=0) <= 30


def test_without_a_network_it_says_so_once(server):
    server.http.server_close()
    services, waits = server.services()
    wanted = {"2303.10512": Reference("arxiv", "2303.10512"), "Two Words": Reference("title", "Two Words")}
    with pytest.raises(ConfigError) as caught:
        fetch(wanted, services)
    assert (
        str(caught.value) == "papers: 1 problem\n  2303.10512, Two Words: arXiv cannot be reached (ConnectError); "
        "papers from files need no network"
    )
    assert len(waits) <= 2


def test_an_address_that_is_none():
    services = Services({"RANKWISE_OPENALEX_URL": "not an address"}, sleep=lambda _: None)
    with pytest.raises(ConfigError, match="RANKWISE_OPENALEX_URL is no address"):
        fetch({"W123456": Reference("openalex", "W123456")}, services)


def test_a_feed_with_entities_is_refused():
    bomb = '<?xml version="1.0"?><!DOCTYPE feed [<!ENTITY a "aaaa">]><feed>&a;</feed>'
    with pytest.raises(ValueError, match="declares a document type"):
        from_arxiv(bomb)
    with pytest.raises(ValueError, match="mismatched"):
        from_arxiv("<feed></fed>")
    assert from_arxiv(FEED.replace("http://arxiv.org/abs/2303.10512v2", "http://arxiv.org/api/errors#x")) == ()


def test_a_feed_that_is_none_is_trouble(server):
    server.put("/ax/query", "<html><br></html>")
    services, _ = server.services()
    with services as asked, pytest.raises(Unreachable, match="something that is no feed"):
        asked._arxiv({"id_list": "1"})
