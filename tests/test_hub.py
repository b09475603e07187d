"""The hub is asked once, without retries, and never in offline mode."""

import pytest
from huggingface_hub import constants, utils

from rankwise.hub import hub_reachable


@pytest.fixture(autouse=True)
def _fresh():
    hub_reachable.cache_clear()
    yield
    hub_reachable.cache_clear()


class Session:
    def __init__(self, error=None):
        self.error, self.asked = error, []

    def head(self, address, timeout):
        self.asked.append(address)
        if self.error:
            raise self.error


@pytest.mark.parametrize(("error", "reachable"), [(None, True), (OSError("no route"), False)])
def test_one_request_decides(monkeypatch, error, reachable):
    session = Session(error)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(utils, "get_session", lambda: session)
    assert hub_reachable() is reachable
    assert hub_reachable() is reachable
    assert session.asked == [constants.ENDPOINT]


def test_offline_mode_asks_nobody(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(utils, "get_session", lambda: pytest.fail("asked"))
    assert hub_reachable() is False
