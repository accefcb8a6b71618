"""A daemon that is about to be killed: it commits as fast as it can and tells each commit once it is acknowledged.

Run as a program: ``python -m tests.stores.committer FILE``; prints ``pipeline-id revision`` lines.
"""

from __future__ import annotations

import os
import sys

import anyio

from penstock import requests
from penstock.clock import SystemClock
from penstock.model import Author, Pipeline, PipelineId, ResourcesDesired, Spec
from penstock.stores.sqlite import SqliteStore, open_sqlite

COMMITTERS = 20
RETENTION = 1_000_000


async def commit_for_ever(store: SqliteStore, clock: SystemClock, row: Pipeline) -> None:
    while True:
        now = clock.now()
        if row.resources_desired is ResourcesDesired.PROVISIONED:
            after = requests.stop(row, force=True, grace_seconds=0, now=now)
        else:
            after = requests.start(row, requests.StartRequest(), now=now)
            assert isinstance(after, Pipeline)
        # Users' and the daemon's writes, mixed.
        by = Author.USER if row.revision % 50 == 0 else Author.DAEMON
        row = await store.commit(row, [after], by=by, cause="test", now=now)
        os.write(1, f"{row.id} {row.revision}\n".encode())


async def main(path: str) -> None:
    clock = SystemClock()
    async with open_sqlite(path, clock=clock, retention=RETENTION) as store, anyio.create_task_group() as group:
        rows = await store.pipelines()
        for number in range(len(rows), COMMITTERS):
            spec = Spec(name=f"p{number}")
            row = requests.new_pipeline(PipelineId(clock.new_id()), spec, platform_version="1", now=clock.now())
            rows.append(await store.create(row))
        for row in rows:
            group.start_soon(commit_for_ever, store, clock, row)


if __name__ == "__main__":
    anyio.run(main, sys.argv[1])
