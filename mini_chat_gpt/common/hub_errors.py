"""What `huggingface_hub` raises, as one sentence that says what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mini_chat_gpt.common.errors import UserError, short
from mini_chat_gpt.common.files import readable_disk_errors
from mini_chat_gpt.common.hub_names import HubName
from mini_chat_gpt.common.text import clean


class NoConnection(UserError):
    """The hub, or another server, can't be reached or is out of order."""


def why_unreachable(error: Exception) -> str | None:
    """Why the hub can't be reached, as a clause; None for another error."""
    from huggingface_hub import errors

    if isinstance(error, errors.OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.HfHubHTTPError):
        return f"{_endpoint()} answers with {status}" if status in (408, 429) or (status or 0) >= 500 else None
    return _no_network(error)


def _no_network(error: BaseException) -> str | None:
    """The reason of an error of the network, as a clause; None for another error."""
    from huggingface_hub import errors

    if not isinstance(error, errors.HTTPError | ConnectionError | TimeoutError):
        return None
    return f"no answer from {_endpoint()} ({clean(str(error))[:100] or type(error).__name__})"


@contextmanager
def readable_hub_errors(name: HubName, file: str | None = None) -> Iterator[None]:
    """Turn what the library raises into one sentence."""
    from huggingface_hub import errors

    try:
        yield
    except UserError:
        raise
    except errors.HTTPError as error:
        raise UserError(_refusal(name, file, error)) from None
    except errors.HFValidationError:
        raise UserError(f"{name} is not a name of the hub; write hub:org/name or hub:org/name@revision.") from None
    except errors.OfflineModeIsEnabled:
        raise UserError(f"{name}: {file} is not in the cache, and HF_HUB_OFFLINE is set; unset it.") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        if getattr(error, "errno", None) is not None and not isinstance(error, ConnectionError | TimeoutError):
            with readable_disk_errors(cache_of(name)):
                raise
        if (reason := _no_network(error)) is not None:
            raise UserError(_stopped(name, file, reason)) from None
        if "Consistency check" in str(error):
            raise UserError(
                f"{name}: {file} did not arrive in the size that the hub states; run the same command again, and if that does not "
                "help, the copy on the server is damaged."
            ) from None
        raise UserError(
            f"{name}: {_endpoint()} does not answer as the Hugging Face hub does ({short(str(error))}); check the network and "
            "HF_ENDPOINT."
        ) from None


def _refusal(name: HubName, file: str | None, error: Any) -> str:
    """The sentence for an answer that is an error, and for a connection that broke."""
    from huggingface_hub import errors, get_token

    page = f"{_endpoint()}/{'datasets/' if name.kind == 'dataset' else ''}{name.repo}"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.GatedRepoError):
        login = (
            "ask for access with the account of your token"
            if get_token()
            else "log in with `hf auth login` or set HF_TOKEN"
        )
        return f"{name} is gated: accept its conditions at {page}, and {login}."
    if isinstance(error, errors.DisabledRepoError):
        return f"{name} was disabled on the hub; use another {_noun(name)}."
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{name}: there is no revision {short(name.revision or 'main')}; {page} lists its branches and tags."
    if isinstance(error, errors.RepositoryNotFoundError):
        login = "" if get_token() else ", or log in with `hf auth login` or HF_TOKEN if it is private"
        hub = "the hub" if name.no_path else "The hub"
        return f"{name.no_path}{hub} has no {_noun(name)} {name.repo} that you may see; check the name{login}."
    if isinstance(error, errors.EntryNotFoundError):
        return f"{name}: the hub no longer has {file}; run the same command again."
    if status in (401, 403):
        return f"{name}: the hub refuses your token ({status}); renew it with `hf auth login`, or unset HF_TOKEN for public models."
    if status is not None:
        return f"{name}: the hub answers with {status}; try again later."
    return _stopped(name, file, _no_network(error) or str(error))


def _stopped(name: HubName, file: str | None, reason: str) -> str:
    return f"{name}: the download of {file} stopped: {reason}. What has arrived is kept; run the same command again to resume."


def _noun(name: HubName) -> str:
    return "data set" if name.kind == "dataset" else "model"


def cache_of(name: HubName) -> Path:
    """The folder of a repository in the library's cache."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / f"{name.kind}s--{name.repo.replace('/', '--')}"


def _endpoint() -> str:
    from huggingface_hub import constants

    return str(constants.ENDPOINT)
