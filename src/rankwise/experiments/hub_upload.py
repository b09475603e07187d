"""Putting an exported folder on the Hugging Face hub. The token is huggingface_hub's own business: it is looked up
there, handed over there, and gets into no message, file or log of ours."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rankwise.errors import ConfigError, Finding, OutputError
from rankwise.hub import hub_reachable


@dataclass(frozen=True)
class Push:
    """An upload that can be begun: repository, whether all the world may see it, and the hub's API."""

    name: str
    public: bool
    api: Any = field(repr=False)
    _token: str = field(repr=False)

    def clean(self, error: Exception) -> str:
        """The first line of an error's message, without the token."""
        text = (str(error).strip() or type(error).__name__).splitlines()[0]
        return text.replace(self._token, "(token)")[:300]


def prepare_push(name: str, *, public: bool) -> Push:
    """Everything that can be wrong before anything is written.

    Raises:
        ConfigError: `name` is no id, there is no token, or the hub cannot be reached.
    """
    from huggingface_hub import get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(name)
    except HFValidationError:
        raise _refuse(f"'{name}' is no repository id; write USER/NAME") from None
    if name.count("/") != 1:
        raise _refuse(f"'{name}' is no repository id; write USER/NAME")
    token = get_token()
    if not token:
        raise _refuse("no Hugging Face token; set HF_TOKEN or run `hf auth login`. Nothing was written")
    if not hub_reachable():
        raise _refuse("the Hugging Face hub cannot be reached (no network, or HF_HUB_OFFLINE is set)")
    return Push(name, public, make_api(token), token)


def make_api(token: str) -> Any:  # noqa: ANN401 - huggingface_hub's HfApi; tests put another in its place
    """The hub's API, as the owner of the token."""
    from huggingface_hub import HfApi

    return HfApi(token=token)


def upload(folder: Path, push: Push) -> str:
    """Create the repository if there is none, upload the folder, and return its address.

    Raises:
        ConfigError: the repository exists and is public, and that was not asked for.
        OutputError: the hub refused; the folder stays where it is.
    """
    try:
        url = push.api.create_repo(push.name, private=not push.public, exist_ok=True)
        shown = not push.api.repo_info(push.name).private
        if not shown or push.public:
            push.api.upload_folder(repo_id=push.name, folder_path=str(folder), commit_message="Export of rankwise")
            return str(url)
    except Exception as error:  # whatever the HTTP client of this hub version raises
        raise OutputError(f"{folder} is written, but not uploaded to {push.name}: {push.clean(error)}") from None
    raise _refuse(f"{push.name} exists and is public; add --public, or name another. {folder} is written")


def _refuse(message: str) -> ConfigError:
    return ConfigError("export", [Finding("--push", message)])
