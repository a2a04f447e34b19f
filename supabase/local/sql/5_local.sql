-- What the gateway asks the database: upkeep of the message partitions, and what one subscriber may see of one changed row.
-- In a schema of its own that no other role can enter, so that nothing outside can come to depend on it.

create schema _local;
revoke all on schema _local from public;
create table _local.bootstrap (version integer not null, at timestamptz not null default now());

-- One partition a day, from yesterday to three days ahead; what is older than three days goes.
create function _local.keep_messages(p_now timestamp default now() at time zone 'utc') returns void
language plpgsql set search_path = '' as $$
declare
  v_day date;
  v_name text;
begin
  for v_day in select generate_series(p_now::date - 1, p_now::date + 3, interval '1 day') loop
    v_name := 'messages_' || to_char(v_day, 'YYYY_MM_DD');
    if to_regclass('realtime.' || v_name) is null then
      execute format('create table realtime.%I partition of realtime.messages for values from (%L) to (%L)', v_name, v_day, v_day + 1);
      execute format('alter table realtime.%I owner to supabase_realtime_admin', v_name);
      execute format('alter table realtime.%I enable row level security', v_name);
    end if;
  end loop;
  for v_name in
    select c.relname from pg_inherits i join pg_class c on c.oid = i.inhrelid
     where i.inhparent = 'realtime.messages'::regclass and c.relname < 'messages_' || to_char(p_now::date - 3, 'YYYY_MM_DD')
  loop
    execute format('drop table realtime.%I', v_name);
  end loop;
end $$;

-- Can other sessions see what this transaction wrote? The stream knows the lower half of its number only.
create function _local.is_visible(p_xid bigint) returns boolean language sql volatile set search_path = '' as $$
  with now (snapshot, last) as (select s, pg_snapshot_xmax(s)::text::bigint from pg_current_snapshot() s),
       full_xid (xid) as (select (last & ~4294967295) + p_xid - case when (last & ~4294967295) + p_xid > last + 2147483648 then 4294967296 else 0 end
                            from now)
  select pg_visible_in_snapshot(xid::text::xid8, snapshot) from now, full_xid
$$;

-- Does one value pass one filter? Compared as the column's own type, so that 9 < 10 and not '10' < '9'.
create function _local.passes(p_type regtype, p_value text, p_op text, p_wanted text, p_negate boolean) returns boolean
language plpgsql stable set search_path = public, extensions as $$
declare
  v_passes boolean;
begin
  if p_op = 'in' then
    execute format('select $1::%s = any ($2::%s[])', p_type, p_type) into v_passes using p_value, p_wanted;
  elsif p_op = 'is' then
    execute format('select $1::%s is %s', p_type, case lower(p_wanted)
      when 'null' then 'null' when 'not_null' then 'not null' when 'true' then 'true' when 'false' then 'false' else 'unknown' end)
      into v_passes using p_value;
  elsif p_op in ('like', 'ilike', 'match', 'imatch') then
    execute format('select $1 %s $2', case p_op when 'like' then 'like' when 'ilike' then 'ilike' when 'match' then '~' else '~*' end)
      into v_passes using p_value, p_wanted;
  else
    execute format('select $1::%s %s $2::%s', p_type, case p_op
      when 'eq' then '=' when 'neq' then '<>' when 'lt' then '<' when 'lte' then '<=' when 'gt' then '>' when 'gte' then '>='
      when 'isdistinct' then 'is distinct from' end, p_type)
      into v_passes using p_value, p_wanted;
  end if;
  return coalesce(case when p_negate then not v_passes else v_passes end, false);
end $$;

-- Why a subscription cannot be made, or null. p_table '*' means every published table of the schema.
create function _local.refuse_subscription(p_role text, p_schema text, p_table text, p_filters jsonb) returns text
language plpgsql stable set search_path = public, extensions as $$
declare
  v_table regclass;
  v_filter record;
  v_type regtype;
  v_found boolean := false;
begin
  for v_table in
    select format('%I.%I', t.schemaname, t.tablename)::regclass from pg_publication_tables t
     where t.pubname = 'supabase_realtime' and p_schema in (t.schemaname, '*') and p_table in (t.tablename, '*')
  loop
    v_found := true;
    for v_filter in select f ->> 'column' as name, f ->> 'op' as op, f ->> 'value' as value, (f ->> 'negate')::boolean as negate
                      from jsonb_array_elements(p_filters) f loop
      select a.atttypid into v_type from pg_attribute a
       where a.attrelid = v_table and a.attname = v_filter.name and a.attnum > 0 and not a.attisdropped;
      if v_type is null or not has_column_privilege(p_role, v_table, v_filter.name, 'select') then
        return 'invalid column for filter ' || v_filter.name;
      end if;
      begin
        perform _local.passes(v_type, null, v_filter.op, v_filter.value, v_filter.negate);
      exception when others then
        return sqlerrm;
      end;
    end loop;
  end loop;
  return case when not v_found then '' end;   -- '' is the plain case: nothing of that name is published
end $$;

