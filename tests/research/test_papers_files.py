"""PDF, Markdown and text split by headings; verbatim passages; summaries that are checked against the paper."""

import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankwise.errors import ConfigError, ModelAnswerError
from rankwise.research import papers_files
from rankwise.research.asking import Answer
from rankwise.research.papers_files import FIELD_CHARACTERS, Source, field_of, paper_of, read_source, sections
from rankwise.research.project import Made
from rankwise.research.summaries import Summary, excerpt, is_summary_of, problems, summarise
from rankwise.research.verbatim import found, visible

MARKDOWN = """# Sparing Ranks

Ann Lee, arXiv:2401.01234, doi 10.1000/spare.1

## Abstract

We spare ranks in small models, which costs nothing that we could measure.

## 2 Method

Small singular values are dropped after a warm-up of one epoch; the rest goes on as before.

### 2.1 Why it holds

The dropped directions carry little of the loss, as far as the first order can tell.

## Related Work

Others have pruned whole layers, which is a different thing from what we do here.

## Experiments

We use RTE and SST-2 with three seeds, and LoRA of rank 8 as the baseline.

Results
=======

Accuracy is 71.2 on RTE, within half a point of LoRA, at half the parameters.

## Limitations

Only one model was tried, and no control with random ranks was run at all.

## Conclusion

In future work we would like to spare attention heads in the same manner.

## References

Nobody, A. A paper about nothing, with a long title that says so. 1999.
"""


