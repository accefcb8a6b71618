-- Stamps are ISO 8601 text in UTC with microseconds; *_details, *_config and the like are JSON text.

-- schema_major: raised by the migration after which an older Penstock must not touch the database any more.
CREATE TABLE meta (
    key TEXT NOT NULL PRIMARY KEY,
    value TEXT NOT NULL
) STRICT, WITHOUT ROWID;

INSERT INTO meta (key, value) VALUES ('schema_major', '1');

CREATE TABLE pipeline (
    id TEXT NOT NULL PRIMARY KEY,
    tenant TEXT NOT NULL,
    name TEXT NOT NULL,
    revision INTEGER NOT NULL,
    created_at TEXT NOT NULL,
    version INTEGER NOT NULL,
    program_version INTEGER NOT NULL,
    refresh_version INTEGER NOT NULL,
    platform_version TEXT NOT NULL,
    program_status TEXT NOT NULL,
    program_status_since TEXT NOT NULL,
    resources_status TEXT NOT NULL,
    resources_status_since TEXT NOT NULL,
    resources_status_details TEXT,
    resources_desired TEXT NOT NULL,
    resources_desired_since TEXT NOT NULL,
    deployment_id TEXT,
    deployment_initial TEXT,
    bootstrap TEXT,
    deployment_error TEXT,
    runtime_status TEXT,
    runtime_status_since TEXT,
    runtime_status_details TEXT,
    runtime_desired TEXT,
    runtime_desired_since TEXT,
    storage_status TEXT NOT NULL,
    storage_status_details TEXT,
    deployment_location TEXT,
    artifact TEXT,
    runtime_intent TEXT,
    stop_mode TEXT,
    stop_deadline TEXT,
    suspect_since TEXT,
    resume TEXT,
    details_written_at TEXT,
    event_at TEXT,
    UNIQUE (tenant, name)
) STRICT;

-- What is long and seldom changes: an update rewrites the whole of a row, so the statuses live without it.
CREATE TABLE pipeline_body (
    id TEXT NOT NULL PRIMARY KEY REFERENCES pipeline (id) ON DELETE CASCADE,
    description TEXT NOT NULL,
    tags TEXT NOT NULL,
    program_code TEXT NOT NULL,
    udf_rust TEXT NOT NULL,
    udf_toml TEXT NOT NULL,
    runtime_config TEXT NOT NULL,
    program_config TEXT NOT NULL,
    program_error TEXT NOT NULL,
    program_info TEXT
) STRICT;

CREATE TABLE event (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT,
    pipeline_id TEXT NOT NULL REFERENCES pipeline (id) ON DELETE CASCADE,
    tenant TEXT NOT NULL,
    event_id TEXT NOT NULL,
    recorded_at TEXT NOT NULL,
    cause TEXT NOT NULL,
    author TEXT NOT NULL,
    deployment_id TEXT,
    resources_status TEXT NOT NULL,
    resources_status_details TEXT,
    resources_desired TEXT NOT NULL,
    runtime_status TEXT,
    runtime_status_details TEXT,
    runtime_desired TEXT,
    deployment_error TEXT,
    program_status TEXT NOT NULL,
    storage_status TEXT NOT NULL,
    storage_status_details TEXT
) STRICT;

CREATE INDEX event_by_pipeline ON event (pipeline_id, sequence);
