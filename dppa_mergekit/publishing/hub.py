"""The Hub: login, names, licenses and uploads, with errors in one sentence each."""

from __future__ import annotations

import logging
import re
from pathlib import Path

from dppa_mergekit.errors import DppaError
from dppa_mergekit.publishing import benchmarks
from dppa_mergekit.publishing.model_card import CARD

LOG = logging.getLogger(__name__)

WEIGHTS = re.compile(
    r"(model(-\d+-of-\d+)?\.safetensors|pytorch_model(-\d+-of-\d+)?\.bin)(\.index\.json)?"
)
"""The files in which transformers finds weights; it prefers a single file to shards."""

NO_TOKEN = (
    "You are not logged in to the Hub: run `hf auth login`, or set HF_TOKEN to a token with write "
    "access."
)


def check_login() -> None:
    """Raise DppaError if there is no token for the Hub."""
    from huggingface_hub import get_token

    if get_token() is None:
        raise DppaError(NO_TOKEN)


def check_name(name: str) -> None:
    """Raise DppaError if the Hub does not allow the name of a repository."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(name)
    except HFValidationError as problem:
        raise DppaError(
            f"{name} is not a valid name on the Hub: {_one_line(problem)}."
        ) from problem


def find_license(model: str, name: str) -> str | None:
    """Return the license in a model's card; None if it is not known.

    Args:
        model: The model, as the recipe spells it. The card in a local folder is read first.
        name: The public name. If it has an owner, the Hub is asked for the card.
    """
    from huggingface_hub import HfApi, ModelCard, ModelCardData

    path = Path(model) / CARD
    data: object = None
    try:
        if path.exists():
            text = path.read_text(encoding="utf-8")
            data = ModelCard(text, ignore_metadata_errors=True).data
        elif "/" in name:
            data = HfApi().model_info(name, timeout=10).card_data
    # The client has no common error for cards that cannot be fetched or parsed.
    except Exception as problem:
        LOG.warning("The card of %s cannot be read (%s).", name, _one_line(problem))
    return data.license if isinstance(data, ModelCardData) else None


def upload_folder(folder: Path, repository: str, private: bool) -> str:
    """Upload a folder as one commit, and delete weights and scores in the repository that it lacks.

    Args:
        folder: The folder.
        repository: `name` or `owner/name`; it is created if it does not exist.
        private: Whether a new repository is private.

    Returns:
        The address of the repository.

    Raises:
        DppaError: There is no token, or the Hub cannot be reached or refuses.
    """
    from huggingface_hub import HfApi

    check_login()
    interface = HfApi()
    try:
        created = interface.create_repo(repository, private=private, exist_ok=True)
        existing = interface.list_repo_files(created.repo_id)
        interface.upload_folder(
            repo_id=created.repo_id,
            folder_path=folder,
            commit_message="Upload a merge by mergekit",
            # The client does not delete what it uploads in the same commit.
            delete_patterns=[name for name in existing if _is_replaced(name)],
        )
    # The client has no common error for refusals of the Hub, lost networks and failed parts.
    except Exception as problem:
        raise DppaError(
            f"{repository} could not be uploaded ({_one_line(problem)}); run the same command "
            f"again to retry."
        ) from problem
    return str(created)


def _is_replaced(name: str) -> bool:
    """Return whether the upload deletes this file where the folder lacks it.

    Such files are weights and benchmark results.
    """
    return WEIGHTS.fullmatch(name) is not None or name == f"{benchmarks.FOLDER}/{benchmarks.FILE}"


def _one_line(problem: Exception) -> str:
    """Return the beginning of an error's text, on one line and without its full stop."""
    return " ".join(str(problem).split())[:200].rstrip(".")
