-- Roles of the warehouse: who may do what, besides the role that owns it.
--
--   owner              Whoever runs `collector migrate`: it owns the schemas vm_import and ec2_api and all that is
--                      in them, and alone may change their shape. Use one role for every migration, because what
--                      it makes later is readable by the two below only if it is made by the same owner.
--                      `collector run` and `collector backfill` need not be the owner.
--   collector_writer   For `collector run` and `collector backfill`: reads all, adds scans, tasks and versions,
--                      ends versions and outages. It cannot truncate, delete, rewrite what was observed, or do DDL.
--   collector_reader   For people and dashboards: reads all tables, views and functions, and writes nothing.
--
-- Roles belong to the whole cluster, so `collector migrate` makes none: that is for an administrator, once. Rights
-- belong to a database, so connect to the warehouse's own:
--
--   psql "postgresql://admin@host/warehouse" --set ON_ERROR_STOP=1 --file roles.sql
--
-- (`python -c "from importlib.resources import files; print(files('collector.warehouse') / 'roles.sql')"` says
-- where an installed collector has this file.)
--
-- Before or after `collector migrate`: a migration grants to the roles that it finds. It may be run again at any
-- time, and takes nothing away. Run it as
--   - a superuser,
--   - or the owner, if that has CREATEROLE,
--   - or a role with CREATEROLE that is a member of the owner,
--   - or in turns: any role with CREATEROLE makes the two roles, then the owner runs this again for the rights
--     (the first of them ends with an error that says so, if the schemas exist already).
-- PostgreSQL 15 to 18. Another database in the same cluster: run this there too.
--
-- Both roles are groups that nobody logs in as. Give each daemon and each person a login of their own:
--
--   CREATE ROLE vm_import_daemon LOGIN PASSWORD '…';
--   GRANT collector_writer TO vm_import_daemon;
--
--   CREATE ROLE alice LOGIN PASSWORD '…';
--   GRANT collector_reader TO alice;
--
-- and name the first one in the daemon's database_url. Where CONNECT was revoked from PUBLIC, grant that as well:
--
--   GRANT CONNECT ON DATABASE warehouse TO collector_writer, collector_reader;
--
-- Advisory locks, which the collector takes, need no right. Row identities need none on their sequences either.
--
-- To be rid of the roles: in every database that used them `DROP OWNED BY collector_writer, collector_reader`,
-- which takes their rights and drops no data, and then `DROP ROLE collector_writer, collector_reader`.

-- The roles, where they are missing. Two may run this at once, in two databases.
DO $$
BEGIN
    IF to_regrole('collector_writer') IS NULL THEN
        CREATE ROLE collector_writer NOLOGIN;
        COMMENT ON ROLE collector_writer IS 'May store what the collector observes; see roles.sql';
    END IF;
EXCEPTION
    WHEN duplicate_object OR unique_violation THEN NULL;
END
$$;

DO $$
BEGIN
    IF to_regrole('collector_reader') IS NULL THEN
        CREATE ROLE collector_reader NOLOGIN;
        COMMENT ON ROLE collector_reader IS 'May read all that the collector has stored; see roles.sql';
    END IF;
EXCEPTION
    WHEN duplicate_object OR unique_violation THEN NULL;
END
$$;

-- Their rights in this database, on what is there. What is not there yet, a migration grants.
DO $$
DECLARE
    place record;
    item record;
BEGIN
    FOR place IN
        SELECT nspname AS name, pg_get_userbyid(nspowner) AS owner
        FROM pg_namespace WHERE nspname IN ('vm_import', 'ec2_api') ORDER BY nspname
    LOOP
        IF NOT pg_has_role(place.owner, 'USAGE') THEN
            RAISE EXCEPTION 'schema % belongs to %, for whom % cannot grant: run roles.sql again as that role',
                place.name, place.owner, current_user USING ERRCODE = 'insufficient_privilege';
        END IF;
        EXECUTE format('GRANT USAGE ON SCHEMA %I TO collector_writer, collector_reader', place.name);
        EXECUTE format('GRANT SELECT ON ALL TABLES IN SCHEMA %I TO collector_writer, collector_reader', place.name);
        EXECUTE format('GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA %I TO collector_writer, collector_reader',
            place.name);
        EXECUTE format('ALTER DEFAULT PRIVILEGES FOR ROLE %I IN SCHEMA %I'
            ' GRANT SELECT ON TABLES TO collector_writer, collector_reader', place.owner, place.name);
        EXECUTE format('ALTER DEFAULT PRIVILEGES FOR ROLE %I IN SCHEMA %I'
            ' GRANT EXECUTE ON FUNCTIONS TO collector_writer, collector_reader', place.owner, place.name);
    END LOOP;
    -- A migration that makes a table, or the daemon write to one in a new way, grants the same to the writer.
    FOR item IN
        SELECT to_regclass('vm_import.' || t.name) AS name, t.rights
        FROM (VALUES
            ('targets', 'INSERT'),
            ('scans', 'INSERT'),
            ('outages', 'INSERT, UPDATE'),
            ('tasks', 'INSERT'),
            ('task_versions', 'INSERT, UPDATE (valid_from, valid_to)'),
            ('snapshot_details', 'INSERT'),
            ('tags', 'INSERT'),
            ('license_specifications', 'INSERT'),
            ('task_events', 'INSERT'),
            ('event_scans', 'INSERT')
        ) AS t (name, rights)
    LOOP
        IF item.name IS NOT NULL THEN
            EXECUTE format('GRANT %s ON %s TO collector_writer', item.rights, item.name);
        END IF;
    END LOOP;
END
$$;
