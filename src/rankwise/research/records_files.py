"""What an import leaves in a project: the whole record, so that later stages find what has no file of its own."""

from pydantic import Field

from rankwise.research.artefacts import Artefact
from rankwise.research.imported import Imported
from rankwise.research.project import Project

RECORD = "record.json"
"""Name of the file: the record as it was read, duplicates and all."""
IMPORTED_REVIEW = "imported_review.json"


class RecordFile(Artefact):
    """A record as it was read, and the digest of the file that it was read from."""

    sha256: str = Field(description="SHA-256 of the record's file")
    record: Imported


def imported_record(project: Project) -> Imported | None:
    """The record that a project was imported from; none, if it began otherwise.

    Raises:
        ConfigError: the file is there and wrong.
    """
    return project.read(RECORD, RecordFile).record if project.has(RECORD) else None