def pdf(pages, info="", tail=b""):
    """A PDF by hand: one page per list of lines."""
    parts = [b"<< /Type /Catalog /Pages 2 0 R >>"]
    kids = " ".join(f"{4 + 2 * n} 0 R" for n in range(len(pages)))
    parts.append(f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>".encode())
    parts.append(b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>")
    for number, lines in enumerate(pages):
        shown = "\n".join(f"({line}) Tj 0 -14 Td" for line in lines)
        stream = f"BT /F1 11 Tf 72 720 Td {shown} ET".encode("latin-1")
        page = "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Resources << /Font << /F1 3 0 R >> >> "
        page += f"/Contents {5 + 2 * number} 0 R >>"
        parts += [page.encode(), b"<< /Length %d >>\nstream\n%s\nendstream" % (len(stream), stream)]
    parts.append(f"<< {info} >>".encode("latin-1"))
    out, places = b"%PDF-1.4\n", []
    for number, part in enumerate(parts, start=1):
        places.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, part)
    at = len(out)
    out += b"xref\n0 %d\n0000000000 65535 f \n" % (len(parts) + 1) + b"".join(
        b"%010d 00000 n \n" % place for place in places
    )
    out += b"trailer\n<< /Size %d /Root 1 0 R /Info %d 0 R >>\nstartxref\n%d\n%%%%EOF" % (
        len(parts) + 1,
        len(parts),
        at,
    )
    return out + tail


PAGES = (
    [
        "Sparing Ranks in Small Models",
        "Abstract",
        "We spare ranks in small models, which costs noth-",
        "ing that we could measure.",
        "arXiv:2401.01234v2 [cs.LG] 5 Jan 2024",
        "1 Introduction",
        "Ranks are given to all matrices alike, though some need none of it.",
    ],
    [
        "2 Method",
        "Small singular values are dropped after a warm-up of one epoch.",
        "3 Experiments",
        "We use RTE and SST-2 with three seeds and LoRA as the baseline.",
        "References",
        "Nobody, A. A paper about nothing, with a long title that says so.",
    ],
)


def write(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_markdown_is_split_by_its_headings(tmp_path):
    source = read_source(write(tmp_path, "a.md", MARKDOWN))
    paper = paper_of(source)
    assert (paper.title, paper.id, paper.arxiv, paper.doi) == (
        "Sparing Ranks",
        "sparing-ranks",
        "2401.01234",
        "10.1000/spare.1",
    )
    assert [one.text[:20] for one in paper.contributions][-1] == "We spare ranks in sm"
    assert [one.text[:20] for one in paper.methodology] == ["Small singular value", "The dropped directio"]
    assert [one.text[:20] for one in paper.setup] == ["We use RTE and SST-2"]
    assert paper.result.startswith("Accuracy is 71.2")
    assert [one.text[:20] for one in paper.limitations] == ["Only one model was t"]
    assert [one.text[:20] for one in paper.future] == ["In future work we wo"]
    everything = paper.model_dump_json()
    assert "Nobody" not in everything
    assert "Others have pruned" not in everything


def test_plain_text_with_numbered_headings_and_without_any(tmp_path):
    text = (
        MARKDOWN.replace("## 2 Method", "2 Method")
        .replace("### 2.1 Why", "2.1 Why")
        .replace("## ", "")
        .replace("# Sp", "Sp")
    )
    paper = paper_of(read_source(write(tmp_path, "a.txt", text)))
    assert [len(getattr(paper, name)) for name in ("methodology", "setup", "limitations", "future")] == [2, 1, 1, 1]
    bare = paper_of(Source("b.txt", "A Title of Some Words\n\nOne paragraph that says enough to be a paragraph."))
    assert (bare.title, len(bare.contributions), bare.methodology) == ("A Title of Some Words", 1, ())
    with pytest.raises(ConfigError, match=r"c\.txt: .*\n.*no text in it"):
        paper_of(Source("c.txt", "\n 1 2 3 \n"))


def test_a_pdf(tmp_path):
    pytest.importorskip("pypdf", reason="pypdf is in the extra `research`")
    path = write(tmp_path, "a.pdf", pdf(PAGES, "/Title (untitled) /Author (Ann Lee; Bo Y) /CreationDate (D:20311105)"))
    source = read_source(path)
    assert (source.authors, source.year, source.title) == (("Ann Lee", "Bo Y"), 2024, "")
    paper = paper_of(source)
    assert (paper.title, paper.id) == ("Sparing Ranks in Small Models", "lee-2024-sparing")
    assert "nothing that we could measure" in paper.contributions[0].text
    assert paper.methodology[0].text.startswith("Small singular values")
    assert len(paper.setup) == 1
    assert "Nobody" not in paper.model_dump_json()
    titled = read_source(write(tmp_path, "b.pdf", pdf(PAGES, "/Title (The Sparing of Ranks)")))
    assert paper_of(titled).title == "The Sparing of Ranks"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is no PDF that can be read"),
        (b"%PDF-1.4\ngarbage", "is no PDF that can be read"),
        (pdf(PAGES)[:400], "is no PDF that can be read|holds no text"),
        (pdf([["12"]]), r"holds no text \(a scan\?\)"),
        (pdf([]), "holds no text"),
    ],
)
def test_a_pdf_that_cannot_be_read(tmp_path, content, message):
    pytest.importorskip("pypdf", reason="pypdf is in the extra `research`")
    with pytest.raises(ConfigError, match=message):
        read_source(write(tmp_path, "a.pdf", content))
    with pytest.raises(ConfigError, match="no such file"):
        read_source(tmp_path / "absent.pdf")


def test_a_pdf_with_a_password(tmp_path):
    pypdf = pytest.importorskip("pypdf", reason="pypdf is in the extra `research`")
    writer = pypdf.PdfWriter(clone_from=write(tmp_path, "a.pdf", pdf(PAGES)))
    writer.encrypt("secret", algorithm="RC4-128")
    writer.write(tmp_path / "locked.pdf")
    with pytest.raises(ConfigError, match="is protected by a password"):
        read_source(tmp_path / "locked.pdf")


@given(st.integers(0, 2_000), st.binary(max_size=30))
def test_a_damaged_pdf_never_crashes(tmp_path_factory, at, put):
    pytest.importorskip("pypdf", reason="pypdf is in the extra `research`")
    whole = pdf(PAGES)
    path = tmp_path_factory.getbasetemp() / "damaged.pdf"
    path.write_bytes(whole[: at % len(whole)] + put + whole[at % len(whole) + len(put) :])
    with suppress(ConfigError):
        paper_of(read_source(path))


