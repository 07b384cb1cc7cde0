"""What a failed request is called in a message: one line that says what went wrong, and what to do about it."""

from __future__ import annotations

import os

from refindex.access import urls
from refindex.access.retry import is_transient

CREDENTIALS = "pass credentials in storage_options (--storage-options), or check that they are for this file"
S3_CREDENTIALS = 'set them in the environment or pass storage_options ({"anon": true} for public buckets)'
LATER = "try again later"
AUTHORITY = (
    "if the certificate is signed by an authority of your own, name that in the environment variable SSL_CERT_FILE; "
    "--storage-options '{\"ssl\": false}' trusts any"
)
ADDRESS = "check the URL and the network"


def explain(error: BaseException) -> tuple[str, str]:
    """What went wrong, and what to do (empty where that is not known), without secrets.

    Packages that are not installed raise nothing: what they raise is recognised by its name.
    """
    what, advice = _explain(error, {kind.__name__ for kind in type(error).__mro__})
    return urls.masked(" ".join(what.split())), advice


def _explain(error: BaseException, names: set[str]) -> tuple[str, str]:
    # What obstore adds is how its own structures look.
    text = str(error).partition("\n\nDebug source:")[0] or type(error).__name__
    status = getattr(error, "status", None)
    if isinstance(status, int):
        answer = f"the server answers {status} {getattr(error, 'message', '')}".rstrip()
        if status in (401, 403, 407):
            return f"permission denied: {answer}", CREDENTIALS
        return answer, LATER if is_transient(error) else ""
    if names & {"NoCredentialsError", "PartialCredentialsError", "ProfileNotFound"}:
        return text, S3_CREDENTIALS
    if isinstance(error, PermissionError):
        return f"permission denied: {text}", CREDENTIALS
    if "ClientConnectorDNSError" in names:
        return f"there is no host {getattr(error, 'host', '')}", ADDRESS
    if "ClientConnectorError" in names:
        place = f"{getattr(error, 'host', '')} port {getattr(error, 'port', '')}"
        number = getattr(getattr(error, "os_error", None), "errno", None)
        reason = os.strerror(number) if isinstance(number, int) and number > 0 else text
        return f"cannot connect to {place} ({reason})", ADDRESS
    if "NonHttpUrlClientError" in names:
        return f"the server redirects to what is no URL of HTTP: {text}", ""
    if "ServerDisconnectedError" in names:
        return "the server closed the connection without an answer", LATER
    if "ServerTimeoutError" in names or type(error) is TimeoutError:
        return "no answer in time", LATER
    if isinstance(error, TypeError) and "unexpected keyword argument" in text:
        return text, "is it an option that this storage has (storage_options)?"
    return text, ""
