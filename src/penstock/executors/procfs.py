"""What the kernel tells of processes: whose they are, whether they are stopped, how they ended, what they use.

Called by the process executor. A pid is only ever trusted together with its start time, or whose it is, checked after a
descriptor of the process was opened. Functions block for microseconds, a census for about 25 us per process that was
not read before. Must never signal anything.

The mark. Every process of a deployment has a number as its soft limit of file locks (RLIMIT_LOCKS), one that only this
deployment has. Linux has not heeded that limit since 2.4.25, so nothing sets it and nothing is hindered by it; but it
is inherited, by a child with an empty environment, in a session of its own, without descriptors and without a parent
as well. Anybody may read it of any process.
"""

from __future__ import annotations

import errno
import os
import resource
import time
from collections.abc import Callable, Container
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import blake2b

from penstock.linux import start_ticks, stat_fields
from penstock.model import DeploymentId, PipelineId
from penstock.ports import Compute

INSTANCE, PIPELINE, DEPLOYMENT = b"PENSTOCK_INSTANCE_ID", b"PENSTOCK_PIPELINE_ID", b"PENSTOCK_DEPLOYMENT_ID"

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")

_RLIMIT_LOCKS = 10
_LOWEST_MARK = 1 << 62
_KERNEL_THREAD = 0x200000
"""PF_KTHREAD."""

_CENSUS_ROUNDS = 10
"""Who ended before it was read may have left a child that is not on the list: then those that came later are read too,
so that even one that forks and ends all the time is hardly ever missed."""

_STRANGE_AFTER_SECONDS = 10.0
"""A child of a daemon is nobody's until it has become a recorder, which takes a millisecond, if nothing holds it up."""

_GONE = frozenset({errno.ESRCH, errno.EINVAL, errno.ENOENT})
"""What pidfd_open says when there is no process of that pid, or only a thread."""


def open_process(pid: int, ticks: int) -> int | None:
    """A pidfd of the process of that pid and start time, running or not reaped yet; None when it is gone.

    Raises OSError, as `open_if`.
    """
    return open_if(pid, lambda: start_ticks(pid) == ticks)


def open_recorder(pid: int, program_ticks: int, owner: Compute) -> int | None:
    """A pidfd of the recorder of a program that began at `program_ticks`; None when it is gone.

    A parent is not younger than its child, and this one carries the ids of the deployment.
    """

    def is_recorder() -> bool:
        ticks = start_ticks(pid)
        return ticks is not None and ticks <= program_ticks and owner_of(environment(pid)) == owner

    return open_if(pid, is_recorder)


def open_if(pid: int, is_wanted: Callable[[], bool]) -> int | None:
    """A pidfd of the process of that pid, if `is_wanted` says so once it cannot be another's any more; else None.

    Raises OSError when nothing can be opened (too many descriptors).
    """
    try:
        pidfd = os.pidfd_open(pid)
    except OSError as error:
        if error.errno in _GONE:
            return None
        raise
    if is_wanted():
        return pidfd
    os.close(pidfd)
    return None


def command_line(pid: int) -> bytes:
    """The words that a process was begun with; empty when it ended."""
    return _read(f"/proc/{pid}/cmdline")


def environment(pid: int) -> bytes:
    """The environment that a process began with; empty when it ended, or is none of ours to read."""
    return _read(f"/proc/{pid}/environ")


def variables(text: bytes) -> dict[bytes, bytes]:
    """An environment by name."""
    return {name: value for name, _, value in (word.partition(b"=") for word in text.split(b"\0"))}


def owner_of(text: bytes) -> Compute | None:
    """The deployment whose ids an environment carries, whatever the instance."""
    found = variables(text)
    if PIPELINE not in found or DEPLOYMENT not in found:
        return None
    return Compute(PipelineId(os.fsdecode(found[PIPELINE])), DeploymentId(os.fsdecode(found[DEPLOYMENT])))


def is_of(text: bytes, instance_id: str) -> bool:
    """Tell whether an environment is that of something this instance began."""
    return INSTANCE in text and variables(text).get(INSTANCE) == os.fsencode(instance_id)


def mark(instance_id: str, deployment_id: DeploymentId) -> int:
    """The number that all processes of a deployment are marked with: 62 bits that are its own."""
    digest = blake2b(f"{instance_id} {deployment_id}".encode(), digest_size=8).digest()
    return _LOWEST_MARK | int.from_bytes(digest, "big") >> 2


