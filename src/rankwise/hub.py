"""Whether the Hugging Face hub can be reached, asked once, so that no one waits a minute for retries to fail."""

from functools import cache

SECONDS = 5.0


@cache
def hub_reachable() -> bool:
    """One request without retries. False in offline mode, without a network, or behind a wall; then only what is
    cached or local is tried."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session  # type: ignore[attr-defined]

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=SECONDS)
    except Exception:  # whatever the HTTP client of this hub version raises
        return False
    return True