-- What one subscriber sees of one change, or null when nothing. p_new and p_old hold each column's text (json columns: the json itself);
-- p_old is the replica identity. Row security is asked under the subscriber's role and claims, by primary key, and columns without a
-- SELECT grant are left out. A deleted row can be asked no more, so with row security only its primary key is told.
create function _local.visible_change(
  p_table oid, p_action text, p_new jsonb, p_old jsonb, p_role text, p_claims text, p_filters jsonb, p_columns jsonb
) returns jsonb
language plpgsql volatile set search_path = public, extensions as $$
declare
  v_table regclass := p_table::regclass;
  v_row jsonb := coalesce(p_old, '{}') || coalesce(p_new, '{}');   -- an unchanged TOASTed value stands in the old row only
  v_secured boolean;
  v_key text[];
  v_readable text[];
  v_columns jsonb;
  v_visible boolean;
  v_where text;
  v_new jsonb;
  v_old jsonb;
begin
  select c.relrowsecurity into v_secured from pg_class c where c.oid = p_table;
  if not found then
    return null;   -- the table is gone
  end if;
  select coalesce(array_agg(a.attname::text), '{}') into v_key
    from pg_index i join pg_attribute a on a.attrelid = i.indrelid and a.attnum = any (i.indkey)
   where i.indrelid = p_table and i.indisprimary;
  select coalesce(array_agg(a.attname::text), '{}'),
         coalesce(jsonb_agg(jsonb_build_object('name', a.attname, 'type', t.typname) order by a.attnum), '[]')
    into v_readable, v_columns
    from pg_attribute a join pg_type t on t.oid = a.atttypid
   where a.attrelid = p_table and a.attnum > 0 and not a.attisdropped and has_column_privilege(p_role, p_table, a.attname, 'select')
     and (p_columns is null or p_columns ? a.attname::text or a.attname::text = any (v_key));

  if p_action <> 'DELETE' and v_key = '{}' then
    return jsonb_build_object('errors', jsonb_build_array('Error 400: Bad Request, no primary key'));
  elsif p_action <> 'DELETE' and not v_key <@ v_readable then
    return jsonb_build_object('errors', jsonb_build_array('Error 401: Unauthorized'));
  end if;

  if exists (select from jsonb_array_elements(p_filters) f
              left join pg_attribute a on a.attrelid = p_table and a.attname = f ->> 'column' and not a.attisdropped
             where a.attname is null or not v_row ? a.attname::text
                or not _local.passes(a.atttypid, v_row ->> a.attname::text, f ->> 'op', f ->> 'value', (f ->> 'negate')::boolean)) then
    return null;
  end if;

  if v_secured and p_action <> 'DELETE' then
    select string_agg(format('%I = %L', k, v_row ->> k), ' and ') into v_where from unnest(v_key) k;
    perform set_config('request.jwt.claims', p_claims, true),
            set_config('request.jwt.claim.sub', coalesce(p_claims::jsonb ->> 'sub', ''), true),
            set_config('request.jwt.claim.role', p_role, true),
            set_config('role', p_role, true);
    begin
      execute format('select exists (select from %s where %s)', v_table, v_where) into v_visible;
    exception when others then
      v_visible := false;   -- a policy that fails lets nothing through; the role is set back with the subtransaction
      perform set_config('role', 'none', true);
    end;
    perform set_config('role', 'none', true);
    if not v_visible then
      return null;
    end if;
  end if;

  -- Through the row type and back: each value becomes the JSON that PostgREST would give.
  if p_action <> 'DELETE' then
    execute format('select to_jsonb(r) from jsonb_populate_record(null::%s, $1) r', v_table) into v_new using v_row;
    select coalesce(jsonb_object_agg(k, v), '{}') into v_new from jsonb_each(v_new) e (k, v) where k = any (v_readable) and v_row ? k;
  end if;
  if p_action <> 'INSERT' then
    execute format('select to_jsonb(r) from jsonb_populate_record(null::%s, $1) r', v_table) into v_old using coalesce(p_old, '{}');
    select coalesce(jsonb_object_agg(k, v), '{}') into v_old from jsonb_each(v_old) e (k, v)
     where k = any (v_readable) and p_old ? k and (p_action <> 'DELETE' or not v_secured or k = any (v_key));
  end if;
  return jsonb_strip_nulls(jsonb_build_object('columns', v_columns)) || case p_action
    when 'INSERT' then jsonb_build_object('record', v_new)
    when 'UPDATE' then jsonb_build_object('record', v_new, 'old_record', v_old)
    else jsonb_build_object('old_record', v_old) end;
end $$;

-- @supabase/lite's Auth writes JSON through this driver as a string that holds JSON. It is made JSON again before it is stored.
create function _local.unwrap_json() returns trigger language plpgsql set search_path = '' as $$
declare
  v_name text;
  v_value jsonb;
begin
  foreach v_name in array tg_argv loop
    v_value := to_jsonb(new) -> v_name;
    if jsonb_typeof(v_value) = 'string' then
      new := jsonb_populate_record(new, jsonb_build_object(v_name, (v_value #>> '{}')::jsonb));
    end if;
  end loop;
  return new;
end $$;
create trigger unwrap_json before insert or update on auth.users for each row
  execute function _local.unwrap_json('raw_app_meta_data', 'raw_user_meta_data');
create trigger unwrap_json before insert or update on auth.identities for each row execute function _local.unwrap_json('identity_data');
