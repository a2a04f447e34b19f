-- Around the tables of schema auth (these come from @supabase/lite): columns that seeds and dumps name, who is asking, and who may touch
-- the tables.

alter table auth.users
  add column instance_id uuid,
  add column is_super_admin boolean,
  alter column phone_change set default '',
  alter column phone_change_token set default '',
  alter column email_change_token_current set default '',
  alter column reauthentication_token set default '';

-- GoTrue looks for lower(email), lite for email.
create function auth.lower_email() returns trigger language plpgsql set search_path = '' as $$
begin
  new.email := lower(new.email);
  return new;
end $$;
create trigger lower_email before insert or update of email on auth.users for each row execute function auth.lower_email();

alter table auth.identities alter column id set default gen_random_uuid();
alter table auth.refresh_tokens add column instance_id uuid;
alter table auth.audit_log_entries add column instance_id uuid;

create or replace function auth.jwt() returns jsonb language sql stable as $$
  select coalesce(nullif(current_setting('request.jwt.claim', true), ''),
                  nullif(current_setting('request.jwt.claims', true), ''))::jsonb
$$;
create or replace function auth.uid() returns uuid language sql stable as $$
  select coalesce(nullif(current_setting('request.jwt.claim.sub', true), ''),
                  nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'sub')::uuid
$$;
create or replace function auth.role() returns text language sql stable as $$
  select coalesce(nullif(current_setting('request.jwt.claim.role', true), ''),
                  nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'role')
$$;
create or replace function auth.email() returns text language sql stable as $$
  select coalesce(nullif(current_setting('request.jwt.claim.email', true), ''),
                  nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'email')
$$;

do $$
declare
  v_name text;
begin
  for v_name in select c.oid::regclass from pg_class c where c.relnamespace = 'auth'::regnamespace and c.relkind = 'r' loop
    execute format('alter table %s owner to supabase_auth_admin', v_name);
    execute format('alter table %s enable row level security', v_name);   -- only Auth itself reads them
  end loop;
  for v_name in select p.oid::regprocedure from pg_proc p where p.pronamespace = 'auth'::regnamespace loop
    execute format('alter function %s owner to supabase_auth_admin', v_name);
  end loop;
end $$;
alter schema auth owner to supabase_admin;
grant all on schema auth to supabase_auth_admin, postgres, dashboard_user;
grant usage on schema auth to anon, authenticated, service_role;
grant all on all tables in schema auth to postgres, dashboard_user;
