"""Shared fixtures: a tiny random BERT and Llama, quick hypothesis settings, no network."""

import os
import socket
from dataclasses import replace

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny tensors: a second thread only waits, for minutes on a busy machine

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "fast", max_examples=50, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("fast")


def pytest_collection_modifyitems(items):
    """The file that takes longest is the first: the last one is alone on its process while the other has none."""
    items.sort(key=lambda item: item.path.name != "test_docs.py")


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    """A test that reaches for the network fails at once instead of hanging."""
    real = socket.socket.connect

    def connect(self, address):
        if self.family in (socket.AF_INET, socket.AF_INET6) and str(address[0]) not in (
            "127.0.0.1",
            "::1",
            "localhost",
        ):
            raise OSError(f"tests do not use the network (tried {address})")
        return real(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect)


@pytest.fixture(scope="module", autouse=True)
def _blank_figures(request):
    """The page's figures stay empty, which saves seconds per comparison, but in files marked `figures`."""
    if request.node.get_closest_marker("figures") is not None:
        yield
        return
    from rankwise.experiments.html.pictures import Picture

    real = Picture._figure

    def blank(self):
        return real(replace(self, draw=lambda figure: figure.subplots().set_axis_off(), drawn=[], texts=[]))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Picture, "_figure", blank)
        yield


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    """A tiny random BERT on disk."""
    from tiny_files import write_model

    return write_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="session")
def data_file(tmp_path_factory):
    """A small CSV with the columns `sentence` and `verdict`."""
    from tiny_files import write_data

    return write_data(tmp_path_factory.mktemp("data") / "tiny.csv")