def mark_of(pid: int) -> int | None:
    """The mark of a process, running or not reaped yet; None when it has none, or is gone."""
    limit = _limit_of(pid)
    return _as_mark(_limit_told_to_all(pid) if limit is None else limit)


def _as_mark(limit: int) -> int | None:
    return limit if limit >= _LOWEST_MARK else None


def _limit_of(pid: int) -> int | None:
    """The soft limit of file locks, within a microsecond; None when it is gone, or another user's."""
    try:
        return resource.prlimit(pid, _RLIMIT_LOCKS)[0]
    except OSError:
        return None


def _limit_told_to_all(pid: int) -> int:
    for line in _read(f"/proc/{pid}/limits").splitlines():
        if line.startswith(b"Max file locks"):
            soft = line.split()[3]
            return int(soft) if soft.isdigit() else -1
    return -1


def is_stopped(pid: int) -> bool:
    """Tell whether a process is stopped as a whole (SIGSTOP); a tracer's stop does not count."""
    fields = stat_fields(pid)
    if fields is None:
        return False
    if fields[0] not in "ZX":
        return fields[0] == "T"
    # The first thread has ended, the others may live.
    with suppress(OSError):
        states = [stat_fields(int(tid)) for tid in os.listdir(f"/proc/{pid}/task") if int(tid) != pid]
        return any(state is not None and state[0] == "T" for state in states)
    return False


def is_alive(pid: int) -> bool:
    """Tell whether a process of that pid exists and has not ended, not even if its first thread has."""
    fields = stat_fields(pid)
    return fields is not None and _is_alive(fields)


def _is_alive(fields: list[str]) -> bool:
    return fields[0] not in "ZX" or int(fields[17]) > 1


def children(pid: int) -> list[int]:
    """The living and dead children of a process; empty on a kernel that does not tell (CONFIG_PROC_CHILDREN)."""
    with suppress(OSError):
        return [int(child) for tid in os.listdir(f"/proc/{pid}/task") for child in _children_of_thread(pid, tid)]
    return []


def _children_of_thread(pid: int, tid: str) -> list[bytes]:
    return _read(f"/proc/{pid}/task/{tid}/children").split()


def zombie_status(pid: int, ticks: int) -> int | None:
    """The wait status of a process that has ended and was not reaped yet; None when it cannot be told."""
    fields = stat_fields(pid)
    if fields is None or fields[0] != "Z" or int(fields[19]) != ticks:
        return None
    try:
        os.readlink(f"/proc/{pid}/exe")
    except FileNotFoundError:
        return int(fields[49])
    except OSError:  # not ours to inspect: the kernel shows 0 in place of the status
        pass
    return None


def group_of(pid: int) -> int | None:
    """The process group of a process; None when it is gone."""
    fields = stat_fields(pid)
    return None if fields is None else int(fields[2])


def is_our_image(pid: int) -> bool:
    """Tell whether a process is a child of this one that runs the same program, as before it becomes another."""
    fields = stat_fields(pid)
    if fields is None or int(fields[1]) != os.getpid():
        return False
    try:
        return os.readlink(f"/proc/{pid}/exe") == os.readlink("/proc/self/exe")
    except OSError:
        return False


def holders(path: str) -> list[int]:
    """The pids of the processes that have the file at `path` open, this one left out."""
    return [pid for pid in all_pids() if pid != os.getpid() and holds(pid, path)]


def holds(pid: int, path: str) -> bool:
    """Tell whether a process has the file at `path` open, as far as this user may see."""
    try:
        wanted = os.stat(path)
        names = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return False
    for name in names:
        with suppress(OSError):
            if os.path.samestat(os.stat(f"/proc/{pid}/fd/{name}"), wanted):
                return True
    return False


def described(pid: int) -> str:
    """A process as a person would look for it: pid, name and state, and its user if that is another."""
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
            name = file.read().strip()
        user = os.stat(f"/proc/{pid}").st_uid
    except OSError:
        return str(pid)
    fields = stat_fields(pid)
    whose = f", of user {user}" if user != os.geteuid() else ""
    return f"{pid} ({name}, state {fields[0] if fields is not None else '?'}{whose})"


@dataclass(frozen=True, slots=True)
class Census:
    """Who was alive at one time, but for those that were known: `ours` by environment, the others by mark and group."""

    ours: dict[Compute, list[int]] = field(default_factory=dict[Compute, list[int]])
    marked: dict[int, list[int]] = field(default_factory=dict[int, list[int]])
    others: dict[int, list[int]] = field(default_factory=dict[int, list[int]])


