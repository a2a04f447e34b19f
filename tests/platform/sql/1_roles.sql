-- Roles, memberships, limits and schemas of a hosted project (supabase/postgres: migrations/db). Run once, as supabase_admin.

create role anon nologin;
create role authenticated nologin;
create role service_role nologin bypassrls;
create role authenticator login noinherit;
create role supabase_auth_admin login noinherit createrole;
create role supabase_storage_admin login noinherit createrole;
create role supabase_realtime_admin nologin noinherit;
create role supabase_replication_admin login replication;
create role supabase_read_only_user login bypassrls;
create role supabase_functions_admin login noinherit createrole;
create role dashboard_user nologin createdb createrole replication;
create role pgbouncer login;

-- No superuser, and a member of none of the admin roles.
create role postgres login createdb createrole replication bypassrls;
grant anon, authenticated, service_role to authenticator, supabase_storage_admin, postgres;
grant authenticator to supabase_storage_admin;
grant pg_monitor, pg_read_all_data, pg_signal_backend to postgres;
grant pg_read_all_data to supabase_read_only_user;

alter role anon set statement_timeout = '3s';
alter role authenticated set statement_timeout = '8s';
alter role authenticator set statement_timeout = '8s';
alter role authenticator set lock_timeout = '8s';
alter role postgres set search_path = "$user", public, extensions;
alter role supabase_admin set search_path = "$user", public, auth, extensions;

-- Where the platform preloads safeupdate, auto_explain reports every executed statement, those of functions too: tests/platform/database.py
-- refuses what safeupdate would.
alter role authenticator set session_preload_libraries = 'auto_explain';
alter role authenticator set auto_explain.log_min_duration = 0;
alter role authenticator set auto_explain.log_nested_statements = on;
alter role authenticator set auto_explain.log_format = 'json';
alter role authenticator set auto_explain.log_level = 'notice';

create schema extensions;
create extension "uuid-ossp" with schema extensions;
create extension pgcrypto with schema extensions;
create extension supabase_vault;
grant usage on schema extensions to postgres, anon, authenticated, service_role, dashboard_user;
grant usage on schema public to postgres, anon, authenticated, service_role;
grant create on schema public to postgres;
grant all on database platform to postgres;

create publication supabase_realtime;
alter publication supabase_realtime owner to postgres;
