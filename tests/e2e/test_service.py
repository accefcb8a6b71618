"""The daemon's manners as a service: signals, reload, refusals, and what it costs when nothing happens."""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from .daemon import Daemon, alive

SLEEPER = "import time\nwhile True: time.sleep(60)\n"


def test_on_exit_stop_takes_the_pipelines_along(make_daemon: Callable[..., Daemon]) -> None:
    daemon = make_daemon(config='[runner]\non_exit = "stop"\n')
    daemon.start()
    daemon.create("p", SLEEPER)
    daemon.start_pipeline("p")
    pid = daemon.process("p")
    assert daemon.terminate() == 0
    assert not alive(pid)
    assert daemon.processes() == []
    daemon.start()
    assert daemon.pipeline("p")["deployment_status"] == "Stopped"


def test_sighup_applies_what_it_can_and_touches_nothing(make_daemon: Callable[..., Daemon]) -> None:
    daemon = make_daemon(config="[runner]\nstop_grace_seconds = 30\n")
    daemon.start()
    daemon.create("p", "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + SLEEPER)
    daemon.start_pipeline("p")
    pid, events = daemon.process("p"), daemon.events("p")
    daemon.config.write_text(daemon.config.read_text().replace("= 30", "= 0.2"))
    daemon.signal(signal.SIGHUP)
    daemon.await_ready()
    assert daemon.process("p") == pid
    assert daemon.events("p") == events
    began = time.monotonic()
    daemon.stop_pipeline("p", force=False)
    assert time.monotonic() - began < 10


def test_a_bad_config_at_sighup_changes_nothing(make_daemon: Callable[..., Daemon]) -> None:
    daemon = make_daemon()
    daemon.start()
    good = daemon.config.read_text()
    daemon.config.write_text(good + "[runner]\nstop_grace_secnods = 1\n")
    daemon.signal(signal.SIGHUP)
    daemon.await_ready()
    assert "stop_grace_secnods" in daemon.log_text()
    assert daemon.ask("GET", "/healthz").status == 200


def test_a_refused_config_exits_78_and_names_file_key_and_reason(make_daemon: Callable[..., Daemon]) -> None:
    daemon = make_daemon(config="[events]\nretention = -1\n")
    daemon.start(wait=False)
    assert daemon.wait() == 78
    text = daemon.log_text()
    assert str(daemon.config) in text
    assert "events.retention" in text


def test_an_idle_daemon_sleeps(daemon: Daemon) -> None:
    """Twenty opaque pipelines, nothing to do: few context switches, hardly any processor time."""
    for n in range(20):
        daemon.create(f"p{n}", "sleep 600", program_config={"toolchain": "command"})
        daemon.start_pipeline(f"p{n}")
    time.sleep(2)  # let what the starts began come to rest
    switches, ticks = switches_of(daemon.pid), ticks_of(daemon.pid)
    time.sleep(5)
    assert switches_of(daemon.pid) - switches < 100
    assert ticks_of(daemon.pid) - ticks <= 10  # 2 % of a core, seen at the clock's own resolution


def switches_of(pid: int) -> int:
    """Context switches of all threads so far."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        for line in (task / "status").read_text().splitlines():
            if "ctxt_switches" in line:
                total += int(line.split()[1])
    return total


def ticks_of(pid: int) -> int:
    """Processor time so far, in hundredths of a second."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def test_its_metrics_tell_what_happened(daemon: Daemon) -> None:
    daemon.create("p", SLEEPER)
    daemon.start_pipeline("p")
    figures = {
        sample.name + str(sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(daemon.ask("GET", "/metrics").body)
        for sample in family.samples
    }
    assert figures["penstock_events_written_total[]"] == len(daemon.events("p"))
    assert figures["penstock_store_available[]"] == 1
    assert figures["penstock_pipelines[('desired', 'Provisioned'), ('status', 'Running')]"] == 1
    assert figures["penstock_transitions_total[('from', 'Provisioning'), ('to', 'Provisioned')]"] == 1
    assert figures["penstock_convergence_seconds_count[('desired', 'Provisioned')]"] == 1


def test_a_log_that_can_not_be_written_stops_nothing(make_daemon: Callable[..., Daemon]) -> None:
    daemon = make_daemon()
    daemon.log.symlink_to("/dev/full")
    daemon.start()
    daemon.create("p", SLEEPER)
    daemon.start_pipeline("p")
    daemon.stop_pipeline("p")
    assert daemon.terminate() == 0


def test_a_lost_database_is_refused_and_nothing_swept(make_daemon: Callable[..., Daemon]) -> None:
    daemon = make_daemon()
    daemon.start()
    pipeline = daemon.create("p", SLEEPER)
    daemon.start_pipeline("p")
    pid, database = daemon.process("p"), daemon.state_dir / "penstock.db"
    assert daemon.terminate() == 0
    kept = sorted(daemon.state_dir.glob("artifacts/*")) + sorted(daemon.state_dir.glob("pipelines/*/*"))
    database.rename(daemon.home / "backup.db")
    daemon.start(wait=False)
    assert daemon.wait() == 1
    told = daemon.log_text().splitlines()[-1]
    for word in (f"penstock: {database}: ", f"{daemon.state_dir}/pipelines", pipeline["id"], "Restore it"):
        assert word in told
    assert sorted(daemon.state_dir.glob("artifacts/*")) + sorted(daemon.state_dir.glob("pipelines/*/*")) == kept
    assert alive(pid)
    (daemon.home / "backup.db").rename(database)
    daemon.start()
    assert daemon.process("p") == pid


def test_nothing_is_acknowledged_once_the_state_is_gone(daemon: Daemon) -> None:
    daemon.create("p", SLEEPER)
    daemon.start_pipeline("p")
    shutil.rmtree(daemon.state_dir)
    for method, path, body in (
        ("POST", "/v0/pipelines", {"name": "q", "program_code": SLEEPER}),
        ("POST", "/v0/pipelines/p/stop?force=true", None),
        ("GET", "/readyz", None),
    ):
        reply = daemon.ask(method, path, body)
        assert reply.status == 503, reply
        assert "penstock.db: was removed" in str(reply.body)
    assert daemon.log_text().count('"store lost"') == 1