Strangers = dict[int, tuple[int, int]]
"""Processes that were seen to be none of ours, by pid: the inode of their directory in /proc, and their group."""


def take_census(instance_id: str, known: Container[int], strangers: Strangers | None = None) -> Census:
    """Read whose every process is. `known` are the pids of processes that need no reading, and are left out.

    `strangers` remembers, from one census to the next, who needs no reading again: whoever has lived for a while
    without our ids and without a mark descends from nothing of ours and never will. The kernel numbers the directory of
    each process anew, so that nobody is taken for a stranger that had the same pid.
    """
    census = Census()
    remembered = {} if strangers is None else strangers
    seen: set[int] = set()
    for turn in range(_CENSUS_ROUNDS):
        listed = _listed()
        read = [True]
        for pid in reversed(listed):
            if pid in seen or pid in known:
                continue
            inode, group = remembered.get(pid, (0, 0))
            if inode == listed[pid]:
                census.others.setdefault(group, []).append(pid)
            else:
                read.append(_enter(pid, listed[pid], census, instance_id, remembered, just_born=turn > 0))
        seen.update(listed)
        if all(read):
            break
    for pid in remembered.keys() - seen:
        del remembered[pid]
    return census


def _listed() -> dict[int, int]:
    """The pids of all processes, the latest as a rule last, and the inodes of their directories."""
    with os.scandir("/proc") as entries:
        return {int(entry.name): entry.inode() for entry in entries if entry.name.isdigit()}


def _enter(pid: int, inode: int, census: Census, instance_id: str, strangers: Strangers, *, just_born: bool) -> bool:
    """Enter a process into a census; False when it had ended before it could be read.

    One that was `just_born` counts by its mark even so: who bore it lived a moment ago, or its own child may live.
    """
    limit = _limit_of(pid)  # first: it may be gone in a moment
    text = environment(pid)
    compute = owner_of(text) if is_of(text, instance_id) else None
    if compute is not None:
        census.ours.setdefault(compute, []).append(pid)
        return True
    fields = stat_fields(pid)
    if fields is None or not _is_alive(fields):
        own = None if limit is None else _as_mark(limit)
        if just_born and own is not None:
            census.marked.setdefault(own, []).append(pid)
        return False
    if int(fields[6]) & _KERNEL_THREAD:
        strangers[pid] = inode, 0
        return True
    group = int(fields[2])
    census.others.setdefault(group, []).append(pid)
    own = _as_mark(_limit_told_to_all(pid) if limit is None else limit)
    if own is not None:
        census.marked.setdefault(own, []).append(pid)
    elif age_seconds(int(fields[19])) > _STRANGE_AFTER_SECONDS and int(fields[1]) != os.getpid():
        strangers[pid] = inode, group
    return True


@dataclass(frozen=True, slots=True)
class Consumption:
    """What one process has used. `ticks`: when it began."""

    pid: int
    rss_bytes: int
    cpu_seconds: float
    threads: int
    ticks: int


def consumption_by_group() -> dict[int, list[Consumption]]:
    """What every living process uses, by process group."""
    groups: dict[int, list[Consumption]] = {}
    for pid in all_pids():
        fields = stat_fields(pid)
        if fields is None or fields[0] in "ZX":
            continue
        own = Consumption(
            pid=pid,
            rss_bytes=int(fields[21]) * PAGE_BYTES,
            # Its own time and that of the children that it has waited for.
            cpu_seconds=sum(int(part) for part in fields[11:15]) / TICKS_PER_SECOND,
            threads=int(fields[17]),
            ticks=int(fields[19]),
        )
        groups.setdefault(int(fields[2]), []).append(own)
    return groups


def open_files(pid: int) -> int:
    """How many descriptors a process holds; 0 when it is gone."""
    try:
        return len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return 0


def age_seconds(ticks: int) -> float:
    """How long ago a process began."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / TICKS_PER_SECOND


def _read(path: str) -> bytes:
    # Without file objects: a census reads hundreds.
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    blocks: list[bytes] = []
    try:
        while block := os.read(fd, 1 << 16):
            blocks.append(block)
    except OSError:  # it has ended meanwhile
        return b""
    finally:
        os.close(fd)
    return b"".join(blocks)


def all_pids() -> list[int]:
    """The pids of all processes, the latest as a rule last."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]
