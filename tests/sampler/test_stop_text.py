"""Stop strings in streamed text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from powerserve.sampler import StopMatcher

# Two letters make overlaps, prefixes of each other and near misses frequent.
texts = st.text("ab", max_size=30)
stops = st.lists(st.text("ab", min_size=1, max_size=5), max_size=3)


def stopped_naively(text: str, stop: list[str]) -> tuple[str, bool]:
    """Read character by character until some stop string has just been completed."""
    for end in range(len(text) + 1):
        endings = [len(s) for s in stop if text[:end].endswith(s)]
        if endings:
            return text[: end - max(endings)], True
    return text, False


def stream(matcher: StopMatcher, pieces: list[str]) -> tuple[str, bool]:
    shown, matched = "", False
    for piece in pieces:
        text, matched = matcher.feed(piece)
        shown += text
    return shown + matcher.finish(), matched


@given(pieces=st.lists(texts, max_size=8), stop=stops)
def test_any_pieces_give_what_the_whole_text_gives(pieces: list[str], stop: list[str]) -> None:
    assert stream(StopMatcher(stop), pieces) == stopped_naively("".join(pieces), stop)


@given(pieces=st.lists(texts, max_size=8), stop=stops)
def test_only_a_possible_beginning_is_held_back(pieces: list[str], stop: list[str]) -> None:
    matcher = StopMatcher(stop)
    seen = shown = ""
    for piece in pieces:
        text, matched = matcher.feed(piece)
        if matched:
            return
        seen += piece
        shown += text
        held = seen[len(shown) :]
        assert seen == shown + held
        assert not held or any(s.startswith(held) and s != held for s in stop)


@pytest.mark.parametrize("stop", [[], ["never"]])
def test_other_text_passes_at_once(stop: list[str]) -> None:
    matcher = StopMatcher(stop)
    assert matcher.feed("some text") == ("some text", False)
    assert matcher.finish() == ""


def test_the_rest_of_the_text_is_dropped() -> None:
    matcher = StopMatcher(["</s>", "\nUser:"])
    assert matcher.feed("Hi.\nUs") == ("Hi.", False)
    assert matcher.feed("er: me") == ("", True)
    assert matcher.feed("more") == ("", True)
    assert matcher.finish() == ""


def test_a_false_alarm_is_shown_in_the_end() -> None:
    matcher = StopMatcher(["abcd"])
    assert matcher.feed("xab") == ("x", False)
    assert matcher.feed("ab") == ("ab", False)
    assert matcher.finish() == "ab"


def test_the_stop_string_completed_first_wins() -> None:
    assert stream(StopMatcher(["abcd", "c"]), ["abcd"]) == ("ab", True)


def test_of_two_completed_at_once_the_longer_wins() -> None:
    matcher = StopMatcher(["c", "abc"])
    assert matcher.matched is None
    assert stream(matcher, ["xa", "bc"]) == ("x", True)
    assert matcher.matched == "abc"
