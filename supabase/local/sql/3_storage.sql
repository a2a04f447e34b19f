-- Schema storage as the platform's migrations leave it: tables, functions, grants, and the guard against deleting rows by SQL.

create schema storage;
alter default privileges in schema storage grant all on tables to postgres, anon, authenticated, service_role;
alter default privileges in schema storage grant all on sequences to postgres, anon, authenticated, service_role;
alter default privileges in schema storage grant all on functions to postgres, anon, authenticated, service_role;

create type storage.buckettype as enum ('STANDARD', 'ANALYTICS', 'VECTOR');

create table storage.buckets (
  id text primary key,
  name text not null,
  owner uuid,
  created_at timestamptz default now(),
  updated_at timestamptz default now(),
  public boolean default false,
  avif_autodetection boolean default false,
  file_size_limit bigint,
  allowed_mime_types text[],
  owner_id text,
  type storage.buckettype not null default 'STANDARD'
);
create unique index bname on storage.buckets (name);
comment on table storage.buckets is 'Buckets of objects, with the limits on what may be uploaded to them.';
comment on column storage.buckets.owner is 'Field is deprecated, use owner_id instead';

create table storage.objects (
  id uuid primary key default gen_random_uuid(),
  bucket_id text constraint "objects_bucketId_fkey" references storage.buckets (id),
  name text,
  owner uuid,
  created_at timestamptz default now(),
  updated_at timestamptz default now(),
  last_accessed_at timestamptz default now(),
  metadata jsonb,
  path_tokens text[] generated always as (string_to_array(name, '/')) stored,
  version text,
  owner_id text,
  user_metadata jsonb
);
create unique index bucketid_objname on storage.objects (bucket_id, name);
create index name_prefix_search on storage.objects (name text_pattern_ops);
create index idx_objects_bucket_id_name on storage.objects (bucket_id, name collate "C");
create index idx_objects_bucket_id_name_lower on storage.objects (bucket_id, lower(name) collate "C");
comment on table storage.objects is 'Metadata of objects. Their bytes lie outside, under the version: delete through the Storage API only.';
comment on column storage.objects.owner is 'Field is deprecated, use owner_id instead';

-- Parts of an object's name, for policies. `a/b/cat.png`: folders {a,b}, file `cat.png`, extension `png`.
create function storage.foldername(name text) returns text[] language sql immutable as $$
  select tokens[1:array_length(tokens, 1) - 1] from string_to_array(name, '/') tokens
$$;
create function storage.filename(name text) returns text language sql immutable as $$
  select tokens[array_length(tokens, 1)] from string_to_array(name, '/') tokens
$$;
create function storage.extension(name text) returns text language sql immutable as $$
  select reverse(split_part(reverse(storage.filename(name)), '.', 1))
$$;

-- The API call that a policy judges, such as `storage.object.upload`; the prefix `storage.` may be left out in comparisons.
create function storage.operation() returns text language sql stable as $$
  select current_setting('storage.operation', true)
$$;
create function storage.allow_any_operation(expected_operations text[]) returns boolean language sql stable as $$
  select exists (
    select from unnest(expected_operations) expected
     where expected <> '' and regexp_replace(expected, '^storage\.', '') = regexp_replace(storage.operation(), '^storage\.', ''))
$$;
create function storage.allow_only_operation(expected_operation text) returns boolean language sql stable as $$
  select storage.allow_any_operation(array[expected_operation])
$$;

create function storage.get_size_by_bucket() returns table (size bigint, bucket_id text) language sql stable as $$
  select sum((o.metadata ->> 'size')::bigint)::bigint, o.bucket_id from storage.objects o group by o.bucket_id
$$;

-- The key up to the first delimiter behind the prefix, or null where there is none.
create function storage.get_common_prefix(p_key text, p_prefix text, p_delimiter text) returns text language sql immutable as $$
  select left(p_key, length(p_prefix) + nullif(strpos(substr(p_key, length(p_prefix) + 1), p_delimiter), 0))
$$;

-- One level of a bucket: the objects right under a prefix, and the folders there (which have a name and nothing else). Case is ignored.
-- By name folders and objects are mixed; by a time folders come first.
create function storage.search(
  prefix text, bucketname text, limits int default 100, levels int default 1, offsets int default 0,
  search text default '', sortcolumn text default 'name', sortorder text default 'asc'
) returns table (name text, id uuid, updated_at timestamptz, created_at timestamptz, last_accessed_at timestamptz, metadata jsonb)
language plpgsql stable as $$
#variable_conflict use_column
declare
  v_prefix text := coalesce(prefix, '') || coalesce(search, '');
  v_column text := case when sortcolumn in ('updated_at', 'created_at', 'last_accessed_at') then sortcolumn end;
  v_order text := case when lower(sortorder) = 'desc' then 'desc' else 'asc' end;
