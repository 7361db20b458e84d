"""Descriptions by a language model: a file with every class in it, filled by an OpenAI-compatible endpoint.

One call for each class that has no sentences yet. The file is written after every answer, so a run that was broken off
goes on where it was. The key is read from the environment only, is sent to the endpoint and nowhere else (redirects are
refused), and is never written down.
"""

import contextlib
import http.client
import json
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipviz.errors import listed, one_line
from clipviz.files import write_json
from clipviz.prompts.classes import description_pairs, normalize_name, spoken_name

BASE_URL_VARIABLE = "OPENAI_BASE_URL"
KEY_VARIABLE = "OPENAI_API_KEY"
MODEL_VARIABLE = "OPENAI_MODEL"

QUESTION = (
    "Write {n} English sentences that describe what {kind} looks like in a photograph, as a help to tell it from "
    "similar classes. Each sentence must name {name!r}, stay below 40 words and speak of visible features only (shape, "
    "color, pattern, parts, size, surroundings). Answer with a JSON list of {n} strings and nothing else."
)
_LARGEST_ANSWER = 2**20
_IN_VAIN = 3  # classes in a row from the first, without an answer: nobody is there
_RETRIED = frozenset({408, 409, 425, 429, 500, 502, 503, 504})


@dataclass(frozen=True)
class Endpoint:
    """Where the language model is, and how patient to be."""

    url: str  # base of the interface, up to and with "/v1"
    model: str  # name of the language model
    key: str | None = None  # secret for the header "Authorization"; None sends none
    timeout: float = 120.0  # seconds for one call
    tries: int = 5  # calls for one class before giving up
    pause: float = 1.0  # seconds after the first failure; twice as long after each further one

    def __post_init__(self) -> None:
        """Refuse what is no address of a web server, for urllib opens files, too, or no key; an address is shown."""
        if not _is_web_address(self.url):
            shown = self.url.rpartition("@")[2]
            raise ValueError(f"the endpoint must be an http(s) address (http://HOST/v1), no password, got {shown!r}")
        if not self.model:
            raise ValueError(f"the endpoint {self.url} needs the name of its language model (--llm, ${MODEL_VARIABLE})")
        if self.key and not re.fullmatch("[!-~]+", self.key):  # of which Python's own error would show all
            raise ValueError(f"${KEY_VARIABLE} holds a line break, a space or another character that no key has")

    def __repr__(self) -> str:
        """Without the key."""
        return f"{self.model} at {self.url}"

    def without_key(self, text: str) -> str:
        """What a server says of a failure; it may repeat what it was sent."""
        return text.replace(self.key, "***") if self.key else text


def _is_web_address(url: str) -> bool:
    try:
        parts = urllib.parse.urlsplit(url)
        host, _ = (parts.hostname or "").encode("idna"), parts.port  # a ValueError for what is none
    except ValueError:
        return False
    return bool(host and re.fullmatch(r"https?://[^\s@/?#]+([/?#][!-~]*)?", url, re.IGNORECASE))


class Unanswered(ValueError):
    """The endpoint gave no usable answer, for a reason of one line; `wait` seconds later it wants to be asked again."""

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.wait = wait


class _Refused(Unanswered):
    """The endpoint will say the same whenever it is asked."""


def open_skeleton(path: Path, class_names: Sequence[str]) -> dict[str, list[str]]:
    """Read a description file that may be filled in part, or is not there: class name -> its sentences, or none."""
    wanted = _told_apart("class names", class_names)
    source, pairs = description_pairs(path) if path.exists() else ("", [])
    _told_apart(source, [key for key, _ in pairs])
    held = {normalize_name(key): sentences for key, sentences in pairs}
    if extra := [key for key, _ in pairs if normalize_name(key) not in wanted]:
        raise ValueError(f"{source} describes other classes ({listed(map(repr, extra))}); choose another --out")
    filled = {}
    for name in class_names:
        sentences = held.get(normalize_name(name), [])
        if not isinstance(sentences, list) or not all(isinstance(text, str) for text in sentences):
            raise ValueError(f"{source}: {name!r} needs a list of sentences; correct the file or choose another --out")
        filled[name] = [text for text in sentences if text.strip()]
    return filled


def _told_apart(source: str, names: Sequence[str]) -> Mapping[str, int]:
    """The normal forms of names, which a file of descriptions goes by; a ValueError if two have the same."""
    forms = Counter(map(normalize_name, names))
    if alike := [name for name in names if forms[normalize_name(name)] > 1]:
        raise ValueError(f"{source}: {listed(map(repr, alike))} count as one class; keep one, or make the words differ")
    return forms


