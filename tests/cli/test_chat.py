"""`powerserve chat`: conversations from a pipe and on a terminal."""

from __future__ import annotations

import io
import json
import os
import select
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from command_line import PROGRAM, status_of, type_in
from powerserve import LLM, LoadOptions, SamplingParams
from powerserve.cli.chat_session import ChatSession
from powerserve.cli.conversation import Conversation, Message
from powerserve.cli.turns import read_turn
from powerserve.core.errors import ConfigError, ContextLengthError
from tiny_models import write_tiny_model

Capture = pytest.CaptureFixture[str]
Chat = Callable[..., str]


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return write_tiny_model(tmp_path / "tiny.gguf")


@pytest.fixture
def chat(tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> Chat:
    """Chat with the tiny model: what is piped in, then flags; returns standard error."""

    def run(text: str | bytes, *flags: str, status: int = 0) -> str:
        type_in(monkeypatch, text)
        assert status_of("chat", "-m", tiny, "-n", "6", "--ignore-eos", *flags) == status
        return capsys.readouterr().err

    return run


def saved(path: Path) -> list[tuple[str, str]]:
    return [(each["role"], each["content"]) for each in json.loads(path.read_text())]


def test_each_line_is_a_turn_and_no_prompt_is_shown(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    file = tmp_path / "talk.json"
    type_in(monkeypatch, f"hello\n\n the world \n/save {file}\n")
    assert status_of("chat", "-m", tiny, "-n", "6", "--temp", "0", "--system", "Be brief.") == 0
    printed = capsys.readouterr()
    messages = saved(file)
    assert [role for role, _ in messages] == ["system", "user", "assistant", "user", "assistant"]
    assert messages[0][1] == "Be brief."
    assert (messages[1][1], messages[3][1]) == ("hello", " the world ")
    assert printed.out == f"{messages[2][1]}\n{messages[4][1]}\n"
    assert printed.err == f"[saved {file}]\n"


def test_a_first_message_may_come_as_a_flag(chat: Chat, tmp_path: Path) -> None:
    file = tmp_path / "talk.json"
    chat(f"and then\n/save {file}", "-p", "first of all")
    assert [text for role, text in saved(file) if role == "user"] == ["first of all", "and then"]


def test_later_turns_reuse_what_was_computed(chat: Chat) -> None:
    told = chat("the first question is a long one\nb\n/stats", "--temp", "0")
    cached = int(told.split("cached      : ")[1].split()[0])
    assert cached > 30  # the first question and what the template puts around it


def test_messages_may_have_several_lines(chat: Chat, tmp_path: Path) -> None:
    file = tmp_path / "talk.json"
    chat(f'"""one\ntwo"""\nthree\\\nfour\n/save {file}')
    assert [text for role, text in saved(file) if role == "user"] == ["one\ntwo", "three\nfour"]


@pytest.mark.parametrize(
    ("lines", "turn"),
    [
        (["plain"], "plain"),
        (['"""one line"""'], "one line"),
        (['"""', "", "a", '"""', "next"], "a"),
        (['"""never', "closed"], "never\nclosed"),
        (["a\\", "b\\", "c"], "a\nb\nc"),
        (["a\\"], "a\n"),
        ([], None),
    ],
)
def test_where_a_turn_ends(lines: list[str], turn: str | None) -> None:
    source = iter(lines)
    assert read_turn(lambda prompt: next(source, None)) == turn


def test_a_long_conversation_forgets_its_beginning_but_not_the_system_message(
    chat: Chat, tmp_path: Path
) -> None:
    file = tmp_path / "talk.json"
    turns = "\n".join(f"question {number}" for number in range(12))
    flags = ("-c", "448", "--system", "Stay.", "-n", "40", "--seed", "1")
    told = chat(f"{turns}\n/save {file}", *flags)
    assert "the conversation is too long: forgot its first" in told
    assert "is full" not in told  # room for the answer was made in time
    messages = saved(file)
    assert messages[0] == ("system", "Stay.")
    assert [role for role, _ in messages[1:]] == ["user", "assistant"] * (len(messages) // 2)
    questions = [text for role, text in messages if role == "user"]
    assert questions == [f"question {number}" for number in range(12)][-len(questions) :]
    assert 2 <= len(questions) < 12


def test_forgetting_takes_a_question_with_its_answer() -> None:
    first, last = [Message("user", "a"), Message("assistant", "b")], [Message("user", "c")]
    conversation = Conversation("Stay.", [*first, *last])
    assert conversation.forget_oldest()
    assert (conversation.system, conversation.turns) == ("Stay.", last)
    assert not conversation.forget_oldest()
    assert conversation.turns == last


def test_a_question_longer_than_the_context_ends_a_pipe(chat: Chat) -> None:
    told = chat("word " * 200, "-c", "128", status=2)
    assert "powerserve chat: error: the question has" in told
    assert "the context holds 128" in told


def test_a_refused_question_leaves_no_trace(tiny: Path) -> None:
    params = SamplingParams(max_tokens=4, ignore_eos=True)
    with LLM(tiny, LoadOptions(context_size=128)) as llm:
        out = io.StringIO()
        session = ChatSession(llm, params, Conversation(), out, interactive=True)
        with pytest.raises(ContextLengthError):
            session.ask("word " * 200)
        assert session.conversation.turns == []
        session.ask("word")
    assert [message.role for message in session.conversation.turns] == ["user", "assistant"]
    assert out.getvalue() == session.conversation.turns[1].content + "\n"


def test_an_answer_that_fills_the_context_says_so(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    type_in(monkeypatch, "hello\n")
    assert status_of("chat", "-m", tiny, "-c", "64", "--ignore-eos") == 0
    assert "the context of 64 tokens is full" in capsys.readouterr().err


def test_clear_and_system_change_what_the_model_sees(chat: Chat, tmp_path: Path) -> None:
    file = tmp_path / "talk.json"
    told = chat(f"a\n/clear\n/system Be odd.\nb\n/save {file}\n/system\n/save {file}.2")
    assert [text for role, text in saved(file) if role != "assistant"] == ["Be odd.", "b"]
    assert saved(tmp_path / "talk.json.2")[0] == ("user", "b")
    assert "[a new conversation]" in told


def test_regenerate_replaces_the_answer(chat: Chat, tmp_path: Path) -> None:
    first, second = tmp_path / "1.json", tmp_path / "2.json"
    chat(f"a\n/save {first}\n/regenerate\n/save {second}", "--seed", "1", "--temp", "2")
    assert saved(first)[0] == saved(second)[0]
    assert saved(first)[1] != saved(second)[1]
    assert len(saved(second)) == 2
    assert "there is no question yet" in chat("/regenerate")


def test_a_loaded_conversation_goes_on(chat: Chat, tmp_path: Path) -> None:
    file, later = tmp_path / "talk.json", tmp_path / "later.json"
    talk = [Message("user", "a"), Message("assistant", "b"), Message("user", "c")]
    Conversation("Be kind.", talk).save(file)
    chat(f"/load {file}\nd\n/save {later}")
    assert saved(later)[:4] == saved(file)
    assert [role for role, _ in saved(later)[4:]] == ["assistant", "user", "assistant"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("no JSON", "not valid JSON"),
        ('{"role": "user"}', "expected `array`"),
        ('[{"role": "user"}]', "missing required field `content`"),
        ('[{"role": "pirate", "content": "x"}]', "invalid enum value 'pirate'"),
        ('[{"role": "assistant", "content": "x"}]', "message 1 is the assistant's"),
        (
            '[{"role": "system", "content": "x"}, {"role": "system", "content": "x"}]',
            "message 2 is the system's",
        ),
    ],
)
def test_a_file_that_is_no_conversation(tmp_path: Path, content: str, words: str) -> None:
    file = tmp_path / "talk.json"
    file.write_text(content)
    with pytest.raises(ConfigError, match=r"talk\.json") as caught:
        Conversation.load(file)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("/dance", "there is no command /dance; /help lists them"),
        ("/save", "name a file"),
        ("/save /nowhere/at/all", "/nowhere/at/all cannot be written"),
        ("/load /nowhere/at/all", "there is no file /nowhere/at/all"),
    ],
)
def test_commands_that_cannot_be_done(chat: Chat, command: str, words: str) -> None:
    assert words in chat(command, status=2)


def test_help_lists_the_commands_and_exit_leaves(chat: Chat) -> None:
    told = chat("/help\n/exit\n/dance")
    for name in ("clear", "system", "regenerate", "save", "load", "stats", "exit"):
        assert f"/{name}" in told


def test_input_that_is_not_utf8(chat: Chat) -> None:
    assert "standard input is not UTF-8" in chat(b"caf\xe9\n", status=2)


class Terminal:
    """A chat on a pseudo-terminal."""

    def __init__(self, *flags: str, home: Path) -> None:
        import pty

        self._master, slave = pty.openpty()
        self.running = subprocess.Popen(
            [*PROGRAM, "chat", *flags],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=os.environ | {"POWERSERVE_HOME": str(home), "TERM": "dumb"},
            start_new_session=True,
            preexec_fn=_take_terminal,
        )
        os.close(slave)
        self.seen = ""

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def read_until(self, words: str, timeout_s: float = 60) -> str:
        """Everything printed up to `words`; what comes later is left for the next call."""
        deadline = time.monotonic() + timeout_s
        while words not in self.seen:
            assert time.monotonic() < deadline, f"no {words!r} in {self.seen!r}"
            if select.select([self._master], [], [], 0.1)[0]:
                self.seen += os.read(self._master, 4096).decode(errors="replace")
        before, _, self.seen = self.seen.partition(words)
        return before

    def close(self) -> None:
        self.running.kill()
        self.running.wait()
        os.close(self._master)


def _take_terminal() -> None:
    """In the child: let Ctrl-C on the pseudo-terminal reach this process."""
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


@pytest.fixture
def terminal(smollm2: Path, tmp_path: Path) -> Iterator[Terminal]:
    if sys.platform == "win32":
        pytest.skip("pseudo-terminals are a thing of POSIX")
    flags = ("-m", str(smollm2), "--temp", "0", "--ignore-eos")
    opened = Terminal(*flags, home=tmp_path / "home")
    yield opened
    opened.close()


def test_ctrl_c_stops_an_answer_and_not_the_chat(terminal: Terminal, tmp_path: Path) -> None:
    file = tmp_path / "talk.json"
    terminal.read_until("> ")
    terminal.type("Tell me a story.\r")
    terminal.read_until(". ")  # a sentence, whatever this build makes of the story
    terminal.type("\x03")
    terminal.read_until("[stopped]")
    terminal.read_until("> ")
    terminal.type(f"/save {file}\r")
    terminal.read_until("[saved")
    terminal.read_until("> ")
    (_, question), (role, answer) = saved(file)
    assert question == "Tell me a story."
    assert role == "assistant" and ". " in answer
    terminal.type("/dance\r")
    terminal.read_until("error: there is no command /dance")
    terminal.read_until("> ")
    terminal.type("\x04")
    assert terminal.running.wait(30) == 0
    history = tmp_path / "home/chat_history"
    assert history.read_text().splitlines()[0] == "Tell me a story."
    assert stat.S_IMODE(history.stat().st_mode) == 0o600


def test_ctrl_c_twice_at_the_prompt_leaves(terminal: Terminal) -> None:
    terminal.read_until("> ")
    time.sleep(0.5)  # Python's input() misses a signal between its prompt and its waiting
    terminal.type("\x03")
    terminal.read_until("Ctrl-C again")
    terminal.read_until("> ")
    time.sleep(0.5)  # Python's input() misses a signal between its prompt and its waiting
    terminal.type("\x03")
    assert terminal.running.wait(30) == 0