begin
  return query execute format($query$
    with entries as (
      select o.*, storage.get_common_prefix(o.name, $1, '/') as folder
        from storage.objects o where o.bucket_id = $2 and starts_with(lower(o.name), lower($1))
    ), level as (
      select min(folder) as key, null::uuid as id, null::timestamptz as updated_at, null::timestamptz as created_at,
             null::timestamptz as last_accessed_at, null::jsonb as metadata
        from entries where folder is not null group by lower(folder)
      union all
      select name, id, updated_at, created_at, last_accessed_at, metadata from entries where folder is null
    )
    select case when id is null then left(substr(key, $3), -1) else substr(key, $3) end,
           id, updated_at, created_at, last_accessed_at, metadata
      from level order by %s lower(key) collate "C" %s limit $4 offset $5$query$,
    case when v_column is not null then format('id is not null, %I %s,', v_column, v_order) end, v_order)
  using v_prefix, bucketname, length(coalesce(prefix, '')) + 1, least(coalesce(limits, 100), 1500), offsets;
end $$;

-- The same for pages: names are whole, case counts, and a page begins behind start_after (of a folder: with its slash). A folder is as
-- old as its oldest object.
create function storage.search_v2(
  prefix text, bucket_name text, limits int default 100, levels int default 1, start_after text default '',
  sort_order text default 'asc', sort_column text default 'name', sort_column_after text default ''
) returns table (
  key text, name text, id uuid, updated_at timestamptz, created_at timestamptz, last_accessed_at timestamptz, metadata jsonb
) language plpgsql stable as $$
#variable_conflict use_column
declare
  v_by_time boolean := coalesce(sort_column in ('updated_at', 'created_at'), false);
  v_desc boolean := coalesce(lower(sort_order) = 'desc', false);
begin
  return query execute format($query$
    with entries as (
      select o.*, storage.get_common_prefix(o.name, $1, '/') as folder
        from storage.objects o where o.bucket_id = $2 and starts_with(o.name, $1)
    ), level as (
      select left(folder, -1) as name, null::uuid as id, min(created_at) as updated_at, min(created_at) as created_at,
             null::timestamptz as last_accessed_at, null::jsonb as metadata, folder as sort_key
        from entries where folder is not null group by folder
      union all
      select name, id, updated_at, created_at, last_accessed_at, metadata, name from entries where folder is null
    )
    select split_part(name, '/', $3), name, id, updated_at, created_at, last_accessed_at, metadata
      from level
     where $5 = '' or (%1$s, sort_key collate "C") %2$s (coalesce(nullif($6, '')::timestamptz, 'epoch'), $5)
     order by %1$s %3$s, sort_key collate "C" %3$s limit $4$query$,
    case when v_by_time then format('date_trunc(''milliseconds'', %I)', sort_column) else quote_literal('epoch') || '::timestamptz' end,
    case when v_desc then '<' else '>' end, case when v_desc then 'desc' else 'asc' end)
  using coalesce(prefix, ''), bucket_name, levels, least(coalesce(limits, 100), 1500), coalesce(start_after, ''), sort_column_after;
end $$;

create function storage.update_updated_at_column() returns trigger language plpgsql as $$
begin
  new.updated_at := now();
  return new;
end $$;
create trigger update_objects_updated_at before update on storage.objects
  for each row execute function storage.update_updated_at_column();

create function storage.enforce_bucket_name_length() returns trigger language plpgsql as $$
begin
  if length(new.name) > 100 then
    raise exception 'bucket name "%" is too long (% characters). Max is 100.', new.name, length(new.name);
  end if;
  return new;
end $$;
create trigger enforce_bucket_name_length_trigger before insert or update of name on storage.buckets
  for each row execute function storage.enforce_bucket_name_length();

-- A row that is deleted by SQL leaves its bytes behind, so only the Storage API deletes; it sets storage.allow_delete_query.
create function storage.protect_delete() returns trigger language plpgsql as $$
begin
  if current_setting('storage.allow_delete_query', true) is distinct from 'true' then
    raise exception 'Direct deletion from storage tables is not allowed. Use the Storage API instead.'
      using errcode = '42501', hint = 'This prevents accidental data loss from orphaned objects.';
  end if;
  return null;
end $$;
create trigger protect_buckets_delete before delete on storage.buckets for each statement execute function storage.protect_delete();
create trigger protect_objects_delete before delete on storage.objects for each statement execute function storage.protect_delete();

alter table storage.buckets enable row level security;
alter table storage.objects enable row level security;
do $$
declare
  v_name text;
begin
  foreach v_name in array array['storage.buckets', 'storage.objects'] loop
    execute format('alter table %s owner to supabase_storage_admin', v_name);
  end loop;
  for v_name in select p.oid::regprocedure from pg_proc p where p.pronamespace = 'storage'::regnamespace loop
    execute format('alter function %s owner to supabase_storage_admin', v_name);
  end loop;
end $$;
alter schema storage owner to supabase_admin;
alter type storage.buckettype owner to supabase_storage_admin;
grant all on schema storage to supabase_storage_admin, dashboard_user;
grant usage, create on schema storage to postgres;
grant usage on schema storage to anon, authenticated, service_role;
grant all on storage.buckets, storage.objects to postgres with grant option;
grant all on storage.buckets, storage.objects to anon, authenticated, service_role;
