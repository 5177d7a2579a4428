"""What clients see of speculation: the same answers, and counts of what was guessed."""

from __future__ import annotations

from pathlib import Path

from server_process import serving

REQUEST = {"prompt": "1 2 3 4 5 1 2 3 4 5 1 2 3 4", "max_tokens": 24, "temperature": 0}


def test_guesses_are_counted_and_the_answer_is_the_same(smollm2: Path) -> None:
    flags = ("-m", smollm2, "-c", "512")
    with serving(*flags, "--spec", "off") as plain, plain.client() as http:
        expected = http.post("/v1/completions", json=REQUEST).json()
    with serving(*flags, "--spec", "suffix") as server, server.client() as http:
        reply = http.post("/v1/completions", json=REQUEST).json()
        cut = http.post("/v1/completions", json=REQUEST | {"stop": " 3"}).json()
        metrics = http.get("/metrics").text
    assert "draft_n" not in expected["timings"]
    assert reply["choices"] == expected["choices"] and reply["usage"] == expected["usage"]
    timings = reply["timings"]
    assert timings["draft_n"] >= timings["draft_n_accepted"] > 5
    assert (cut["choices"][0]["text"], cut["choices"][0]["finish_reason"]) == (" 5 1 2", "stop")
    assert cut["usage"]["completion_tokens"] < 10  # not what the same step made behind it
    assert "powerserve:draft_tokens_accepted_total" in metrics
