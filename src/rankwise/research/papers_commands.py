"""What `rankwise research papers` does: add, list, show."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rankwise import __version__
from rankwise.errors import ConfigError, Finding, UnknownNameError
from rankwise.experiments.shown import Summary
from rankwise.registry import did_you_mean
from rankwise.research.artefacts import Paper, Papers
from rankwise.research.ask_options import ModelOptions, asker, with_prompt
from rankwise.research.asking import Asker
from rankwise.research.papers import FILE, READ, files_in, in_own_words, merge, project_papers, read_papers
from rankwise.research.papers_entries import STATEMENTS, with_own_ids
from rankwise.research.papers_files import Source, paper_of, read_source
from rankwise.research.papers_merge import news
from rankwise.research.papers_online import Reference, Services, fetch, reference
from rankwise.research.project import Made, Project

UNKNOWN = (
    f"no such file, and no name of a paper; known are files ({', '.join(READ)}), folders of them, arXiv numbers, DOIs, "
    "OpenAlex or Semantic Scholar ids, and titles of two words or more"
)


@dataclass(frozen=True)
class Read:
    """What one source holds: papers, or a paper's own words that are still to be split or summarised."""

    said: str
    papers: tuple[Paper, ...] = ()
    source: Source | None = None


def add(folder: Path, sources: Sequence[str], options: ModelOptions, services: Services | None = None) -> Summary:
    """`rankwise research papers add`: read files, folders, identifiers and titles into a project's papers.json.

    A paper's own words (PDF, text, Markdown) are summarised by a language model if the options name one (once: the same
    command again goes on with those that are not), else they are split by headings. A project that has no papers yet
    gets the file; the folder is made if there is none.

    Raises:
        ConfigError: a source cannot be read, is nothing that is known, or a paper cannot be had (all of them at once;
            nothing is written then).
        MissingPackageError: a PDF or a name, and the extra `research` is not installed.
        ModelAnswerError, LimitError: of the model; papers that were summarised before are kept.
    """
    project = Project(folder)
    project_papers(project)  # is its file sound? Before anything is asked for
    read = _read(sources, services or Services())
    someone = asker(options, project) if any(one.source for one in read) else None

    def work() -> Summary:
        before = project_papers(project)
        done = []
        for one in read:
            if one.source is None:
                _write(project, one.papers, Made(by="import", version=__version__))
            elif someone is not None and _summarised(before, one.source):
                done.append(one.said)
            else:
                paper, made = _paper(one.source, someone)
                _write(project, (paper,), made)
        return _added(project, before, read, done)

    return with_prompt(project, work)


def list_papers(folder: Path) -> Summary:
    """`rankwise research papers list`.

    Raises:
        ConfigError: there are no papers, or the file is wrong.
    """
    papers = _papers_of(Project(folder))
    width = max(len(one.id) for one in papers.papers)
    lines = [f"{one.id:<{width}}  {one.year or '    '}  {one.title}" for one in papers.papers]
    merged = sum(len(titles) for titles in papers.merged.values())
    lines.append(f"{len(papers.papers)} papers" + (f"; {merged} duplicates are merged into them" if merged else ""))
    data = [
        {"id": one.id, "title": one.title, "year": one.year, "doi": one.doi, "arxiv": one.arxiv, "source": one.source}
        | {name: len(getattr(one, name)) for name in STATEMENTS}
        | {"merged": list(papers.merged.get(one.id, ()))}
        for one in papers.papers
    ]
    return Summary("\n".join(lines), data)


def show(folder: Path, name: str) -> Summary:
    """`rankwise research papers show`.

    Raises:
        ConfigError: there are no papers, or the file is wrong.
        UnknownNameError: no paper of that id (with the nearest).
    """
    papers = _papers_of(Project(folder))
    found = next((one for one in papers.papers if name in (one.id, one.doi, one.arxiv)), None)
    if found is None:
        ids = [one.id for one in papers.papers]
        raise UnknownNameError(
            f"no paper '{name}'{did_you_mean(name, ids) or '.'} `rankwise research papers list {folder}` names all"
        )
    merged = papers.merged.get(found.id, ())
    return Summary("\n".join(_shown(found, merged)), found.model_dump(mode="json") | {"merged": list(merged)})


