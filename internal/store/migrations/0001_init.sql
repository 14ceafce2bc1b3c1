-- One row for each VM. The same facts, but for its state, are in the VM's own directory (vm.json), from which a lost
-- database can be rebuilt.
CREATE TABLE vms (
    id             TEXT    NOT NULL PRIMARY KEY,
    name           TEXT    NOT NULL UNIQUE,
    spec           TEXT    NOT NULL,            -- JSON of vm.Spec
    machine_id     TEXT    NOT NULL,
    driver         TEXT    NOT NULL,
    image_digest   TEXT    NOT NULL,
    kernel_digest  TEXT    NOT NULL,
    kernel_version TEXT    NOT NULL,
    made           INTEGER NOT NULL DEFAULT 0,  -- 0 while its directory is being built: a leftover after a crash
    state          TEXT    NOT NULL CHECK (state IN
                       ('created', 'starting', 'running', 'stopping', 'stopped', 'failed', 'deleting')),
    reason         TEXT    NOT NULL DEFAULT '',
    accelerator    TEXT    NOT NULL DEFAULT '',
    supervisor_pid INTEGER NOT NULL DEFAULT 0,
    vmm_pid        INTEGER NOT NULL DEFAULT 0,
    exit_code      INTEGER NOT NULL DEFAULT 0,
    created_ms     INTEGER NOT NULL,            -- times are Unix time in milliseconds, 0 for never
    started_ms     INTEGER NOT NULL DEFAULT 0,
    stopped_ms     INTEGER NOT NULL DEFAULT 0
) STRICT;

CREATE INDEX vms_image ON vms (image_digest);
CREATE INDEX vms_kernel ON vms (kernel_digest);

-- What was pulled: the name that people use to the digest that names the directory. Pulling anew moves the name to
-- another digest; VMs stay on the one they were made with.
CREATE TABLE artifacts (
    kind       TEXT    NOT NULL CHECK (kind IN ('image', 'kernel')),
    name       TEXT    NOT NULL,
    digest     TEXT    NOT NULL,
    created_ms INTEGER NOT NULL,
    PRIMARY KEY (kind, name)
) STRICT, WITHOUT ROWID;

CREATE INDEX artifacts_digest ON artifacts (kind, digest);
