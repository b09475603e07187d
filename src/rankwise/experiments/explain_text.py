"""Decisions of every example as a table for other programs."""

import csv
import io

from rankwise.experiments.explain_data import Observed, said_of
from rankwise.experiments.explain_subject import Subject


def decisions_csv(subject: Subject, observed: Observed) -> str:
    """One row per example: its place in the split, label, prediction, and the rank used by every module."""
    file = io.StringIO()
    writer = csv.writer(file)
    writer.writerow(["example", "label", "prediction", *observed.decisions.names])
    rows = zip(subject.index, observed.labels, observed.predictions, observed.ranks, strict=True)
    for index, label, prediction, ranks in rows:
        writer.writerow([index, said_of(subject, label), said_of(subject, prediction), *ranks.tolist()])
    return file.getvalue()
