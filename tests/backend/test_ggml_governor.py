"""The thread governor backs off when others use the cores, and comes back."""

from __future__ import annotations

from powerserve.backend.ggml.governor import MAX_RETRY_S, MIN_RETRY_S, ThreadGovernor


def compute(governor: ThreadGovernor, seconds: float, free_cpus: float) -> list[int]:
    """Run steps of 10 ms on a machine with `free_cpus`; the thread counts that were used."""
    used = []
    for _ in range(round(seconds / 0.01)):
        used.append(governor.num_threads)
        governor.observe(0.01, 0.01 * min(governor.num_threads, free_cpus))
    return used


def test_an_idle_machine_keeps_all_threads() -> None:
    assert set(compute(ThreadGovernor(4), 5, free_cpus=4)) == {4}


def test_a_busy_core_costs_one_thread() -> None:
    governor = ThreadGovernor(2)
    compute(governor, 0.2, free_cpus=4 / 3)  # three threads share two cores
    assert governor.num_threads == 1


def test_whoever_reads_the_answer_costs_no_thread() -> None:
    assert set(compute(ThreadGovernor(2), 5, free_cpus=1.55)) == {2}


def test_threads_return_when_the_machine_is_free_again() -> None:
    governor = ThreadGovernor(4)
    compute(governor, 1, free_cpus=2)
    assert governor.num_threads == 2
    compute(governor, 3 * MIN_RETRY_S + 1, free_cpus=4)
    assert governor.num_threads == 4


def test_failing_retries_become_rare() -> None:
    governor = ThreadGovernor(2)
    used = compute(governor, 100, free_cpus=1.4)
    assert used.count(2) < 0.02 * len(used)
    retry = compute(governor, MAX_RETRY_S + 1, free_cpus=1.4)
    assert 2 in retry  # but they never end


def test_one_thread_is_never_taken_away() -> None:
    governor = ThreadGovernor(1)
    assert set(compute(governor, 2, free_cpus=0.3)) == {1}
