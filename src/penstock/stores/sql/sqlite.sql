-- Every statement that the SQLite store runs, after the schema stands. Parameters are columns, unless said otherwise.

-- name: insert_pipeline
INSERT INTO pipeline (
    id, tenant, name, revision, created_at, version, program_version, refresh_version, platform_version,
    program_status, program_status_since, resources_status, resources_status_since, resources_status_details,
    resources_desired, resources_desired_since, deployment_id, deployment_initial, bootstrap,
    deployment_error, runtime_status, runtime_status_since, runtime_status_details, runtime_desired,
    runtime_desired_since, storage_status, storage_status_details, deployment_location, artifact,
    runtime_intent, stop_mode, stop_deadline, suspect_since, resume, details_written_at, event_at
) VALUES (
    :id, :tenant, :name, :revision, :created_at, :version, :program_version, :refresh_version,
    :platform_version, :program_status, :program_status_since, :resources_status, :resources_status_since,
    :resources_status_details, :resources_desired, :resources_desired_since, :deployment_id,
    :deployment_initial, :bootstrap, :deployment_error, :runtime_status, :runtime_status_since,
    :runtime_status_details, :runtime_desired, :runtime_desired_since, :storage_status,
    :storage_status_details, :deployment_location, :artifact, :runtime_intent, :stop_mode, :stop_deadline,
    :suspect_since, :resume, :details_written_at, :event_at
)

-- name: update_pipeline
-- :before is the revision that the writer read; no row is changed when there is another by now.
-- The name stands apart: to set it is to rewrite its index.
UPDATE pipeline SET
    revision = :revision, version = :version, program_version = :program_version,
    refresh_version = :refresh_version, platform_version = :platform_version, program_status = :program_status,
    program_status_since = :program_status_since, resources_status = :resources_status,
    resources_status_since = :resources_status_since, resources_status_details = :resources_status_details,
    resources_desired = :resources_desired, resources_desired_since = :resources_desired_since,
    deployment_id = :deployment_id, deployment_initial = :deployment_initial, bootstrap = :bootstrap,
    deployment_error = :deployment_error, runtime_status = :runtime_status,
    runtime_status_since = :runtime_status_since, runtime_status_details = :runtime_status_details,
    runtime_desired = :runtime_desired, runtime_desired_since = :runtime_desired_since,
    storage_status = :storage_status, storage_status_details = :storage_status_details,
    deployment_location = :deployment_location, artifact = :artifact, runtime_intent = :runtime_intent,
    stop_mode = :stop_mode, stop_deadline = :stop_deadline, suspect_since = :suspect_since, resume = :resume,
    details_written_at = :details_written_at, event_at = :event_at
WHERE id = :id AND revision = :before

-- name: rename_pipeline
UPDATE pipeline SET name = :name WHERE id = :id

-- name: delete_pipeline
-- Body and events go with it.
DELETE FROM pipeline WHERE id = :id AND revision = :before

-- name: insert_body
INSERT INTO pipeline_body (
    id, description, tags, program_code, udf_rust, udf_toml, runtime_config, program_config, program_error,
    program_info
) VALUES (
    :id, :description, :tags, :program_code, :udf_rust, :udf_toml, :runtime_config, :program_config,
    :program_error, :program_info
)

-- name: update_body
UPDATE pipeline_body SET
    description = :description, tags = :tags, program_code = :program_code, udf_rust = :udf_rust,
    udf_toml = :udf_toml, runtime_config = :runtime_config, program_config = :program_config,
    program_error = :program_error, program_info = :program_info
WHERE id = :id

-- name: pipelines
-- A lost body shows as NULLs rather than as a lost pipeline.
SELECT * FROM pipeline LEFT JOIN pipeline_body USING (id)

-- name: latest_events
SELECT event.* FROM pipeline CROSS JOIN event ON event.sequence = (
    SELECT max(sequence) FROM event WHERE pipeline_id = pipeline.id
)

-- name: insert_event
INSERT INTO event (
    pipeline_id, tenant, event_id, recorded_at, cause, author, deployment_id, resources_status,
    resources_status_details, resources_desired, runtime_status, runtime_status_details, runtime_desired,
    deployment_error, program_status, storage_status, storage_status_details
) VALUES (
    :pipeline_id, :tenant, :event_id, :recorded_at, :cause, :author, :deployment_id, :resources_status,
    :resources_status_details, :resources_desired, :runtime_status, :runtime_status_details, :runtime_desired,
    :deployment_error, :program_status, :storage_status, :storage_status_details
)

-- name: count_events
SELECT count(*) AS kept FROM event WHERE pipeline_id = :id

-- name: trim_events
-- The oldest :excess of one pipeline.
DELETE FROM event WHERE sequence IN (
    SELECT sequence FROM event WHERE pipeline_id = :id ORDER BY sequence LIMIT :excess
)

-- name: events
-- Newest first; a :limit of -1 is none.
SELECT * FROM event WHERE pipeline_id = :id AND sequence > :after ORDER BY sequence DESC LIMIT :limit

-- name: event
SELECT * FROM event WHERE pipeline_id = :id AND event_id = :event_id

-- name: meta
SELECT value FROM meta WHERE key = :key

-- name: put_meta
-- What stands there already stays.
INSERT INTO meta (key, value) VALUES (:key, :value) ON CONFLICT (key) DO NOTHING

-- name: touch
-- Changes a page each time, so that it shows whether the disk can be written.
INSERT INTO meta (key, value) VALUES ('checks', '1') ON CONFLICT (key) DO UPDATE SET value = CAST(value + 1 AS TEXT)

-- name: reserve
SELECT count(*) AS stocked FROM reserve

-- name: stock_reserve
INSERT INTO reserve (room) VALUES (zeroblob(:bytes))

-- name: spend_reserve
DELETE FROM reserve

-- name: tables
SELECT name FROM sqlite_schema WHERE type = 'table'

-- name: create_migration
CREATE TABLE migration (
    number INTEGER NOT NULL PRIMARY KEY,
    name TEXT NOT NULL,
    checksum TEXT NOT NULL,
    applied_at TEXT NOT NULL
) STRICT

-- name: migrations
SELECT number, checksum FROM migration

-- name: insert_migration
INSERT INTO migration (number, name, checksum, applied_at) VALUES (:number, :name, :checksum, :applied_at)
