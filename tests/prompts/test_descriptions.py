"""Descriptions: what is said about a file, and how a language model fills one (a server on this machine stands in)."""

import contextlib
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import open_clip
import pytest

from clipviz.cli import main as cli
from clipviz.prompts import llm as describe
from clipviz.prompts import read_descriptions
from clipviz.prompts.check import check_descriptions
from clipviz.prompts.llm import Endpoint, Unanswered, ask, fill, open_skeleton, sentences_of


@pytest.fixture
def write(tmp_path):
    def write_json(value):
        path = tmp_path / "given.json"
        path.write_text(json.dumps(value))
        return path

    return write_json


# ------------------------------------------------------------------------------------------------- checking


def test_a_check_counts_what_there_is():
    tokenizer = open_clip.SimpleTokenizer(context_length=12)
    long = "an owl with " + "very " * 20 + "large eyes"
    check = check_descriptions({"Owl": ["An owl hoots.", long], "wren": ["It is small."]}, ["owl", "wren"], tokenizer)
    assert check.problems == ()
    assert (check.n_classes, check.n_sentences, check.fewest, check.most) == (2, 3, 1, 2)
    assert check.cut == (("Owl", long),)
    assert check.nameless == (("wren", "It is small."),)
    assert check.require() is check
    assert "3 sentences for 2 classes, 1 to 2 for one (mean 1.5)" in check.report()
    assert "1 (33.3 %) are longer than the 12 tokens" in check.report()
    assert "1 (33.3 %) do not name their class, for example of 'wren': 'It is small.'" in check.report()


@pytest.mark.parametrize("extra", [0, 1, 30])
def test_a_sentence_is_cut_from_the_first_token_too_many(extra):
    """A word of one token each; start and end take two."""
    tokenizer = open_clip.SimpleTokenizer(context_length=12)
    sentence = " ".join(["owl"] * (10 + extra))
    assert len(tokenizer.encode(sentence)) == 10 + extra
    assert len(check_descriptions({"owl": [sentence]}, None, tokenizer).cut) == (extra > 0)


def test_names_are_found_in_any_spelling():
    assert check_descriptions({"foie_gras": ["Foie Gras, on a plate."]}).nameless == ()
    assert len(check_descriptions({"foie_gras": ["Liver, on a plate."]}).nameless) == 1


def test_everything_wrong_is_in_one_line_with_the_counts(write):
    path = write({"owl": [], "Wren": ["A wren."], "wren": ["A bird."], "fox": ["A fox.", 3], "x": "A letter."})
    check = check_descriptions(path, ["owl", "wren", "cat"])
    with pytest.raises(ValueError, match=r"given\.json") as error:
        check.require()
    message = str(error.value)
    assert message.endswith("; correct the file, then run `clipviz describe --check` again")
    for part in (
        "no entry for 'cat'",
        "entries for no class: 'fox', 'x'",
        "ambiguous keys for one class: 'Wren', 'wren'",
        "'owl' has an empty list",
        "'fox' holds a number where a sentence belongs",
        "'x' needs a list of sentences, got a string",
        "3 sentences for 3 classes, 1 to 1 for one",
        "1 (33.3 %) do not name their class",
    ):
        assert part in message
    assert "\n" not in message


def test_an_empty_description_has_no_sentence_at_all(write):
    assert "no sentence at all" in check_descriptions(write({"owl": []})).report()


# ------------------------------------------------------------------------------------------------- a language model


class Server:
    """An OpenAI-compatible endpoint that answers by a script: a function of (number of the call, request)."""

    def __init__(self):
        self.requests = []
        self.script = lambda i, request: (200, completion(["The thing is red.", "The thing is big."]))
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                request = {"path": self.path, "headers": dict(self.headers), "body": json.loads(body)}
                server.requests.append(request)
                status, content, *headers = server.script(len(server.requests) - 1, request)
                self.send_response(status)
                for name, value in headers:
                    self.send_header(name, value)
                with contextlib.suppress(ConnectionError):  # a client that was out of patience has hung up
                    self.end_headers()
                    self.wfile.write(content)

            def log_message(self, *args):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = False  # closing waits for every request: nothing reaches into the next test
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def asked(self):
        return [request["body"]["messages"][0]["content"] for request in self.requests]


def completion(sentences):
    text = sentences if isinstance(sentences, str) else json.dumps(sentences)
    return json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]}).encode()


@pytest.fixture
def server():
    server = Server()
    yield server
    server.http.shutdown()
    server.http.server_close()


