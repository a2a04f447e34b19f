-- The roles of a Supabase database, their memberships and time limits. Runs once, on a fresh data directory, as supabase_admin (superuser).

create role anon nologin noinherit;
create role authenticated nologin noinherit;
create role service_role nologin noinherit bypassrls;
create role authenticator login noinherit;
create role supabase_auth_admin nologin noinherit createrole;
create role supabase_storage_admin nologin noinherit createrole;
create role supabase_realtime_admin nologin noinherit;
create role dashboard_user nologin createdb createrole replication;

-- What migrations run as: powerful, but no superuser, exactly so on Supabase.
create role postgres login createdb createrole replication bypassrls;
grant anon, authenticated, service_role to authenticator;
grant anon, authenticated, service_role, authenticator to postgres with admin option;
grant pg_monitor, pg_read_all_data, pg_signal_backend to postgres;
-- On Supabase an extension lets postgres write policies on tables of these two roles; here membership does.
grant supabase_storage_admin, supabase_realtime_admin, supabase_auth_admin to postgres;

alter role anon set statement_timeout = '3s';
alter role authenticated set statement_timeout = '8s';
alter role authenticator set statement_timeout = '8s';
alter role authenticator set lock_timeout = '8s';

-- The gateway's own sessions read and write in one form, whatever a database or another role has set.
alter role supabase_admin set datestyle = 'ISO, MDY';
alter role supabase_admin set intervalstyle = 'postgres';
alter role supabase_admin set timezone = 'UTC';
alter role supabase_admin set bytea_output = 'hex';
alter role supabase_admin set extra_float_digits = 1;

-- postgres may configure PostgREST, as it may there: alter role authenticator set pgrst.db_max_rows = '500'. On Supabase an extension allows it.
do $$
declare
  v_name text;
begin
  foreach v_name in array string_to_array(
    'db_aggregates_enabled db_anon_role db_extra_search_path db_hoisted_tx_settings db_max_rows db_plan_enabled db_pre_config db_pre_request '
    'db_prepared_statements db_root_spec db_schemas db_timezone_enabled db_tx_end jwt_aud jwt_cache_max_entries jwt_role_claim_key jwt_secret '
    'jwt_secret_is_base64 openapi_mode openapi_security_active openapi_server_proxy_uri server_cors_allowed_origins server_timing_enabled '
    'server_trace_header', ' ')
  loop
    execute format('grant set on parameter %I to postgres', 'pgrst.' || v_name);
  end loop;
end $$;

alter database postgres owner to postgres;
alter database postgres set search_path = "$user", public, extensions;

create schema extensions;
create extension if not exists "uuid-ossp" with schema extensions;
create extension if not exists pgcrypto with schema extensions;
create extension if not exists pg_stat_statements with schema extensions;
grant usage on schema extensions to postgres, anon, authenticated, service_role, dashboard_user;

-- New things in schema public are open to the API roles until a migration revokes it; so a forgotten revoke shows here as it would there.
grant usage on schema public to postgres, anon, authenticated, service_role;
grant create on schema public to postgres;
alter default privileges for role postgres in schema public grant all on tables to postgres, anon, authenticated, service_role;
alter default privileges for role postgres in schema public grant all on sequences to postgres, anon, authenticated, service_role;
alter default privileges for role postgres in schema public grant all on functions to postgres, anon, authenticated, service_role;
alter default privileges for role supabase_admin in schema public grant all on tables to postgres, anon, authenticated, service_role;
alter default privileges for role supabase_admin in schema public grant all on sequences to postgres, anon, authenticated, service_role;
alter default privileges for role supabase_admin in schema public grant all on functions to postgres, anon, authenticated, service_role;

create publication supabase_realtime;
alter publication supabase_realtime owner to postgres;

create schema supabase_migrations authorization postgres;
create table supabase_migrations.schema_migrations (version text primary key, statements text[], name text);
create table supabase_migrations.seed_files (path text primary key, hash text not null);
alter table supabase_migrations.schema_migrations owner to postgres;
alter table supabase_migrations.seed_files owner to postgres;

-- PostgREST reads the schema again when it hears of a change; the gateway listens to the same word.
create function extensions.pgrst_ddl_watch() returns event_trigger language plpgsql set search_path = '' as $$
begin
  notify pgrst, 'reload schema';
end $$;
create event trigger pgrst_ddl_watch on ddl_command_end execute function extensions.pgrst_ddl_watch();
create event trigger pgrst_drop_watch on sql_drop execute function extensions.pgrst_ddl_watch();
