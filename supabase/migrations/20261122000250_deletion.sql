-- Deleting. Rows go at once, and with them every way to their pictures that a policy opens; their objects are named here, and a worker
-- removes them through Storage (see sweep_orphans), since a DELETE in SQL would leave the files behind.

-- Objects whose rows are gone. One stays here until Storage has it no more, so that a worker that dies in between loses none;
-- what is uploaded under its name after asked_at is another object, and stays.
create table private.removals (
  bucket   text not null,
  path     text not null,
  job_id   uuid,   -- null for a reference
  asked_at timestamptz not null default now(),
  primary key (bucket, path)
);
create index removals_asked_at_idx on private.removals (asked_at);
create index removals_job_idx on private.removals (job_id) where job_id is not null;
revoke all on private.removals from public, anon, authenticated, service_role;
grant select, delete on private.removals to service_role;

-- Whoever deletes the rows: their user, an operator, retire_jobs, or the end of the user's account.
create function private.job_images_deleted() returns trigger
language plpgsql security definer set search_path = '' as $$
begin
  insert into private.removals (bucket, path, job_id)
  select o.bucket, n.path, o.job_id from old_rows o cross join lateral (values (o.path), (o.thumbnail_path)) n (path)
  on conflict do nothing;
  return null;
end $$;
create trigger job_images_deleted after delete on public.job_images
  referencing old table as old_rows for each statement execute function private.job_images_deleted();

-- The user's pages hear of it, and the worker that paints it stops.
create function private.jobs_deleted() returns trigger
language plpgsql security definer set search_path = '' as $$
begin
  if old.status = 'processing' then
    perform private.send(jsonb_build_object('id', old.id), 'cancel', 'worker:' || old.target_worker);
  end if;
  perform private.send(
    jsonb_build_object('schema', tg_table_schema, 'table', tg_table_name, 'operation', tg_op,
                       'record', null, 'old_record', jsonb_build_object('id', old.id, 'status', old.status)),
    tg_op, 'user:' || old.user_id);
  return null;
end $$;
create trigger jobs_deleted after delete on public.jobs
  for each row execute function private.jobs_deleted();

-- An id may be used again once the pictures of the job that had it are removed: not before, since the new ones could bear their names.
create function private.jobs_id_is_free() returns trigger
language plpgsql security definer set search_path = '' as $$
begin
  if exists (select from private.removals r where r.job_id = new.id) then
    raise exception 'duplicate key value violates unique constraint "jobs_pkey"'
      using errcode = 'unique_violation', constraint = 'jobs_pkey',
            detail = 'A job of this id was deleted, and its pictures are not removed yet.', hint = 'Take another id.';
  end if;
  return new;
end $$;
create trigger jobs_id_is_free before insert on public.jobs
  for each row execute function private.jobs_id_is_free();

-- Deletes those of the jobs that are the caller's own, waiting, running or over, with their pictures and their history. Returns how many.
-- The private halves see everybody's rows, of which they touch the caller's only; REST does not reach them.
create function private.delete_jobs(p_jobs uuid[]) returns integer
language sql volatile security definer set search_path = '' as $$
  with own as materialized (
    select j.id from public.jobs j where j.id = any (p_jobs) and j.user_id = (select auth.uid()) order by j.id for update),
  gone as (
    delete from public.jobs j where j.id = any (array (select own.id from own)) returning j.id)
  select count(*)::integer from gone
$$;
create function public.delete_jobs(p_jobs uuid[]) returns integer
language sql volatile set search_path = '' return private.delete_jobs(p_jobs);

-- Deletes up to a thousand of the caller's own jobs and their uploaded references. Returns how many jobs: to be called until it is 0.
create function private.delete_everything() returns integer
language plpgsql volatile security definer set search_path = '' as $$
declare
  v_user constant uuid := auth.uid();
begin
  insert into private.removals (bucket, path)
  select o.bucket_id, o.name from storage.objects o
   where o.bucket_id = 'reference_images'
     and o.name collate "C" >= v_user || '/' and o.name collate "C" < v_user || '0'   -- which follows '/'
  on conflict do nothing;
  return private.delete_jobs(array (select j.id from public.jobs j where j.user_id = v_user order by j.created_at limit 1000));
end $$;
create function public.delete_everything() returns integer
language sql volatile set search_path = '' return private.delete_everything();

revoke execute on function
  private.job_images_deleted(), private.jobs_deleted(), private.jobs_id_is_free(), private.delete_jobs(uuid[]), private.delete_everything()
  from public, anon, authenticated, service_role;
revoke execute on function public.delete_jobs(uuid[]), public.delete_everything() from public, anon, service_role;
grant execute on function
  private.delete_jobs(uuid[]), public.delete_jobs(uuid[]), private.delete_everything(), public.delete_everything()
  to authenticated;
