"""The upload of a folder to the Hugging Face hub."""

from __future__ import annotations

import re
from pathlib import Path

from config.errors import ConfigError, WeightsError

_LOGIN = "run `hf auth login` with a token that may write"


def check(repo: str) -> None:
    """`ConfigError` for a name that is none, `WeightsError` where there is no token; nothing is sent."""
    import huggingface_hub

    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
        raise ConfigError(f"{repo}: is not USER/NAME; name your user or organisation and the model, such as ada/birds")
    if not huggingface_hub.get_token():
        raise WeightsError(f"{repo}: there is no token of the Hugging Face hub here; {_LOGIN}")


def upload(folder: Path, repo: str, private: bool) -> str:
    """Make the repository where it is missing and commit the folder to it; its address.

    The files that it replaces stay in the repository's history. Raises `WeightsError` for a refused token or an
    unreachable hub.
    """
    import huggingface_hub
    from huggingface_hub import errors

    api = huggingface_hub.HfApi()
    try:
        address = api.create_repo(repo, private=private, exist_ok=True)
        api.upload_folder(repo_id=repo, folder_path=folder, commit_message="Upload a model trained with Tandem")
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise WeightsError(f"{repo}: the hub refuses the token ({status}); {_LOGIN}") from error
        raise WeightsError(f"{repo}: the hub answers {status}; try again later") from error
    except Exception as error:  # of the HTTP library, which differs between versions of the hub's client
        raise WeightsError(
            f"{repo}: cannot reach the Hugging Face hub ({type(error).__name__}); check the network"
        ) from error
    return str(address)