def fill(
    path: Path, filled: Mapping[str, Sequence[str]], endpoint: Endpoint, *, n: int = 20, kind: str | None = None,
    progress: Callable[[str, int], None] = lambda name, n: None,
) -> dict[str, list[str]]:  # fmt: skip
    """Ask for n sentences of every class that has none, and write the file after every answer.

    `filled` is what is known already, as of `open_skeleton`; `kind` is what the classes are kinds of, such as "bird";
    `progress` is called with a class and the number of its sentences. An endpoint that refuses is an error at once, one
    that answers none of the first three classes after these, classes that stay without sentences at the end.
    """
    result = {name: list(sentences) for name, sentences in filled.items()}
    failed: dict[str, str] = {}
    for asked, name in enumerate([name for name, sentences in result.items() if not sentences], 1):
        try:
            result[name] = ask(endpoint, name, n, kind)
        except _Refused as error:
            raise ValueError(f"{endpoint} refused the request: {error}; the answers so far are in {path}") from error
        except Unanswered as error:
            failed[name] = str(error)
        write_json(path, result)
        progress(name, len(result[name]))
        if len(failed) == asked == _IN_VAIN:
            break
    if failed:
        (name, reason), missing = next(iter(failed.items())), sum(not sentences for sentences in result.values())
        raise ValueError(
            f"{missing} of {len(result)} classes got no sentences, for example {name!r}: {reason}; "
            "the others are saved, and the same command asks for the rest"
        )
    return result


def ask(endpoint: Endpoint, name: str, n: int, kind: str | None) -> list[str]:
    """Ask for the sentences of one class, again after a failure that may pass; `Unanswered` if no try gave any."""
    spoken = spoken_name(name)
    question = QUESTION.format(n=n, name=spoken, kind=f"{spoken!r}, a kind of {kind}," if kind else repr(spoken))
    for attempt in range(endpoint.tries):
        try:
            if sentences := sentences_of(_call(endpoint, question)):
                return sentences[:n]
            raise Unanswered("the answer holds no sentences, or half a list of them")
        except Unanswered as error:
            if isinstance(error, _Refused) or attempt + 1 == endpoint.tries:
                raise
            time.sleep(endpoint.pause * 2**attempt if error.wait is None else error.wait)
    raise AssertionError("the last attempt returns or raises")


def sentences_of(answer: str) -> list[str]:
    """The sentences in an answer: a JSON list of texts, whatever stands around it, else one a line; none twice."""
    said = answer.rpartition("</think>")[2]
    found: list[Any] = [] if re.search(r"[\[{]\s*[\[{\"']", said) else said.splitlines()  # of half a list nothing
    if begin := re.search(r'\[[^\[\]"]*"', said):
        with contextlib.suppress(ValueError, RecursionError):
            found, _ = json.JSONDecoder(strict=False).raw_decode(said, begin.start())
    texts = [" ".join(text.encode(errors="ignore").decode().split()) for text in found if isinstance(text, str)]
    texts = [re.sub(r"^(?:[-*•]|\d+[.)])\s+", "", text) for text in texts]
    return list(dict.fromkeys(text for text in texts if " " in text and not text.endswith(":")))


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would take the key to another server."""

    def redirect_request(self, *request: Any) -> None:
        return None


_OPENER = urllib.request.build_opener(_NoRedirect)


def _call(endpoint: Endpoint, question: str) -> str:
    body = {"model": endpoint.model, "messages": [{"role": "user", "content": question}], "temperature": 0.7}
    headers = {"Content-Type": "application/json"}
    if endpoint.key:
        headers["Authorization"] = f"Bearer {endpoint.key}"
    address = f"{endpoint.url.rstrip('/')}/chat/completions"
    request = urllib.request.Request(address, json.dumps(body).encode(), headers, method="POST")
    try:
        with _OPENER.open(request, timeout=endpoint.timeout) as response:
            raw = response.read(_LARGEST_ANSWER + 1)
    except urllib.error.HTTPError as error:
        with error:
            raise _http_failure(error, endpoint) from error
    except (OSError, http.client.HTTPException) as error:  # no connection, a time-out, half an answer
        reason = endpoint.without_key(str(getattr(error, "reason", error)))
        raise Unanswered(f"no answer from {endpoint.url} ({one_line(reason) or type(error).__name__})") from error
    return _content(raw)


def _http_failure(error: urllib.error.HTTPError, endpoint: Endpoint) -> Unanswered:
    said = ""
    with contextlib.suppress(OSError, http.client.HTTPException):
        said = one_line(endpoint.without_key(error.read(2000).decode(errors="replace")))
    reason = f"HTTP {error.code} {said}".strip()
    if error.code not in _RETRIED:
        return _Refused(reason)
    wait = error.headers.get("Retry-After", "")
    return Unanswered(reason, min(float(wait), 60.0) if re.fullmatch(r"\d+(\.\d+)?", wait) else None)


def _content(raw: bytes) -> str:
    if len(raw) > _LARGEST_ANSWER:
        raise Unanswered(f"the answer is longer than {_LARGEST_ANSWER} bytes")
    try:
        content = json.loads(raw)["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError, RecursionError) as error:
        raise Unanswered(f"the answer is not a chat completion ({type(error).__name__})") from error
    if not isinstance(content, str):
        raise Unanswered("the answer holds no text")
    return content