@pytest.fixture
def endpoint(server):
    return Endpoint(server.url, "stand-in", "secret", timeout=5, pause=0.01)


def test_a_class_is_asked_for_in_one_call(server, endpoint):
    assert ask(endpoint, "red_kite", 7, "bird") == ["The thing is red.", "The thing is big."]
    (request,) = server.requests
    assert request["path"] == "/v1/chat/completions"
    assert request["headers"]["Authorization"] == "Bearer secret"
    assert request["body"]["model"] == "stand-in"
    (question,) = server.asked
    assert "Write 7 English sentences" in question
    assert "'red kite', a kind of bird," in question


@pytest.mark.parametrize(
    "answer",
    [
        '["A {} is red.", "It has a beak."]',
        'Here you are:\n```json\n["A {} is red.", "It has a beak.", "It has a beak."]\n```',
        "1. A {} is red.\n2) It has a beak.\n",
        "- A {} is red.\n\n* It has a beak.\n[",
        '["A {} is red.", 7, null, "", "It has   a\\nbeak."]',
        '["A {} is red.", "It has\na beak."]',
        'Here are [2] sentences:\n["A {} is red.", "It has a beak."]',
        '<think>A list [of texts], or ["so to say"]?</think>\n["A {} is red.", "It has a beak."]',
        "Here are two sentences:\n\nA {} is red.\nIt has a beak.",
    ],
)
def test_sentences_are_found_in_what_models_answer(answer):
    assert sentences_of(answer) == ["A {} is red.", "It has a beak."]


@pytest.mark.parametrize(
    "answer",
    [
        '[\n  "An owl is red.",\n  "An owl has a',
        '["An owl is red.", "An owl has a',
        "['An owl is red.', 'An owl has a beak.']",
        '{"1": "An owl is red."}',
        '[{"sentence": "An owl is red."}]',
    ],
)
def test_a_list_that_breaks_off_or_is_of_another_kind_is_not_taken_for_a_sentence(answer):
    assert sentences_of(answer) == []


def test_failures_that_may_pass_are_tried_again(server, endpoint):
    answers = [
        (503, b"overloaded"),
        (429, b"slow down", ("Retry-After", "0.01")),
        (200, b"<html>not json</html>"),
        (200, completion("[]")),
        (200, completion(["An owl hoots."])),
    ]
    server.script = lambda i, request: answers[i]
    assert ask(endpoint, "owl", 5, None) == ["An owl hoots."]
    assert len(server.requests) == 5


def test_the_server_says_how_long_to_wait(server, endpoint, monkeypatch):
    waits = []
    monkeypatch.setattr(describe.time, "sleep", waits.append)
    answers = [(429, b"", ("Retry-After", "7")), (429, b"", ("Retry-After", "99999")), (500, b""), (500, b"")]
    server.script = lambda i, request: answers[i] if i < 4 else (200, completion(["An owl hoots."]))
    ask(endpoint, "owl", 5, None)
    assert waits == [7.0, 60.0, 0.04, 0.08]


def test_a_server_that_never_answers_is_given_up(tmp_path):
    nobody = Endpoint("http://127.0.0.1:9", "m", timeout=1, tries=2, pause=0.01)
    with pytest.raises(Unanswered, match=r"no answer from http://127\.0\.0\.1:9 \(.*refused"):
        ask(nobody, "owl", 5, None)


def test_where_nobody_answers_not_every_class_is_waited_for(server, tmp_path):
    asked = []
    nobody = Endpoint("http://127.0.0.1:9", "m", timeout=1, tries=1)
    names = {f"owl {i}": [] for i in range(5)}
    with pytest.raises(ValueError, match=r"5 of 5 classes got no sentences, for example 'owl 0': no answer"):
        fill(tmp_path / "d.json", names, nobody, progress=lambda name, n: asked.append(name))
    assert asked == ["owl 0", "owl 1", "owl 2"]
    server.script = lambda i, request: (200, completion(["An owl hoots."])) if i == 0 else (500, b"")
    with pytest.raises(ValueError, match=r"4 of 5 classes got no sentences, for example 'owl 1': HTTP 500"):
        fill(tmp_path / "e.json", names, Endpoint(server.url, "m", timeout=5, tries=1))
    assert len(server.requests) == 5  # whoever answers once is asked for all


def test_a_server_that_is_too_slow_is_given_up(server):
    server.script = lambda i, request: time.sleep(0.5) or (200, completion(["x y"]))
    with pytest.raises(Unanswered, match="timed out"):
        ask(Endpoint(server.url, "m", timeout=0.1, tries=1), "owl", 5, None)


