-- A witness of the harness's own, beside the project's history: every change of a job's state or lease, and every object that comes or
-- goes, with the time at which it happened. Written by triggers in the same transaction, so that it is as true as the rows themselves.
create schema chaos;

create table chaos.changes (
  id               bigint generated always as identity primary key,
  at               timestamptz not null default clock_timestamp(),
  operation        text not null,
  job_id           uuid not null,
  old_status       text,
  new_status       text,
  token            uuid,
  lease_until      timestamptz,
  worker           text,
  claims           integer,
  attempts         integer,
  crashes          integer,
  error_code       text,
  cancel_requested boolean
);
create index on chaos.changes (job_id, id);

-- By its name before the triggers of the project: of a lease that is reaped it sees what it was.
create function chaos.note_job() returns trigger language plpgsql security definer set search_path = '' as $$
declare
  v_job public.jobs;
  v_lease private.leases;
begin
  v_job := case tg_op when 'DELETE' then old else new end;
  select * into v_lease from private.leases l where l.job_id = v_job.id;
  insert into chaos.changes (operation, job_id, old_status, new_status, token, lease_until, worker, claims, attempts,
                             crashes, error_code, cancel_requested)
  values (tg_op, v_job.id, case when tg_op <> 'INSERT' then old.status end, case when tg_op <> 'DELETE' then new.status end,
          v_lease.token, v_lease.expires_at, v_lease.worker, v_lease.claims, v_job.attempts, v_lease.crashes,
          v_job.error_code, v_job.cancel_requested_at is not null);
  return null;
end $$;
create trigger chaos_note after insert or delete on public.jobs for each row execute function chaos.note_job();
create trigger chaos_note_change after update on public.jobs
  for each row when (old.status is distinct from new.status or old.completed_at is not null)
  execute function chaos.note_job();

create table chaos.objects (
  id        bigint generated always as identity primary key,
  at        timestamptz not null default clock_timestamp(),
  operation text not null,
  bucket    text not null,
  name      text not null
);

create function chaos.note_object() returns trigger language plpgsql security definer set search_path = '' as $$
declare
  v_object storage.objects;
begin
  v_object := case tg_op when 'DELETE' then old else new end;
  insert into chaos.objects (operation, bucket, name) values (tg_op, v_object.bucket_id, v_object.name);
  if tg_op = 'INSERT' then
    perform pg_notify('chaos_uploads', v_object.name);   -- for strikes that wait for a delivery
  end if;
  return null;
end $$;
create trigger chaos_note after insert or update or delete on storage.objects for each row execute function chaos.note_object();
