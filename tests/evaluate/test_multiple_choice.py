"""Multiple choice: what is asked, who answers, which letter that is, and what it is worth."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from powerserve.core.dtypes import F16
from powerserve.core.errors import ConfigError, ContextLengthError, PowerServeError, UsageError
from powerserve.engine.loader import LoadOptions
from powerserve.evaluate.mmlu import read_mmlu
from powerserve.evaluate.mmmu import read_mmmu
from powerserve.evaluate.multiple_choice.chooser import Choice, ChooseBy, ImagesRefusedError
from powerserve.evaluate.multiple_choice.journal import Circumstances, Journal
from powerserve.evaluate.multiple_choice.local import LocalChooser
from powerserve.evaluate.multiple_choice.prompts import (
    chat_messages,
    completion_prompt,
    find_letter,
)
from powerserve.evaluate.multiple_choice.question import ChoiceTest, Question
from powerserve.evaluate.multiple_choice.run import answer_all
from powerserve.evaluate.multiple_choice.score import Score, score_answers
from powerserve.evaluate.scoring import batch_logits, token_nll
from powerserve.llm import LLM
from tiny_models import TinyModel, write_tiny_model

SAMPLES = Path(__file__).parents[2] / "assets" / "evaluation"
CIRCUMSTANCES = Circumstances("mmlu", "tiny", "", "logprob", 0, 0)


def question(number: int = 1, *, answer: str = "B", images: Sequence[str] = ()) -> Question:
    paths = tuple(map(Path, images))
    return Question("rivers", str(number), f"Is it {number}?", ("no", "yes", "so"), answer, paths)


@dataclass
class Parrot:
    """Always chooses B; says what it was asked."""

    asked: list[str] = field(default_factory=list)
    interrupt_at: int = -1

    def choose(self, question: Question, examples: Sequence[Question]) -> Choice:
        if len(self.asked) == self.interrupt_at:
            raise KeyboardInterrupt
        if question.images:
            raise ImagesRefusedError("it is blind")
        self.asked.append(question.name)
        return Choice("B", "B!")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model") / "tiny.gguf", TinyModel())


def test_a_completion_prompt_is_worded_as_mmlu_is() -> None:
    example = Question("high_school_law", "1", "Who?", ("a", "b", "c", "d"), "C")
    asked = Question("high_school_law", "2", "Where?", ("e", "f", "g", "h"), "A")
    assert completion_prompt(asked, [example]) == (
        "The following are multiple choice questions (with answers) about high school law.\n\n"
        "Who?\nA. a\nB. b\nC. c\nD. d\nAnswer: C\n\n"
        "Where?\nA. e\nB. f\nC. g\nD. h\nAnswer:"
    )


def test_in_a_chat_the_examples_have_been_answered() -> None:
    messages = chat_messages(question(2), [question(1, answer="C")])
    assert [message["role"] for message in messages] == ["user", "assistant", "user"]
    assert messages[1]["content"] == "C"
    assert "Is it 2?\nA. no\nB. yes\nC. so" in messages[2]["content"]


@pytest.mark.parametrize(
    ("reply", "letter"),
    [
        ("B", "B"),
        (" c", None),
        ("B.", "B"),
        ("(D)", "D"),
        ("**C** because …", "C"),
        ("The answer is (B), not A.", "B"),
        ("Answer: D", "D"),
        ("A good question! I would say C.", "C"),
        ("A", "A"),
        ("B is right", "B"),
        ("Because", None),
        ("<think>Is it A? A!</think>\nD", "D"),
        ("E", None),
        ("", None),
    ],
)
def test_the_letter_of_a_reply(reply: str, letter: str | None) -> None:
    assert find_letter(reply, "ABCD") == letter


def test_the_likeliest_letter_is_chosen(tiny: Path) -> None:
    """Compared with the log-likelihood of every letter after the prompt."""
    questions = read_mmlu(SAMPLES / "mmlu", num_examples=1)
    chosen: list[str] = []
    with LLM(tiny) as llm:
        chooser = LocalChooser(llm, ChooseBy.LOGPROB, 0)
        for each in questions.questions[::3]:
            examples = questions.examples[each.subject]
            prompt = completion_prompt(each, examples)
            nll = [continuation_nll(llm, prompt, f" {letter}") for letter in "ABCD"]
            choice = chooser.choose(each, examples).letter
            assert choice == "ABCD"[int(np.argmin(nll))]
            chosen.append(choice)
    assert len(set(chosen)) > 1  # else any constant would do


def continuation_nll(llm: LLM, prompt: str, text: str) -> float:
    """Negative log-likelihood of `text` after `prompt`, by the tokens of both together."""
    token_ids = np.array(llm.loaded.tokenizer.encode(prompt + text), np.int32)
    batches = batch_logits(llm.loaded.model, token_ids, batch_size=len(token_ids), kv_dtype=F16)
    (logits,) = (each.copy() for each in batches)
    return float(token_nll(logits[:-1], token_ids[1:])[-3:].sum())


def test_examples_that_do_not_fit_are_left_out(tiny: Path) -> None:
    asked, example = question(), question(2)
    with LLM(tiny, LoadOptions(context_size=512)) as llm:
        length = len(llm.loaded.tokenizer.encode(completion_prompt(asked, ())))
    with LLM(tiny, LoadOptions(context_size=length + 8)) as llm:
        chooser = LocalChooser(llm, ChooseBy.LOGPROB, 0)
        alone = chooser.choose(asked, ())
        assert chooser.choose(asked, [example] * 5) == alone
    with LLM(tiny, LoadOptions(context_size=length - 8)) as llm:
        chooser = LocalChooser(llm, ChooseBy.LOGPROB, 0)
        with pytest.raises(ContextLengthError):
            chooser.choose(asked, [example])


def test_a_stopped_test_goes_on_where_it_was(tmp_path: Path) -> None:
    test = ChoiceTest(tuple(question(number) for number in range(5)))
    path = tmp_path / "answers.jsonl"
    first = Parrot(interrupt_at=2)
    with pytest.raises(KeyboardInterrupt):
        answer_all(test, first, Journal(path, CIRCUMSTANCES))
    second = Parrot()
    journal = Journal(path, CIRCUMSTANCES)
    answer_all(test, second, journal)
    assert (first.asked, second.asked) == (["0", "1"], ["2", "3", "4"])
    assert score_answers(test, journal.answers).total == Score(5, 5)


def test_a_question_that_was_changed_is_asked_again(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "answers.jsonl", CIRCUMSTANCES)
    answer_all(ChoiceTest((question(answer="B"),)), Parrot(), journal)
    changed = ChoiceTest((question(answer="C"),))
    again = Parrot()
    answer_all(changed, again, journal)
    assert again.asked == ["1"]
    assert score_answers(changed, journal.answers).total == Score(0, 1)


@pytest.mark.parametrize("cut", [1, 20, 10_000])
def test_a_last_line_that_was_cut_off_costs_one_question(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "answers.jsonl"
    test = ChoiceTest((question(1), question(2), question(3)))
    answer_all(test, Parrot(), Journal(path, CIRCUMSTANCES))
    *lines, last = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines) + last[: max(0, len(last) - 1 - cut)])
    again = Parrot()
    answer_all(test, again, Journal(path, CIRCUMSTANCES))
    assert again.asked == ["3"]
    assert len([json.loads(line) for line in path.read_text().splitlines()]) == 4


def test_answers_from_elsewhere_are_not_mixed_in(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    answer_all(ChoiceTest((question(),)), Parrot(), Journal(path, CIRCUMSTANCES))
    before = path.read_bytes()
    other = Circumstances("mmlu", "another", "", "logprob", 0, 0)
    with pytest.raises(UsageError, match="another model \\('tiny', not 'another'\\)"):
        Journal(path, other)
    assert path.read_bytes() == before


@pytest.mark.parametrize("content", [b"GGUF\0\1", b"{}\n", b"[]\n{}\n"])
def test_a_file_that_is_no_journal_is_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="does not hold answers of a test"):
        Journal(path, CIRCUMSTANCES)
    assert path.read_bytes() == content


def test_a_damaged_line_within_is_told(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    answer_all(ChoiceTest((question(1), question(2))), Parrot(), Journal(path, CIRCUMSTANCES))
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], "{", lines[2], ""]))
    with pytest.raises(ConfigError, match="line 2 is damaged"):
        Journal(path, CIRCUMSTANCES)


def test_images_are_tried_once_and_counted(tmp_path: Path) -> None:
    blind = [question(number, images=["a.png"]) for number in (2, 3, 4)]
    test = ChoiceTest((question(1), *blind, question(5)))
    parrot = Parrot()
    journal = Journal(tmp_path / "answers.jsonl", CIRCUMSTANCES)
    skipped = answer_all(test, parrot, journal)
    assert (skipped.count, skipped.reason) == (3, "it is blind")
    assert parrot.asked == ["1", "5"]
    assert score_answers(test, journal.answers).total == Score(2, 2)


@pytest.mark.parametrize(
    ("right", "count", "low", "high"),
    [  # Newcombe, Statistics in Medicine 17 (1998), table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_intervals_are_wilsons(right: int, count: int, low: float, high: float) -> None:
    assert Score(right, count).interval == pytest.approx((low, high), abs=6e-5)


def test_subjects_count_alike_in_the_mean(tmp_path: Path) -> None:
    a = [Question("a", str(n), "?", ("x", "y"), "B") for n in range(3)]
    b = [Question("b", "0", "?", ("x", "y"), "A")]
    journal = Journal(tmp_path / "answers.jsonl", CIRCUMSTANCES)
    test = ChoiceTest((*a, *b))
    answer_all(test, Parrot(), journal)
    scores = score_answers(test, journal.answers)
    assert scores.total.accuracy == 0.75
    assert scores.mean_accuracy == 0.5


def test_the_bundled_sample_of_mmlu() -> None:
    test = read_mmlu(SAMPLES / "mmlu", num_questions=4, num_examples=2)
    assert list(test.examples) == ["astronomy", "geography", "kitchen_chemistry"]
    assert [len(examples) for examples in test.examples.values()] == [2, 2, 2]
    assert len(test.questions) == 12
    assert test.questions[0].options == ("Jupiter", "Mars", "Venus", "Mercury")
    assert test.questions[0].answer == "A"
    every = read_mmlu(SAMPLES / "mmlu")
    assert len(every.questions) == 18 and len({each.key for each in every.questions}) == 18


def test_the_bundled_sample_of_mmmu() -> None:
    test = read_mmmu(SAMPLES / "mmmu")
    assert [each.subject for each in test.questions] == ["charts"] * 2 + ["shapes"] * 3
    assert test.num_open == 1
    for each in test.questions:
        assert all(image.is_file() for image in each.images)
        assert each.answer in each.letters


def test_options_as_mmmu_has_them(tmp_path: Path) -> None:
    line = {"question": "?", "options": "['it\\'s', \"two\"]", "answer": "B"}
    (tmp_path / "Art.jsonl").write_text(json.dumps(line))
    (only,) = read_mmmu(tmp_path).questions
    assert only.options == ("it's", "two")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("What?,a,b,c,A", "it has 5 fields instead of 6"),
        ("What?,a,b,c,d,E", "its answer is 'E', not one of ABCD"),
        ("What?,a,b,c,d,", "its answer is ''"),
        ('"What?,a,b,c,d,A', "unexpected end of data"),
        ("\udcff,a,b,c,d,A", "can't decode"),
    ],
)
def test_a_damaged_row_is_told_with_its_number(tmp_path: Path, row: str, reason: str) -> None:
    (tmp_path / "test").mkdir()
    text = f"Fine?,a,b,c,d,B\n{row}\n"
    (tmp_path / "test" / "law_test.csv").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ConfigError, match=r"law_test\.csv: question") as caught:
        read_mmlu(tmp_path)
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "truncated"),
        ('{"question": "?"}', "answer"),
        ('{"question": "?", "options": ["a"], "answer": "B"}', "its answer is 'B'"),
        ('{"question": "?", "options": "os.exit()", "answer": "A"}', "malformed"),
        ('{"question": "?", "options": "(", "answer": "A"}', "never closed"),
        ('{"question": "?", "options": "[1]", "answer": "A"}', "not a list of texts"),
        (json.dumps({"question": "?", "options": ["x"] * 11, "answer": "A"}), "11 options"),
    ],
)
def test_a_damaged_line_of_mmmu_is_told(tmp_path: Path, line: str, reason: str) -> None:
    (tmp_path / "Art.jsonl").write_text(line)
    with pytest.raises(ConfigError, match="line 1 is damaged") as caught:
        read_mmmu(tmp_path)
    assert reason in str(caught.value)


def test_what_is_missing_is_told_with_where_to_get_it(tmp_path: Path) -> None:
    for read, place in ((read_mmlu, "eecs.berkeley.edu/~hendrycks"), (read_mmmu, "MMMU/MMMU")):
        with pytest.raises(PowerServeError, match="--dataset") as caught:
            read(tmp_path)
        assert place in str(caught.value)
    with pytest.raises(UsageError, match=r"there is no subject 'law' in .*; there are astronomy,"):
        read_mmlu(SAMPLES / "mmlu", subjects=["law"])
    with pytest.raises(UsageError, match="only 2 examples for astronomy"):
        read_mmlu(SAMPLES / "mmlu", num_examples=5)