@given(st.text(alphabet="ab .\n#1=-2AbstractMethod", max_size=400))
def test_every_passage_is_in_the_paper(text):
    source = Source("a.txt", text)
    try:
        paper = paper_of(source)
    except ConfigError:
        return
    for name in ("contributions", "methodology", "setup", "limitations", "future"):
        for one in getattr(paper, name):
            assert found(one.passage, source.text), one.passage
        assert sum(len(one.text) for one in getattr(paper, name)) <= FIELD_CHARACTERS


def test_long_sections_are_cut_between_paragraphs():
    text = "A Title of Words\n\nMethod\n\n" + "This sentence is one of very many in here. " * 2_000
    paper = paper_of(Source("a", text))
    assert all(one.text.endswith("here.") for one in paper.methodology)
    assert FIELD_CHARACTERS * 0.8 < sum(len(one.text) for one in paper.methodology) <= FIELD_CHARACTERS


def test_a_long_section_leaves_room_for_the_others_of_its_field():
    words = ("first", "second", "third")
    parts = [
        f"## Method {n}\n\n{f'This sentence of the {word} is one of very many. ' * 2_000}"
        for n, word in enumerate(words)
    ]
    texts = [one.text for one in paper_of(Source("a", "\n\n".join(["A Title of Words", *parts]))).methodology]
    shares = [sum(len(text) for text in texts if word in text) for word in words]
    assert all(FIELD_CHARACTERS / 5 < share < FIELD_CHARACTERS / 2 for share in shares)


@pytest.mark.parametrize(
    ("heading", "field"),
    [
        ("3.2 Experimental Setup", "setup"),
        ("Limitations and Future Work", "limitations"),
        ("Conclusion", "future"),
        ("Appendix A", ""),
        ("Main Results", "result"),
        ("Proposed Method", "methodology"),
        ("AdaLoRA", None),
        ("ABSTRACT", "contributions"),
    ],
)
def test_headings(heading, field):
    assert field_of(heading) == field


@pytest.mark.parametrize(
    ("passage", "source", "there"),
    [
        ("adaptive budget", "An adap-\ntive\n budget.", True),
        ("low-rank", "a low-\nrank and a lowrank", True),
        ("“ﬁne” − it’s", 'a "fine" - it\'s b', True),
        ("Adaptive", "adaptive", False),
        ("2.5 points", "about 12.5 points", False),
        ("2.5", "-2.5", False),
        ("2.5", "2.53", False),
        ("12", "12.5", False),
        ("12", "12.", True),
        ("1.2", "3.1.2", False),
        ("rank", "ranks", False),
        ("rank … matrix", "rank of a matrix", False),
        ("able", "not able, notable", True),
        ("", "text", False),
        (" . ", "a . b", False),
        ("a\u200bb c", "ab c", True),
        ("first second", "first [1] second", False),
    ],
)
def test_verbatim(passage, source, there):
    assert found(passage, source) is there


@given(st.text(alphabet="ab-1.\n "), st.integers(0, 30), st.integers(1, 30))
def test_whole_words_of_a_text_are_found_however_it_is_broken(text, start, count):
    words = text.replace("-", "").split()
    wanted = " ".join(words[start % (len(words) + 1) :][:count])
    if any(sign.isalnum() for sign in wanted):
        assert found(wanted, "  \n".join(words))


def test_unseen_characters_go():
    assert visible("a\u202eb\x00c\u200bd\ne\tf\xad") == "abcd\ne\tf"


class Scripted:
    """Answers with the given summaries, one after the other, until one has no problems."""

    def __init__(self, *answers):
        self.answers, self.prompts, self.found = list(answers), [], []

    def ask(self, prompt, kind, check=None):
        self.prompts.append(prompt)
        for answer in self.answers:
            content = kind.model_validate(answer)
            self.found.append(list(check(content)) if check else [])
            if not self.found[-1]:
                return Answer(content, Made(by="model", model="m"))
        raise ModelAnswerError("no valid answer")