def test_what_was_answered_is_kept_and_the_rest_asked_for_next_time(server, endpoint, tmp_path):
    path, names = tmp_path / "d.json", ["owl", "wren", "fox"]

    def only_owls(i, request):
        question = request["body"]["messages"][0]["content"]
        return (200, completion(["An owl hoots."])) if "owl" in question else (500, b"")

    server.script = only_owls
    hurried = Endpoint(server.url, "m", timeout=5, tries=1)
    with pytest.raises(ValueError, match=r"2 of 3 classes got no sentences, for example 'wren': HTTP 500; the others"):
        fill(path, open_skeleton(path, names), hurried)
    assert json.loads(path.read_text()) == {"owl": ["An owl hoots."], "wren": [], "fox": []}
    server.requests.clear()
    server.script = lambda i, request: (200, completion(["A small one."]))
    fill(path, open_skeleton(path, names), endpoint)
    assert len(server.requests) == 2  # not the owl again
    assert read_descriptions(path, names) == {
        "owl": ("An owl hoots.",), "wren": ("A small one.",), "fox": ("A small one.",)
    }  # fmt: skip


def test_an_interrupt_keeps_what_was_answered(server, endpoint, tmp_path):
    path = tmp_path / "d.json"

    def stop(name, n):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fill(path, {"owl": [], "wren": []}, endpoint, progress=stop)
    assert json.loads(path.read_text())["owl"] == ["The thing is red.", "The thing is big."]


def test_a_refusal_ends_it_at_once_and_the_key_is_never_shown(server, endpoint, tmp_path):
    server.script = lambda i, request: (401, b'{"error": "invalid key in Bearer secret"}')
    with pytest.raises(ValueError, match=r"stand-in at http.*refused the request: HTTP 401 .*invalid key") as error:
        fill(tmp_path / "d.json", {"owl": [], "wren": []}, endpoint)
    assert len(server.requests) == 1
    assert "secret" not in str(error.value) + repr(endpoint)


def test_the_key_does_not_follow_a_redirect(server, endpoint, tmp_path):
    other = Server()
    try:
        server.script = lambda i, request: (307, b"", ("Location", f"{other.url}/chat/completions"))
        with pytest.raises(ValueError, match="refused the request: HTTP 307"):
            fill(tmp_path / "d.json", {"owl": []}, endpoint)
        assert other.requests == []
    finally:
        other.http.shutdown()
        other.http.server_close()


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[]", b'{"choices": []}', b'{"choices": [{"message": null}]}', b"\xff"]
)
def test_an_answer_that_is_none_is_told(server, content):
    server.script = lambda i, request: (200, content)
    with pytest.raises(Unanswered, match="is not a chat completion"):
        ask(Endpoint(server.url, "m", tries=1), "owl", 5, None)


def test_a_failure_that_breaks_off_is_told(server):
    server.script = lambda i, request: (500, b"40\r\nhalf", ("Transfer-Encoding", "chunked"))
    with pytest.raises(Unanswered, match="HTTP 500"):
        ask(Endpoint(server.url, "m", tries=1), "owl", 5, None)


def test_an_endless_answer_is_cut_off(server, monkeypatch):
    monkeypatch.setattr(describe, "_LARGEST_ANSWER", 1000)
    server.script = lambda i, request: (200, b"x" * 100_000)
    with pytest.raises(Unanswered, match="longer than 1000 bytes"):
        ask(Endpoint(server.url, "m", tries=1), "owl", 5, None)


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd", "localhost:8000", "", "ftp://x/v1", "http://[::1/v1", "http://x:port/v1", "http://a..b/v1",
        "http://x:99999/v1", "http://x/é", "http://x/a b", "http://x/v1\n", "http://me:secret@x/v1",
    ],
)  # fmt: skip
def test_an_endpoint_is_a_web_address(url):
    with pytest.raises(ValueError, match=r"must be an http\(s\) address") as error:
        Endpoint(url, "m")
    assert "secret" not in str(error.value)
    assert type(error.value) is ValueError
    assert Endpoint("https://[::1]:8000/v1?api=1", "m").url


@pytest.mark.parametrize("key", ["secret\n", "secret\r", "“secret”", " "])
def test_a_key_that_no_request_can_carry_is_refused_and_not_shown(key):
    with pytest.raises(ValueError, match=r"\$OPENAI_API_KEY holds a line break") as error:
        Endpoint("http://x/v1", "m", key)
    assert "secret" not in str(error.value)


