import os
from pathlib import Path

import pytest
from filelock import FileLock

from rankwise.tasks.docstrings import load_corpus


@pytest.fixture(scope="session")
def glue_folder():
    """The local GLUE copy that RANKWISE_DATA points at."""
    folder = os.environ.get("RANKWISE_DATA")
    if not folder or not (Path(folder) / "glue" / "manifest.json").is_file():
        pytest.skip("RANKWISE_DATA does not point at a folder with glue/manifest.json")
    return Path(folder)


@pytest.fixture(scope="session")
def docstrings_cache(tmp_path_factory):
    """One cache folder for the whole session and all its processes, so that the docstrings task is built once."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "docstrings"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RANKWISE_CACHE", str(folder))
        with FileLock(f"{folder}.lock"):
            load_corpus()
        yield folder
