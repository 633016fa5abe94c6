"""Page tokens: opaque, and bound to the arguments of the list they continue."""

import hashlib
import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from google.protobuf.message import Message

from shared.errors import InvalidRequest

Value = TypeVar("Value")

DEFAULT_SIZE = 50
LARGEST_SIZE = 1000


def page_size(request: Any) -> int:
    """How many to list; raises InvalidRequest for a negative size."""
    if request.page_size < 0:
        raise InvalidRequest("page_size cannot be negative", field="page_size")
    return min(request.page_size or DEFAULT_SIZE, LARGEST_SIZE)


def token(request: Message, after: Any) -> str:
    """The token that continues the list of `request` after the key `after` (JSON values)."""
    content = json.dumps([_arguments(request), after]).encode()
    return urlsafe_b64encode(content).decode()


def after(request: Any) -> Any:
    """The key to continue after, or None at the beginning; raises InvalidRequest for a token of another list."""
    if not request.page_token:
        return None
    try:
        arguments, key = json.loads(urlsafe_b64decode(request.page_token))
    except (ValueError, TypeError) as error:
        raise InvalidRequest("page_token is not one of ours", field="page_token") from error
    if arguments != _arguments(request):
        raise InvalidRequest("page_token belongs to a list with other arguments", field="page_token")
    return key


def _arguments(request: Message) -> str:
    """What must stay the same from page to page: the method's message type and all fields but the two of paging."""
    bare = type(request)()
    bare.CopyFrom(request)
    bare.ClearField("page_token")
    bare.ClearField("page_size")
    content = bare.DESCRIPTOR.full_name.encode() + bare.SerializeToString(deterministic=True)
    return hashlib.sha256(content).hexdigest()[:16]


def cut(request: Any, values: Sequence[Value], key: Callable[[Value], str]) -> tuple[Sequence[Value], str]:
    """The page of a short list that is sorted by `key`, and the token of the next one ('' on the last)."""
    size, reached = page_size(request), after(request)
    rest = [value for value in values if reached is None or key(value) > reached]
    page = rest[:size]
    return page, token(request, key(page[-1])) if len(rest) > size else ""
