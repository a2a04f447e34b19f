-- Around the tables and functions of schema storage (these come from @supabase/lite): owners, grants, and the rows behind row security.

do $$
declare
  v_name text;
begin
  for v_name in select c.oid::regclass from pg_class c where c.relnamespace = 'storage'::regnamespace and c.relkind = 'r' loop
    execute format('alter table %s owner to supabase_storage_admin', v_name);
    execute format('alter table %s enable row level security', v_name);
  end loop;
  for v_name in select p.oid::regprocedure from pg_proc p where p.pronamespace = 'storage'::regnamespace loop
    execute format('alter function %s owner to supabase_storage_admin', v_name);
  end loop;
end $$;
alter schema storage owner to supabase_admin;
grant all on schema storage to supabase_storage_admin, dashboard_user;
grant usage, create on schema storage to postgres;
grant usage on schema storage to anon, authenticated, service_role;
grant all on storage.buckets, storage.objects to postgres, anon, authenticated, service_role;

-- One level of a bucket: the objects right under a prefix, and the folders there (which have a name and nothing else).
create function storage.search(
  prefix text, bucketname text, limits int default 100, levels int default 1, offsets int default 0,
  search text default '', sortcolumn text default 'name', sortorder text default 'asc'
) returns table (name text, id uuid, updated_at timestamptz, created_at timestamptz, last_accessed_at timestamptz, metadata jsonb)
language plpgsql stable as $$
#variable_conflict use_column
declare
  v_prefix text := case when coalesce(prefix, '') in ('', '/') then '' else rtrim(prefix, '/') || '/' end;
  v_column text := case when sortcolumn in ('updated_at', 'created_at', 'last_accessed_at') then sortcolumn else 'name' end;
  v_order text := case when lower(sortorder) = 'desc' then 'desc' else 'asc' end;
begin
  return query execute format($query$
    with entries as (
      select split_part(substr(o.name, length($1) + 1), '/', 1) as name, strpos(substr(o.name, length($1) + 1), '/') > 0 as folder,
             o.id, o.updated_at, o.created_at, o.last_accessed_at, o.metadata
        from storage.objects o
       where o.bucket_id = $2 and starts_with(o.name, $1)
    )
    select name, id, updated_at, created_at, last_accessed_at, metadata from (
      select name, null::uuid as id, null::timestamptz as updated_at, null::timestamptz as created_at,
             null::timestamptz as last_accessed_at, null::jsonb as metadata
        from entries where folder group by name
      union all
      select name, id, updated_at, created_at, last_accessed_at, metadata from entries where not folder
    ) listed
    where starts_with(lower(name), lower($3)) and name <> ''
    order by %I %s nulls first, name
    limit $4 offset $5$query$, v_column, v_order)
  using v_prefix, bucketname, coalesce(search, ''), limits, offsets;
end $$;
alter function storage.search(text, text, int, int, int, text, text, text) owner to supabase_storage_admin;
