"""Records of another pipeline, whole: what was asked, what was given, what was answered.

Four kinds are known: a proposal from prior papers, run configs for a hypothesis, the refinement of a hypothesis with
its history, and a machine review of a paper. Facts of a record carry over; what it says is data to judge.
"""

from pathlib import Path

from rankwise.errors import ConfigError, Finding
from rankwise.research.imported import Imported
from rankwise.research.papers_entries import is_paper
from rankwise.research.records_prompts import is_configs, is_hypothesis, read_configs, read_proposal
from rankwise.research.records_review import is_review, read_review
from rankwise.research.records_text import Document, read_text

EXPECTED = (
    "is no record that can be imported; expected is a prompt with its answer behind a line `Output:` (the answer is a "
    "hypothesis with open_problems, method, experimental_setup and expected_result, or a list `run_configs`), such an "
    "answer alone, or a review page with sections such as `Core claim` and `Referee Report`"
)


def read_record(path: str | Path) -> Imported:
    """All that a record holds.

    Raises:
        ConfigError: the file cannot be read, is no record, is incomplete (the message says where it ends), or parts
            of it are wrong (every finding).
    """
    path = Path(path)
    document = Document(read_text(path), path.name)
    if is_review(document):
        return read_review(document)
    document.check_whole()
    if is_configs(document):
        return read_configs(document)
    if document.answer_at is not None or any(is_hypothesis(one.value) for one in document.answers):
        return read_proposal(document)
    papers = any(is_paper(one.value) for one in document.everything)
    hint = "; its papers can be added with `rankwise research papers add`" if papers else ""
    raise ConfigError(document.source, [Finding("", EXPECTED + hint)])