GOOD = {
    "title": "Sparing ranks",
    "authors": ["Ann Lee"],
    "contributions": [{"text": "It spares ranks.", "passage": "We spare ranks in small models, which costs nothing"}],
    "results": [{"text": "It is as good as LoRA.", "passage": "Accuracy is 71.2 on RTE, within half a point"}],
}


def test_a_summary_of_a_model_is_checked_against_the_paper():
    source = Source("a.md", MARKDOWN)
    bad = json.loads(json.dumps(GOOD))
    bad["contributions"][0]["passage"] = "We spare ranks in all models, which costs nothing"
    bad["results"][0]["passage"] = "Accuracy is 71.2"
    bad |= {"title": "Something Else", "authors": ["Zed Zulu"], "year": 1971}
    asker = Scripted(bad, GOOD)
    paper, made = summarise(source, asker)
    assert [problem.split(":")[0] for problem in asker.found[0]] == [
        "title",
        "authors",
        "year",
        "contributions[0].passage",
        "results[0].passage",
    ]
    assert paper.contributions[0].passage == GOOD["contributions"][0]["passage"]
    assert (paper.arxiv, paper.authors, made.by) == ("2401.01234", ("Ann Lee",), "model")
    assert "71.2" in paper.result
    assert MARKDOWN.strip()[:200] in asker.prompts[0].text
    assert "<<<begin data" in asker.prompts[0].text
    with pytest.raises(ModelAnswerError):
        summarise(source, Scripted(bad))
    assert problems(Summary.model_validate(GOOD), source) == []


def test_of_a_long_paper_every_section_is_shown_from_its_beginning():
    text = "A Title of Words\n\n" + "".join(
        f"## {name}\n\nStart of {name}. {'word ' * 20_000}\n\n" for name in ("Method", "Experiments", "Limitations")
    )
    shown = excerpt(Source("a", text), 9_000)
    assert len(shown) <= 9_000
    assert all(f"Start of {name}." in shown for name in ("Method", "Experiments", "Limitations"))
    assert shown.count("[cut: ") == 3
    assert [heading for heading, _ in sections(Source("a", text))] == ["", "Method", "Experiments", "Limitations"]
    assert excerpt(Source("a", "short")) == "short"


def test_a_family_name_before_a_comma_is_an_authors_name():
    source = Source("own.md", MARKDOWN)
    said = {"text": "Cheap.", "passage": "We spare ranks in small models, which costs nothing"}
    summary = Summary(title="Sparing Ranks", authors=("Lee, A. B.",), contributions=(said,))
    assert problems(summary, source) == []
    assert "authors: 'Nobody Else' is" in problems(summary.model_copy(update={"authors": ("Nobody Else",)}), source)[0]


def test_what_is_a_summary_of_a_source():
    """Not a list's entry that happens to quote it, and not the paper split by its headings."""
    source = Source("own.md", MARKDOWN)
    split = paper_of(source)
    said = split.contributions[0].model_copy(update={"text": "Cheap."})
    fields = ("methodology", "setup", "limitations", "future")
    short = split.model_copy(update={"contributions": (said,), **dict.fromkeys(fields, ())})
    assert is_summary_of(short, source)
    assert not is_summary_of(split, source)
    assert not is_summary_of(short.model_copy(update={"source": "record.txt"}), source)
    other = said.model_copy(update={"passage": "words of another file of that name"})
    assert not is_summary_of(short.model_copy(update={"contributions": (said, other)}), source)


def test_pages_that_are_not_read_are_told(tmp_path, monkeypatch):
    pytest.importorskip("pypdf")
    monkeypatch.setattr(papers_files, "MAX_PAGES", 1)
    (tmp_path / "a.pdf").write_bytes(
        pdf([[f"A page that has words enough to be read as one paper, {n}"] for n in "abc"])
    )
    assert read_source(tmp_path / "a.pdf").unread == "2 of 3 pages"
    monkeypatch.setattr(papers_files, "MAX_PAGES", 3)
    assert read_source(tmp_path / "a.pdf").unread == ""
