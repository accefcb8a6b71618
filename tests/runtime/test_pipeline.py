"""What an author can count on: each record once, a block that is left as told, an end that is seen."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from penstock import runtime

from .program import ENDLESS, Program

Run = Callable[..., Program]


def is_sum(state: dict[str, int]) -> bool:
    return state["sum"] == state["next"] * (state["next"] - 1) // 2


def await_records(program: Program, *, more_than: int) -> None:
    program.until(lambda: program.records() > more_than)


def test_killed_at_any_moment_each_record_counts_once(run: Run) -> None:
    chance, reached = random.Random(0), 0
    often = ENDLESS.replace("checkpoint_seconds=None", "checkpoint_seconds=0.01")
    for _ in range(8 * int(os.environ.get("PENSTOCK_TEST_SCALE", "1"))):
        program = run(often, PENSTOCK_INITIAL="paused")
        program.until_status("Paused")
        assert program.records() == reached
        program.ask("/start")
        await_records(program, more_than=reached)
        time.sleep(chance.uniform(0, 0.05))
        program.kill()
        state = program.state()
        assert is_sum(state)
        assert state["next"] >= reached
        reached = state["next"]
    assert reached > 50


def test_periodic_checkpoints_are_only_taken_when_something_was_done(run: Run) -> None:
    program = run(ENDLESS.replace("checkpoint_seconds=None", "checkpoint_seconds=0.05, keep_checkpoints=2"))
    program.until(lambda: len(program.checkpoints()) == 2)
    program.ask("/pause")
    program.until(lambda: program.checkpoints()[-1]["processed_records"] == program.records())
    newest = program.checkpoints()
    time.sleep(0.3)  # six times as long as the interval
    assert program.checkpoints() == newest


@pytest.mark.parametrize(
    ("change", "warned"), [('state = {"n": n}', True), ('state["n"] = n', False)], ids=["another object", "in place"]
)
def test_a_state_that_is_replaced_instead_of_changed_is_noticed(run: Run, change: str, warned: bool) -> None:
    code = f"""
import itertools, sys, time
from penstock import runtime
with runtime.serve(checkpoint_seconds=0.05) as pipeline:
    state = pipeline.restore({{"n": -1}})
    for n in pipeline.each(itertools.count()):
        {change}
        time.sleep(0.001)
"""
    for _ in range(2):
        program = run(code)
        program.until(lambda program=program: len(program.checkpoints()) >= 2 and program.records() > 10)
        program.signal(signal.SIGTERM)
        assert program.wait() == 143
        assert program.log.count("change it in place") == int(warned), program.log


def test_the_user_says_how_often(run: Run) -> None:
    program = run(ENDLESS)
    config = program.storage / "config.json"
    config.write_text('{"fault_tolerance": {"model": "exactly_once", "checkpoint_interval_secs": 0.05}, "x": 1}')
    program.kill()
    program = run(ENDLESS, PENSTOCK_CONFIG_FILE=str(config))
    program.until(lambda: len(program.checkpoints()) > 1)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_takes_a_last_checkpoint_and_ends(run: Run, number: int, code: int) -> None:
    program = run(ENDLESS)
    program.until(lambda: program.records() > 10)
    program.signal(number)
    assert program.wait() == code
    state = program.state()
    assert state["next"] > 10
    assert is_sum(state)
    assert "Traceback" not in program.log


WAITS = """
    import signal, time
    from penstock import runtime

    def source():
        try:
            yield 1
            while True:
                time.sleep(3600)
        finally:
            print("source closed", flush=True)

    with runtime.serve() as pipeline:
        state = pipeline.restore({"n": 0})
        for record in pipeline.each(source()):
            state["n"] += record
