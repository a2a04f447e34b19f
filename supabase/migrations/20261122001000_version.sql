-- Which migrations the database has, for workers and `worker.py doctor`, which compare them with those of their own version.
-- Null where whoever applied them kept no list as `supabase db push` does.

create function private.applied_migrations() returns text[]
language plpgsql stable security definer set search_path = '' as $$
begin
  return (select array_agg(m.version order by m.version) from supabase_migrations.schema_migrations m);
exception when invalid_schema_name or undefined_table or insufficient_privilege then
  return null;
end $$;
create function public.applied_migrations() returns text[]
language sql stable set search_path = '' return private.applied_migrations();

revoke execute on function private.applied_migrations(), public.applied_migrations() from public, anon, authenticated, service_role;
grant execute on function private.applied_migrations(), public.applied_migrations() to service_role;
comment on function public.applied_migrations() is 'The versions of the migrations that the database has. For workers.';
comment on function private.applied_migrations() is 'The half of public.applied_migrations that may read their list.';
