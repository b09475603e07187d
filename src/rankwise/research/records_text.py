"""A record as a document: its prompt in sections, its objects with the section they stand in, and its answer."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType

from rankwise.errors import ConfigError, Finding
from rankwise.research.parse import Parsed, key, objects, unclosed
from rankwise.research.project import MAX_BYTES

SECTIONS: Mapping[str, str] = MappingProxyType(
    {
        **dict.fromkeys(("research_topic", "research_theme", "topic", "theme"), "topic"),
        **dict.fromkeys(
            ("current_hypothesis", "hypothesis_info", "new_hypothesis", "research_hypothesis", "hypothesis"),
            "hypothesis",
        ),
        **dict.fromkeys(("novelty", "novelty_reason", "novelty_evaluation", "novelty_assessment"), "novelty"),
        **dict.fromkeys(
            ("significance", "significance_reason", "significance_evaluation", "significance_assessment"),
            "significance",
        ),
        **dict.fromkeys(
            ("hypothesis_history", "hypothesis_info_history", "previous_hypotheses", "past_hypotheses", "history"),
            "history",
        ),
        **dict.fromkeys(
            ("research_study_list", "study_list", "related_studies", "prior_studies", "related_work", "papers"),
            "papers",
        ),
        **dict.fromkeys(("research_method", "method", "proposed_method"), "method"),
        **dict.fromkeys(("experimental_design", "experiment_design", "design"), "design"),
        **dict.fromkeys(("experiment_runs", "experimental_runs", "runs"), "runs"),
        **dict.fromkeys(
            ("experimental_environment", "experiment_environment", "environment", "hardware"), "environment"
        ),
    }
)
"""How records head their sections -> our name of the section."""

_HEADING = re.compile(
    r"^[ \t]*(?:#{1,6}[ \t]+(?P<marked>[^\n]{1,120}?)[ \t#:]*+|\*\*(?P<bold>[^\n*]{1,80}?):?\*\*:?|"
    r"(?P<plain>[A-Z][A-Za-z ]{2,40}):)[ \t]*+$",
    re.M,
)
_OUTPUT = re.compile(r"^[ \t]*(?:#{1,6}[ \t]*)?(?:Output|Answer|Response)[ \t]*:[ \t]*(?=$|[{\[`'\"])", re.M | re.I)
_COVER = "\ufffc"
_HEADER = re.compile(r"^[ \t]*(?:(?:LLM|Model)(?: Name)?[ \t]*:[^\n]*|Input[ \t]*:[ \t]*)\n", re.M)
_MODEL = re.compile(r"^[ \t]*(?:LLM|Model)(?: Name)?[ \t]*:[ \t]*(\S[^\n]{0,120})$", re.M)


@dataclass(frozen=True)
class Found:
    """An object of the prompt and the section that it stands in (empty: before the first known heading)."""

    parsed: Parsed
    section: str


@dataclass(frozen=True)
class Section:
    """A section of the prompt: our name (empty: a heading that we do not know), where its heading begins, its text."""

    name: str
    heading: int
    start: int
    end: int


@dataclass(frozen=True)
class Document:
    """A record's text, with one kind of line end. `source` is the file's name."""

    text: str
    source: str

    @cached_property
    def everything(self) -> tuple[Parsed, ...]:
        """All objects, of the prompt and of the answer."""
        return tuple(objects(self.text, limit_bytes=MAX_BYTES))

    @cached_property
    def bare(self) -> str:
        """The text with signs that mean nothing where objects stand, so that nothing in them is taken for a heading."""
        parts, position = [], 0
        for parsed in self.everything:
            parts += [self.text[position : parsed.start], _COVER * (parsed.end - parsed.start)]
            position = parsed.end
        return "".join([*parts, self.text[position:]])

    @cached_property
    def answer_at(self) -> int | None:
        """Where the answer begins: behind the last line that says so. None: the record has no such line."""
        marks = [match.end() for match in _OUTPUT.finditer(self.bare)]
        return marks[-1] if marks else None

    @cached_property
    def prompt_end(self) -> int:
        """Where the prompt ends: all of the text if nothing marks an answer."""
        return len(self.text) if self.answer_at is None else self.answer_at

    @cached_property
    def answers(self) -> tuple[Parsed, ...]:
        """The objects of the answer; without a mark all objects, since the file may be an answer alone."""
        return tuple(parsed for parsed in self.everything if parsed.start >= (self.answer_at or 0))

    @cached_property
    def sections(self) -> tuple[Section, ...]:
        """The sections of the prompt, in order."""
        kept: list[tuple[str, int, int]] = []
        for match in _HEADING.finditer(self.bare, 0, self.prompt_end):
            name = SECTIONS.get(key(match["marked"] or match["bold"] or match["plain"]), "")
            if name in ("hypothesis", "novelty", "significance") and kept and kept[-1][0] == "history":
                continue  # each entry of a history has these words above it
            if name or match["marked"]:
                kept.append((name, match.start(), match.end()))
        ends = [start for _, start, _ in kept[1:]] + [self.prompt_end]
        return tuple(Section(name, head, start, end) for (name, head, start), end in zip(kept, ends, strict=False))

    def at(self, position: int) -> Section | None:
        """The section that a position stands in."""
        return next((one for one in self.sections if one.start <= position < one.end), None)

    def section(self, name: str) -> str:
        """The text of the first section of a name, objects included; empty if there is none."""
        return next((self.text[one.start : one.end].strip() for one in self.sections if one.name == name), "")

    @cached_property
    def asked(self) -> tuple[Found, ...]:
        """The objects of the prompt with their sections. Of an answer alone: none."""
        if self.answer_at is None and not self.sections:
            return ()
        there = [parsed for parsed in self.everything if parsed.start < self.prompt_end]
        return tuple(Found(one, inside.name if (inside := self.at(one.start)) else "") for one in there)

    @cached_property
    def instructions(self) -> str:
        """What the prompt asks for: its text without objects, material and the lines that name the model."""
        text, position, parts = self.bare[: self.prompt_end], 0, []
        if self.answer_at is None and not self.sections:
            return ""
        for one in self.sections:
            if one.name:
                parts.append(text[position : one.heading])
                position = one.end
        kept = _HEADER.sub("", _OUTPUT.sub("", "".join([*parts, text[position:]]).replace(_COVER, "")))
        return re.sub(r"\n[ \t]*\n\s*", "\n\n", kept).strip()

    @cached_property
    def model(self) -> str:
        """The model that answered, if the record says so at its beginning."""
        found = _MODEL.search(self.bare[:2_000])
        return found[1].strip() if found else ""

    def cut(self, position: int, what: str) -> ConfigError:
        """The error for a record that ends too early."""
        last = self.text.count("\n") + 1
        where = f"ends at line {last:,}, character {len(self.text):,}, {what}"
        if position < len(self.text):
            where += f" that begins at line {self.text.count(chr(10), 0, position) + 1:,}"
        return ConfigError(self.source, [Finding("", f"{where}; the rest of the record is missing")])

    def check_whole(self) -> None:
        """Raises:
        ConfigError: an object is never closed, or the prompt or its answer is not there to its end.
        """
        start = self.answer_at or 0  # a prompt may show half an object, if the answer is whole
        position = unclosed(self.text[start:])
        if position is not None:
            raise self.cut(start + position, f"in the middle of {self._what(start + position)}")
        if self.answer_at is not None and not self.text[self.answer_at :].strip():
            raise self.cut(len(self.text), "right where the answer should begin")
        if self.answer_at is None and (self.model or sum(bool(one.name) for one in self.sections) > 1):
            raise self.cut(len(self.text), "before the answer (a line `Output:` and what follows)")

    def _what(self, position: int) -> str:
        if self.answer_at is not None and position >= self.answer_at:
            return "the answer"
        start = re.search(
            r"""["']\w*title["']\s*:\s*["']([^"'\n]{1,120})""", self.text[position : position + 400], re.I
        )
        return f"an object of the prompt ({start[1].strip()})" if start else "an object of the prompt"


def read_text(path: Path) -> str:
    """A text file's content with one kind of line end; UTF-8, or UTF-16 with its mark.

    Raises:
        ConfigError: no such file, a folder, too large, not text, or it cannot be read.
    """
    try:
        if path.is_dir():
            raise ConfigError(str(path), [Finding("", "is a folder; name a file in it")])
        if path.stat().st_size > MAX_BYTES:
            raise ConfigError(str(path), [Finding("", f"is larger than {MAX_BYTES:,} bytes")])
        raw = path.read_bytes()
        wide = raw.startswith((b"\xff\xfe", b"\xfe\xff"))
        text = raw.decode("utf-16" if wide else "utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(str(path), [Finding("", "no such file")]) from None
    except UnicodeDecodeError as error:
        raise ConfigError(str(path), [Finding("", f"byte {error.start} is not {error.encoding} text")]) from None
    except OSError as error:
        raise ConfigError(str(path), [Finding("", f"cannot be read: {error.strerror or error}")]) from None
    return text.replace("\r\n", "\n").replace("\r", "\n")