"""


@pytest.mark.parametrize("how", ["suspend", "signal"])
def test_a_source_that_says_nothing_delays_nothing(run: Run, how: str) -> None:
    program = run(WAITS)
    program.until(lambda: program.records() == 1)
    program.take_checkpoint()
    assert program.state() == {"n": 1}
    began = time.monotonic()
    program.ask("/pause")
    assert program.status() == ("Paused", "Paused")
    program.ask("/start")
    if how == "suspend":
        program.ask("/suspend", "POST")
        program.until_status("Suspended", "Suspended")
    else:
        program.signal(signal.SIGTERM)
        assert program.wait() == 143
    assert time.monotonic() - began < 4  # and not after the time that code which does not leave is given
    assert "source closed" in program.log


def test_code_that_does_not_leave_cannot_keep_it(run: Run) -> None:
    """Only the main thread hears a signal; the others cannot be got out of what they wait in."""
    text = """
    import threading, time
    from penstock import runtime

    def drive():
        with runtime.serve() as pipeline:
            pipeline.restore(None)
            for record in pipeline.each(iter(lambda: time.sleep(3600), 0)):
                pass

    thread = threading.Thread(target=drive)
    thread.start()
    thread.join()
    """
    program = run(text)
    program.until_status("Running")
    program.ask("/suspend", "POST")
    program.until_status("Suspended", "Suspended")


def test_the_second_signal_ends_it_at_once(run: Run) -> None:
    text = """
    import time
    from penstock import runtime

    with runtime.serve() as pipeline:
        pipeline.restore(None)
        pipeline.step()
        time.sleep(3600)
    """
    program = run(text)
    program.until_status("Running")
    program.signal(signal.SIGTERM)
    program.until(lambda: "last checkpoint" in program.log)
    assert program.process.poll() is None
    program.signal(signal.SIGTERM)
    assert program.wait() == -signal.SIGTERM


def test_an_exception_is_told_and_keeps_no_half_done_state(run: Run) -> None:
    text = """
    from penstock import runtime

    with runtime.serve() as pipeline:
        state = pipeline.restore({"n": 0})
        for record in pipeline.each(range(10)):
            state["n"] += 1
            if state["n"] == 2:
                pipeline.checkpoint()
            if state["n"] == 5:
                raise KeyError("broken")
    """
    program = run(text)
    code, body = program.until(lambda: (answer := program.ask("/status"))[0] == 500 and answer)
    assert (code, body["error_code"]) == (500, "RuntimeError.WorkerPanic")
    assert "KeyError" in body["message"]
    assert body["details"]["exception"] == "KeyError"
    assert 'raise KeyError("broken")' in body["details"]["traceback"]
    assert 'raise KeyError("broken")' in program.log
    assert program.ask("/suspend", "POST") == (500, body)
    assert program.state() == {"n": 2}
    program.signal(signal.SIGTERM)
    assert program.wait() == 1


def test_a_failure_before_the_loop_is_one_of_initialization(run: Run) -> None:
    text = """
    from penstock import runtime

    with runtime.serve() as pipeline:
        pipeline.restore({}, version="1", decode=len)
        raise SystemExit("no such topic")
    """
    program = run(text)
    code, body = program.until(lambda: (answer := program.ask("/status"))[0] == 500 and answer)
    assert (code, body["error_code"]) == (500, "InitializationError")
    assert "no such topic" in body["message"]


def test_a_loop_that_ends_is_done(run: Run) -> None:
    text = """
    from penstock import runtime

    with runtime.serve() as pipeline:
        state = pipeline.restore({"n": 0})
        for record in pipeline.each(range(10)):
            state["n"] += record
    print("after the block", flush=True)
    """
    program = run(text)
    program.until_status("Suspended", "Suspended")
    assert program.state() == {"n": 45}
    assert program.ask("/stats")[1]["global_metrics"]["pipeline_complete"] is True
    assert program.ask("/suspend", "POST")[0] == 202
    assert "after the block" not in program.log

    rival = run(text, PENSTOCK_PORT_FILE=None)
    assert rival.wait() == 1
    assert "InUse" in rival.log
    program.kill()

    by_hand = run(text, PENSTOCK_PORT_FILE=None)
    assert by_hand.wait() == 0
    assert "after the block" in by_hand.log


def test_one_that_stays_is_running_and_complete(run: Run) -> None:
    text = """
    from penstock import runtime

    with runtime.serve() as pipeline:
        state = pipeline.restore({"n": 0})
        for record in pipeline.each([5, 7], weigh=lambda record: record):
            state["n"] += record
        pipeline.stay()
    """
    program = run(text)
    program.until(lambda: program.ask("/stats")[1]["global_metrics"]["pipeline_complete"])
    assert program.records() == 12
    program.until_status("Running", "Running")
    program.ask("/suspend", "POST")
    program.until_status("Suspended", "Suspended")
    assert program.state() == {"n": 12}


def test_it_works_in_a_coroutine(run: Run) -> None:
    text = """
    import asyncio
    from penstock import runtime

    async def main(pipeline, state):
        queue = asyncio.Queue()
        async def fill():
            for number in range(100):
                await queue.put(number)
                await asyncio.sleep(0.001)
        async def work():
            while True:
                async with pipeline.waiting():
                    number = await queue.get()
                state["sum"] += number
                state["n"] += 1
                pipeline.records.add()
                await pipeline.astep()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(fill())
            tasks.create_task(work())

    with runtime.serve() as pipeline:
        state = pipeline.restore({"n": 0, "sum": 0})
        try:
            asyncio.run(main(pipeline, state))
        finally:
            print("loop closed", flush=True)
    """
    program = run(text)
    program.until(lambda: program.records() > 20)
    program.ask("/pause")
    program.until_status("Paused", "Paused")
    program.ask("/start")
    program.until(lambda: program.records() == 100)
    program.take_checkpoint()
    assert program.state() == {"n": 100, "sum": 4950}
    began = time.monotonic()
    program.ask("/suspend", "POST")
    program.until_status("Suspended", "Suspended")
    assert time.monotonic() - began < 4
    assert "loop closed" in program.log
    assert "Traceback" not in program.log


def open_files(pid: int) -> list[str]:
    found: list[str] = []
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            found.append(os.readlink(path))
    return found


def test_children_of_a_fork_are_no_pipelines(run: Run) -> None:
    text = """
    import os, sys, time
    from penstock import runtime

    with runtime.serve() as pipeline:
        pipeline.restore(None)
        child = os.fork()
        if child == 0:
            time.sleep(3600)
        print(f"<{child}>", flush=True)
        pipeline.step()
        os.waitpid(child, 0)
        print("child ended", flush=True)
        pipeline.stay()
    """
    program = run(text)
    child = int(program.until(lambda: ">" in program.log and program.log.partition("<")[2].partition(">")[0]))
    program.until(lambda: not any("socket" in where for where in open_files(child)))
    os.kill(child, signal.SIGTERM)
    program.until(lambda: "child ended" in program.log)
    program.until_status("Running", "Running")


def test_a_state_of_any_kind_with_its_own_encoding(run: Run) -> None:
    text = """
    import pickle
    from collections import Counter
    from penstock import runtime

    with runtime.serve() as pipeline:
        counts = pipeline.restore(Counter(), encode=pickle.dumps, decode=pickle.loads)
        for word in pipeline.each("a b a".split()):
            counts[word] += 1
        print(counts, flush=True)
    """
    program = run(text)
    program.until_status("Suspended")
    program.kill()
    program = run(text)
    program.until_status("Suspended")
    assert "Counter({'a': 4, 'b': 2})" in program.log


@pytest.mark.parametrize("default", ["{1: 2}", "{'a': (1, 2)}", "__import__('collections').Counter()", "b'bytes'"])
def test_a_state_that_json_would_change_is_refused_at_once(run: Run, default: str) -> None:
    text = f"""
    from penstock import runtime

    with runtime.serve() as pipeline:
        pipeline.restore({default})
    """
    program = run(text)
    code, body = program.until(lambda: (answer := program.ask("/status"))[0] == 500 and answer)
    assert (code, body["details"]["exception"]) == (500, "TypeError")
    assert "JSON would not give back" in body["message"]


def test_a_checkpoint_that_was_asked_for_is_on_disk_when_it_returns(run: Run) -> None:
    text = """
    import glob, os
    from penstock import runtime

    with runtime.serve() as pipeline:
        state = pipeline.restore({"n": 0})
        for record in pipeline.each(range(3)):
            state["n"] += 1
            pipeline.checkpoint()
            print(len(glob.glob(pipeline.storage_dir + "/checkpoints/*.checkpoint")), flush=True)
    """
    program = run(text)
    program.until_status("Suspended")
    assert program.log.split()[:3] == ["1", "2", "3"]


def test_own_metrics_are_shown(run: Run) -> None:
    text = """
    from penstock import runtime

    with runtime.serve() as pipeline:
        pipeline.restore(None)
        rejected = pipeline.counter("rejected", "Records that were refused.")
        rejected.add(2, reason="too old")
        rejected.add(reason="no key")
        pipeline.gauge("lag_seconds", "How far behind.").set(1.5)
        pipeline.gauge("lag_seconds", "How far behind.").set(2.5)
        for wrong in (lambda: rejected.add(-1), lambda: pipeline.gauge("rejected_total", ""),
                      lambda: pipeline.counter("no-name", "")):
            try:
                wrong()
            except ValueError:
                pipeline.errors.add()
        pipeline.stay()
    """
    program = run(text)
    program.until_status("Running")
    metrics = program.ask("/metrics")[1]
    whose = 'pipeline="id-1",pipeline_name="na\\"me"'
    assert f'# TYPE rejected_total counter\nrejected_total{{{whose},reason="too old"}} 2\n' in metrics
    assert 'reason="no key"} 1\n' in metrics
    assert "# HELP lag_seconds How far behind.\n# TYPE lag_seconds gauge\nlag_seconds{" in metrics
    assert program.ask("/status")[1]["runtime_status_details"] == {"connector_stats": {"num_errors": 3}}


def test_without_a_daemon_that_asks_it_ends_by_itself(run: Run) -> None:
    """As one of contract `process` does: nobody asks, and its end is what tells that it is done."""
    text = """
    from penstock import runtime
    from penstock.runtime import pipeline as module

    module.UNASKED_SECONDS = 0.2
    with runtime.serve() as pipeline:
        pipeline.restore(None)
    """
    program = run(text)
    assert program.wait() == 0


def test_whatever_it_is_told_meanwhile_no_checkpoint_holds_half_a_record(run: Run) -> None:
    text = """
    import itertools
    from penstock import runtime

    with runtime.serve(checkpoint_seconds=0.001, keep_checkpoints=50) as pipeline:
        state = pipeline.restore({"next": 0, "sum": 0})
        for number in pipeline.each(itertools.count(state["next"])):
            state["next"] += 1
            for _ in range(20):
                pass
            state["sum"] += number
    """
    program = run(text)
    chance = random.Random(1)
    program.until_status("Running", "Running")
    for _ in range(60):
        path, method = chance.choice([("/pause", "GET"), ("/start", "GET"), ("/checkpoint", "POST")])
        code, _ = program.ask(path, method)
        assert code in (200, 202)
        status = program.status()
        assert status in {("Running", "Running"), ("Paused", "Paused")}
    program.ask("/suspend", "POST")
    program.until_status("Suspended", "Suspended")
    states = [json.loads(path.read_bytes().split(b"\n", 2)[2]) for path in checkpoint_files(program)]
    assert len(states) > 10
    assert all(is_sum(state) for state in states)
    assert states[-1]["next"] == program.records()


def test_the_loop_is_held_as_long_as_its_state_is_captured(run: Run) -> None:
    text = """
    import itertools, json, time
    from penstock import runtime

    def slowly(state):
        total = state["sum"]
        time.sleep(0.05)
        return json.dumps({"next": state["next"], "sum": total}).encode()

    def source():
        for number in itertools.count():
            time.sleep(0.002)  # at rest: it is captured here, and not held by a request to come to rest
            yield number

    with runtime.serve() as pipeline:
        state = pipeline.restore({"next": 0, "sum": 0}, encode=slowly, decode=json.loads)
        for number in pipeline.each(source()):
            state["next"] += 1
            state["sum"] += number
    """
    program = run(text)
    program.until(lambda: program.records() > 10)
    for _ in range(5):
        program.take_checkpoint()
        assert is_sum(program.state())


@pytest.mark.parametrize("arguments", ["encode=repr", "decode=lambda data: 1 // 0"])
def test_a_state_that_could_not_be_read_again_is_refused_at_once(run: Run, arguments: str) -> None:
    text = f"""
    from penstock import runtime

    with runtime.serve() as pipeline:
        pipeline.restore({{}}, {arguments})
    """
    program = run(text)
    code, body = program.until(lambda: (answer := program.ask("/status"))[0] == 500 and answer)
    assert (code, body["error_code"]) == (500, "InitializationError")


def test_the_ten_lines_of_the_documentation_work(run: Run, tmp_path: Path) -> None:
    documented = runtime.__doc__ or ""
    code = documented[documented.index("    import") : documented.index("Give the pipeline")].rstrip()
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    numbers = tmp_path / "numbers.txt"
    for total in (10, 25):
        numbers.write_text("".join(f"{number}\n" for number in range(total)))
        program = run(code.replace("numbers.txt", str(numbers)))
        program.until_status("Suspended")
        assert program.state() == {"line": total, "sum": total * (total - 1) // 2}
        program.kill()


def checkpoint_files(program: Program) -> list[Path]:
    return sorted((program.storage / "checkpoints").glob("*.checkpoint"))