def test_a_file_of_other_classes_is_not_overwritten(write):
    path = write({"owl": ["An owl."], "fox": []})
    with pytest.raises(ValueError, match=r"describes other classes \('fox'\); choose another --out"):
        open_skeleton(path, ["owl", "wren"])
    with pytest.raises(ValueError, match="'owl' needs a list of sentences"):
        open_skeleton(write({"owl": "An owl."}), ["owl"])


def test_sentences_that_are_there_are_never_lost_to_another_spelling(write, tmp_path):
    with pytest.raises(ValueError, match=r"'owl', 'Owl' count as one class"):
        open_skeleton(write({"owl": ["An owl."], "Owl": []}), ["owl"])
    with pytest.raises(ValueError, match=r"class names: 'great_owl', 'great owl' count as one"):
        open_skeleton(tmp_path / "absent.json", ["great_owl", "great owl"])
    assert open_skeleton(write({"owl": [" "], "fox": ["A fox."]}), ["owl", "fox"]) == {"owl": [], "fox": ["A fox."]}


# ------------------------------------------------------------------------------------------------- the command


@pytest.fixture
def names(tmp_path, monkeypatch):
    for variable in ("OPENAI_BASE_URL", "OPENAI_API_KEY", "OPENAI_MODEL"):
        monkeypatch.delenv(variable, raising=False)
    path = tmp_path / "names.txt"
    path.write_text("great owl\nwren {}\n")
    return path


def run(*arguments):
    return cli.main(["describe", *map(str, arguments)])


def test_without_an_endpoint_there_is_a_file_to_fill_by_hand(names, tmp_path, capsys):
    out = tmp_path / "d.json"
    assert run("--classes", names, "--out", out) == 0
    assert json.loads(out.read_text()) == {"great owl": [], "wren {}": []}
    assert "2 of 2 classes have no sentences yet" in capsys.readouterr().out
    out.write_text(json.dumps({"wren {}": ["By hand."]}))
    assert run("--classes", names, "--out", out) == 0
    assert json.loads(out.read_text()) == {"great owl": [], "wren {}": ["By hand."]}
    assert run("--check", out) == 2
    assert "'great owl' has an empty list" in capsys.readouterr().err


def test_the_number_of_calls_is_shown_before_any_is_made(names, server, tmp_path, capsys):
    arguments = ("--classes", names, "--out", tmp_path / "d.json", "--endpoint", server.url, "--llm", "m")
    assert run(*arguments) == 2
    assert f"2 calls to m at {server.url}, 20 sentences each: about 1,400 tokens; add --yes" in capsys.readouterr().err
    assert server.requests == []
    assert run(*arguments, "--yes") == 0
    assert len(server.requests) == 2
    assert "4 sentences for 2 classes, 2 to 2 for one (mean 2.0)" in capsys.readouterr().out
    assert run(*arguments) == 0  # nothing is left to ask
    assert "all 2 classes have sentences" in capsys.readouterr().out


@pytest.mark.parametrize(("answer", "calls"), [("y", 2), ("n", 0), ("", 0)])
def test_on_a_terminal_it_asks(names, server, tmp_path, monkeypatch, capsys, answer, calls):
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    monkeypatch.setenv("OPENAI_MODEL", "m")
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda prompt: answer)
    assert run("--classes", names, "--out", tmp_path / "d.json") == (0 if calls else 2)
    assert len(server.requests) == calls


def test_an_input_that_ends_is_no(names, server, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: True, readline=lambda: ""))
    assert run("--classes", names, "--out", tmp_path / "d.json", "--endpoint", server.url, "--llm", "m") == 2
    assert "no call was made" in capsys.readouterr().err


def test_who_interrupts_it_is_told_where_the_answers_are(names, server, tmp_path, monkeypatch, capsys):
    def stop(name, n):
        raise KeyboardInterrupt

    monkeypatch.setattr("clipviz.cli.describe._tell", stop)
    out = tmp_path / "d.json"
    assert run("--classes", names, "--out", out, "--endpoint", server.url, "--llm", "m", "--yes") == 130
    assert f"stopped; the answers so far are in {out}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "d.json"], "which classes"),
        (["--classes", "{names}", "--out", "d.txt"], "descriptions go into a .json file"),
        (
            ["--classes", "{names}", "--out", "{tmp}/d.json", "--endpoint", "{url}"],
            "needs the name of its language model",
        ),
        (["--classes", "{names}", "--check", "{tmp}/absent.json"], "cannot be read"),
    ],
)
def test_mistakes_get_one_line(names, server, tmp_path, capsys, arguments, message):
    assert run(*(text.format(names=names, tmp=tmp_path, url=server.url) for text in arguments)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
