-- Paused and suspended VMs, and what the restart policy, the idle policy and pending changes have to know. SQLite cannot
-- change a CHECK: the table is made anew.
CREATE TABLE vms_next (
    id             TEXT    NOT NULL PRIMARY KEY,
    name           TEXT    NOT NULL UNIQUE,
    spec           TEXT    NOT NULL,            -- JSON of vm.Spec
    machine_id     TEXT    NOT NULL,
    driver         TEXT    NOT NULL,
    image_digest   TEXT    NOT NULL,
    kernel_digest  TEXT    NOT NULL,
    kernel_version TEXT    NOT NULL,
    made           INTEGER NOT NULL DEFAULT 0,  -- 0 while its directory is being built: a leftover after a crash
    state          TEXT    NOT NULL CHECK (state IN ('created', 'starting', 'running', 'paused', 'stopping', 'stopped',
                       'suspended', 'failed', 'deleting')),
    reason         TEXT    NOT NULL DEFAULT '',
    accelerator    TEXT    NOT NULL DEFAULT '',
    supervisor_pid INTEGER NOT NULL DEFAULT 0,
    vmm_pid        INTEGER NOT NULL DEFAULT 0,
    exit_code      INTEGER NOT NULL DEFAULT 0,
    created_ms     INTEGER NOT NULL,            -- times are Unix time in milliseconds, 0 for never
    started_ms     INTEGER NOT NULL DEFAULT 0,
    stopped_ms     INTEGER NOT NULL DEFAULT 0,
    active_ms      INTEGER NOT NULL DEFAULT 0,  -- last use
    wanted         INTEGER NOT NULL DEFAULT 0,  -- 1: by its restart policy it is to run
    restarts       INTEGER NOT NULL DEFAULT 0,  -- by the policy, since it was last started by hand
    pending        TEXT    NOT NULL DEFAULT '', -- settings that wait for the next start, with commas between them
    reset_token    TEXT    NOT NULL DEFAULT ''  -- a reset that the next start carries out; empty: none
) STRICT;

INSERT INTO vms_next (id, name, spec, machine_id, driver, image_digest, kernel_digest, kernel_version, made, state, reason,
    accelerator, supervisor_pid, vmm_pid, exit_code, created_ms, started_ms, stopped_ms)
SELECT id, name, spec, machine_id, driver, image_digest, kernel_digest, kernel_version, made, state, reason,
    accelerator, supervisor_pid, vmm_pid, exit_code, created_ms, started_ms, stopped_ms FROM vms;

DROP TABLE vms;
ALTER TABLE vms_next RENAME TO vms;

CREATE INDEX vms_image ON vms (image_digest);
CREATE INDEX vms_kernel ON vms (kernel_digest);

-- What happened, the newest so many. AUTOINCREMENT: a number is never used again, so that a watcher can go on after it.
CREATE TABLE events (
    seq       INTEGER PRIMARY KEY AUTOINCREMENT,
    at_ms     INTEGER NOT NULL,
    kind      TEXT    NOT NULL,
    object_id TEXT    NOT NULL,
    object    TEXT    NOT NULL,
    message   TEXT    NOT NULL
) STRICT;

CREATE INDEX events_object ON events (object_id);
