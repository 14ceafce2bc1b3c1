-- The number of the address that a VM has in its network as long as it exists (package netstack), and for one that was made
-- by a fork the JSON of vm.Origin.
ALTER TABLE vms ADD COLUMN address INTEGER NOT NULL DEFAULT 0;
ALTER TABLE vms ADD COLUMN forked_from TEXT NOT NULL DEFAULT '';

UPDATE vms SET address = 15 + (SELECT count(*) FROM vms AS other WHERE other.rowid <= vms.rowid);

CREATE UNIQUE INDEX vms_address ON vms (address) WHERE address <> 0;
