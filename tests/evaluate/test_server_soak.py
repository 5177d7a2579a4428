"""What a soak test finds wrong, shown with answers and states that are."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from powerserve.core.errors import UsageError
from powerserve.evaluate.server_soak.asking import ANSWERED, REFUSED, judge
from powerserve.evaluate.server_soak.families import FAMILIES, Family, Wish, WrongAnswer
from powerserve.evaluate.server_soak.http_client import Reply
from powerserve.evaluate.server_soak.malformed import malformed
from powerserve.evaluate.server_soak.plan import SoakPlan
from powerserve.evaluate.server_soak.process import Footprint, ServerProcess
from powerserve.evaluate.server_soak.questions import Form, questions, schema_of
from powerserve.evaluate.server_soak.report import as_data, findings
from powerserve.evaluate.server_soak.run import Problem, SoakResult
from powerserve.evaluate.server_soak.setting import Setting
from powerserve.evaluate.server_soak.state import ServerState
from powerserve.evaluate.server_soak.truths import ModelTruths, Truth

QUESTION = questions()[0]
CHAT: Family = FAMILIES[0]
REST = ServerState(Footprint(300 << 20, 8, 10), 0, 500, 500, 5)


@pytest.fixture
def plan(tmp_path: Path) -> SoakPlan:
    for name in ("first", "second"):
        (tmp_path / f"{name}.gguf").touch()
    return SoakPlan(tmp_path, 60)


@pytest.fixture
def setting(plan: SoakPlan) -> Setting:
    truths = ModelTruths({QUESTION: Truth(12, " Paris")}, {}, {})
    server: ServerProcess = object.__new__(ServerProcess)  # nobody talks to it
    return Setting(server, plan, [QUESTION], {"first": truths}, "first")


def reply(text: str, num_prompt: int = 12, num_generated: int = 3, status: int = 200) -> Reply:
    choice = {"index": 0, "message": {"content": text}}
    usage = {"prompt_tokens": num_prompt, "completion_tokens": num_generated}
    body = {"choices": [choice], "usage": usage}
    return Reply(status, {}, msgspec.json.encode(body))


PLAIN = Wish(QUESTION, "first")
MARKED = Wish(QUESTION, "first", Form.REGEX, "m1234567", max_tokens=64)


@pytest.mark.parametrize(
    ("wish", "right"),
    [(PLAIN, " Paris."), (PLAIN, " Par"), (MARKED, "m1234567"), (MARKED, '{"mark":"m1234567"}')],
)
def test_right_answers(setting: Setting, wish: Wish, right: str) -> None:
    assert judge(setting, CHAT, wish, reply(right)) == ANSWERED


@pytest.mark.parametrize(
    ("wish", "wrong", "words"),
    [
        (PLAIN, reply(" Rome."), "Rome"),
        (PLAIN, reply(" Paris", num_prompt=13), "tokens of the prompt: 13"),
        (PLAIN, reply(" Paris", num_generated=17), "17 tokens"),
        (PLAIN, reply("", status=500), "status 500"),
        (PLAIN, reply("", status=503), "status 503"),  # does not say when to come again
        (PLAIN, reply("", status=404), "status 404"),
        (PLAIN, Reply(200, {}, b"{"), "unreadable"),
        (MARKED, reply("m7654321"), "mark"),
        (MARKED, reply('{"mark": "m7654321"}'), "mark"),
        (MARKED, reply('{\t\t"m7654321', num_generated=64), "marks"),
        (replace(PLAIN, extra={"n": 2}, temperature=1.0), reply(" Paris"), "choices"),
        (replace(PLAIN, extra={"stop": ["a"]}, temperature=1.0), reply("a"), "stop string"),
        (replace(PLAIN, is_stream=True), Reply(200, {}, b'data: {"choices": []}\n\n'), "no end"),
        (replace(PLAIN, is_stream=True), Reply(200, {}, b'data: {"error": "x"}'), "error in the"),
    ],
)
def test_wrong_answers(setting: Setting, wish: Wish, wrong: Reply, words: str) -> None:
    with pytest.raises(WrongAnswer, match=words):
        judge(setting, CHAT, wish, wrong)


def test_a_server_may_have_no_room(setting: Setting) -> None:
    for status in (503, 529):
        assert judge(setting, CHAT, PLAIN, Reply(status, {"retry-after": "5"}, b"")) == REFUSED


def test_a_good_run(plan: SoakPlan) -> None:
    samples = [(float(second), REST.footprint) for second in range(10)]
    result = SoakResult(plan, samples=samples, before=REST, after=REST, exit_status=0)
    assert findings(result) == []
    assert json.loads(json.dumps(as_data(result)))["models"] == ["first", "second"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"problems": [Problem(1.0, "ask", "x")], "num_problems": 1}, "1 requests went wrong"),
        ({"exit_status": 1}, "status 1"),
        ({"log": "Traceback (most recent call last)"}, "traceback"),
        ({"after": None}, "no end"),
        ({"after": replace(REST, num_requests=2)}, "2 requests still run"),
        ({"after": replace(REST, num_cells_taken=507)}, "7 cells of the cache are lost"),
        ({"after": replace(REST, num_tasks=6)}, "1 tasks are left over"),
        ({"after": replace(REST, footprint=Footprint(900 << 20, 8, 10))}, "memory has grown"),
        ({"after": replace(REST, footprint=Footprint(300 << 20, 30, 10))}, "22 threads"),
        ({"after": replace(REST, footprint=Footprint(300 << 20, 8, 20))}, "10 files"),
    ],
)
def test_bad_runs(plan: SoakPlan, changes: dict[str, Any], words: str) -> None:
    samples = [(float(second), REST.footprint) for second in range(10)]
    result = SoakResult(plan, samples=samples, before=REST, after=REST, exit_status=0)
    (found,) = findings(replace(result, **changes))
    assert words in found


def test_memory_may_grow_until_caches_are_full(plan: SoakPlan) -> None:
    grown = replace(REST, footprint=Footprint(500 << 20, 8, 10))
    for step_s, num_found in ((1.0, 0), (100.0, 1)):
        samples = [(step_s * index, REST.footprint) for index in range(10)]
        result = SoakResult(plan, samples=samples, before=REST, after=grown, exit_status=0)
        assert len(findings(result)) == num_found


def test_malformed_bodies_are_the_same_for_the_same_seed() -> None:
    body = CHAT.body(MARKED)
    bodies = [malformed(body, random.Random(seed)) for seed in range(300)]
    assert bodies == [malformed(body, random.Random(seed)) for seed in range(300)]
    assert body == CHAT.body(MARKED)  # untouched
    assert len(set(bodies)) > 200
    assert sum(is_json(each) for each in bodies) in range(30, 270)


def is_json(body: bytes) -> bool:
    try:
        msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return True


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_every_family_asks_for_the_mark_in_every_form(family: Family) -> None:
    for form in family.forms:
        body = json.dumps(family.body(replace(MARKED, form=form)))
        assert ("m1234567" in body) is (form is not Form.PLAIN)
    assert json.dumps(schema_of("m1234567")).count("m1234567") == 1


def test_one_model_is_not_enough(tmp_path: Path) -> None:
    (tmp_path / "only.gguf").touch()
    with pytest.raises(UsageError, match="two models"):
        SoakPlan(tmp_path, 60)