def _read(sources: Sequence[str], services: Services) -> list[Read]:
    """What all sources hold, in order, or everything that is wrong with them."""
    read: dict[str, Read] = {}
    wanted: dict[str, Reference] = {}
    problems: list[Finding] = []
    for said in dict.fromkeys(sources):
        if _there(said):
            found, wrong = _of_files(Path(said))
            read |= found
            problems += wrong
        elif (name := reference(said)) and not (name.kind == "title" and _looks_like_a_file(said)):
            wanted[said] = name
        else:
            problems.append(Finding(said, UNKNOWN))
    if wanted and not problems:
        read |= {said: Read(said, (one,)) for said, one in fetch(wanted, services).items()}
    if problems:
        raise ConfigError("papers add", problems)
    return list(read.values())


def _there(said: str) -> bool:
    try:
        return Path(said).exists()
    except (OSError, ValueError):  # too long for a file's name, or with a zero byte
        return False


def _of_files(path: Path) -> tuple[dict[str, Read], list[Finding]]:
    """What a file, or every file of a folder, holds; and what is wrong with them."""
    read: dict[str, Read] = {}
    problems: list[Finding] = []
    try:
        files = files_in(path) if path.is_dir() else [path]
    except ConfigError as error:
        return {}, [Finding(str(path), error.findings[0].message)]
    for file in files:
        try:
            own = in_own_words(file)
            read[str(file)] = Read(
                str(file), () if own else read_papers(file).papers, read_source(file) if own else None
            )
        except ConfigError as error:
            problems += [Finding(f"{file}: {one.path}".strip(": "), one.message) for one in error.findings]
    return read, problems


def _looks_like_a_file(said: str) -> bool:
    return "/" in said or Path(said).suffix.lower() in READ


def _paper(source: Source, someone: Asker | None) -> tuple[Paper, Made]:
    if someone is None:
        return paper_of(source), Made(by="code", version=__version__)
    from rankwise.research.summaries import summarise

    return summarise(source, someone)


def _summarised(papers: Papers, source: Source) -> bool:
    from rankwise.research.summaries import is_summary_of

    return any(is_summary_of(one, source) for one in papers.papers)


def _write(project: Project, papers: Sequence[Paper], made: Made) -> None:
    """Merge papers into the project's; the file is written if they say something new."""
    before = project_papers(project)
    new = news(before, papers)
    if new:
        known = [one.id for one in before.papers]
        after = merge(Papers(papers=(*before.papers, *with_own_ids(new, known)), merged=before.merged))
        project.write(FILE, after, made, again=True)


def _added(project: Project, before: Papers, read: Sequence[Read], done: Sequence[str]) -> Summary:
    after = project_papers(project)
    known = {one.id for one in before.papers}
    new = [one for one in after.papers if one.id not in known]
    merged = {name: titles[len(before.merged.get(name, ())) :] for name, titles in after.merged.items()}
    lines = [f"added {one.id}: {one.title}" for one in new]
    lines += [f"summarised already: {said}" for said in done]
    unread = [
        f"{one.said}: the last {one.source.unread} are not read" for one in read if one.source and one.source.unread
    ]
    lines += unread
    lines += [f"merged into {name}: {title}" for name, titles in merged.items() for title in titles]
    lines.append(f"{len(after.papers)} papers in {project.path(FILE)}")
    data = {
        "added": [one.id for one in new],
        "merged": {name: list(titles) for name, titles in merged.items() if titles},
        "papers": len(after.papers),
        "sources": [one.said for one in read],
        "unread": unread,
    }
    return Summary("\n".join(lines), data)


def _papers_of(project: Project) -> Papers:
    papers = project_papers(project)
    if not papers.papers:
        message = f"has no papers; `rankwise research papers add {project.folder} FILE` adds some"
        raise ConfigError(str(project.folder), [Finding("", message)])
    return papers


def _shown(paper: Paper, merged: Sequence[str]) -> Iterator[str]:
    yield f"{paper.title}  [{paper.id}]"
    told = [", ".join(paper.authors), str(paper.year or ""), f"doi:{paper.doi}" if paper.doi else ""]
    told += [f"arXiv:{paper.arxiv}" if paper.arxiv else "", f"from {paper.source}" if paper.source else ""]
    yield "; ".join(filter(None, told))
    for title in merged:
        yield f"merged into it: {title}"
    for name in STATEMENTS:
        for one in getattr(paper, name):
            yield f"\n{name}: {one.text}"
            if one.passage and one.passage != one.text:
                yield f'  "{one.passage}"'
    for name in ("result", "code"):
        if text := getattr(paper, name):
            yield f"\n{name}:\n{text}"
