-- What happened to each job, to be read by people: in the dashboard's table editor, by supabase/snippets, or by a user of their own jobs.
-- It has no prompt, no reference and no address of a picture. Row security of the tables beneath decides what one sees.

-- What the queue knows of a job, for its user and for operators; without the token.
create function private.lease_facts(p_job uuid) returns table (claims integer, crashes smallint, worker text, cost real)
language sql stable security definer set search_path = '' as $$
  select l.claims, l.crashes, l.worker, l.cost from private.leases l
   where l.job_id = p_job and (l.user_id = (select auth.uid()) or (select private.is_operator()))
$$;
revoke execute on function private.lease_facts(uuid) from public, anon, authenticated, service_role;
grant execute on function private.lease_facts(uuid) to authenticated, service_role;

create view public.job_audit with (security_invoker = true) as
select j.id as job_id, j.user_id, j.job_type, j.target_worker, j.status,
       j.created_at as asked_at, h.first_claimed_at, j.completed_at as ended_at, j.cancel_requested_at,
       h.wait_seconds, h.run_seconds, (j.metrics ->> 'generation_time')::double precision as gpu_seconds,
       j.attempts, l.claims, l.crashes, l.worker, j.error_code, j.error_message,
       array(select w.warning ->> 'code' from jsonb_array_elements(j.warnings) w (warning)) as warnings,
       j.batch_size, j.priority, l.cost,
       (select count(*) from public.job_images i where i.job_id = j.id) as images,
       j.metrics ->> 'trace_id' as trace_id, h.history
  from public.jobs j
  left join lateral private.lease_facts(j.id) l on true
  cross join lateral (
    select min(e.created_at) filter (where e.status = 'processing') as first_claimed_at,
           round(sum(e.seconds) filter (where e.status = 'queued'), 3)::double precision as wait_seconds,
           round(sum(e.seconds) filter (where e.status = 'processing'), 3)::double precision as run_seconds,
           string_agg(
             case when e.after_seconds is null then to_char(e.created_at at time zone 'utc', 'YYYY-MM-DD HH24:MI:SS "UTC"')
                  else '+' || e.after_seconds || ' s' end
             || ' ' || e.status || case when e.status = 'processing' then ' by ' || e.worker else '' end
             || coalesce(': ' || e.error_code, ''), E'\n' order by e.id) as history
      from (select e.id, e.status, e.worker, e.error_code, e.created_at,
                   greatest(0, extract(epoch from coalesce(lead(e.created_at) over (order by e.id), now()) - e.created_at)) as seconds,
                   round(extract(epoch from e.created_at - lag(e.created_at) over (order by e.id)), 2) as after_seconds
              from public.job_events e where e.job_id = j.id) e
  ) h;

revoke all on public.job_audit from anon, authenticated, service_role;
grant select on public.job_audit to authenticated, service_role;

comment on view public.job_audit is
  'Each job as its history tells: who, when, how long, by which worker, and what went wrong. Without any prompt; row security holds.';
comment on column public.job_audit.job_id is 'The id of the job.';
comment on column public.job_audit.user_id is 'Who asked.';
comment on column public.job_audit.job_type is 'sdxl_image_fast or sdxl_image_high.';
comment on column public.job_audit.target_worker is 'The kind of worker that takes it.';
comment on column public.job_audit.status is 'queued, processing, completed, failed or cancelled.';
comment on column public.job_audit.asked_at is 'When it was inserted.';
comment on column public.job_audit.first_claimed_at is 'When a worker first claimed it.';
comment on column public.job_audit.ended_at is 'When it ended, however it did.';
comment on column public.job_audit.cancel_requested_at is 'When its user asked to stop.';
comment on column public.job_audit.wait_seconds is 'All the time that it was queued, pauses between attempts included; until now, if it still is.';
comment on column public.job_audit.run_seconds is 'All the time that a worker held it; until now, if one still does.';
comment on column public.job_audit.gpu_seconds is 'The last painting''s time on the GPU.';
comment on column public.job_audit.attempts is 'Attempts that count.';
comment on column public.job_audit.claims is 'How often it was claimed.';
comment on column public.job_audit.crashes is 'Workers in a row that died while painting it.';
comment on column public.job_audit.worker is 'Who claimed it last.';
comment on column public.job_audit.error_code is 'Why it failed, or why its last attempt did.';
comment on column public.job_audit.error_message is 'The same in words.';
comment on column public.job_audit.warnings is 'Codes of what went otherwise than asked for.';
comment on column public.job_audit.batch_size is 'Pictures asked for.';
comment on column public.job_audit.priority is 'Lower goes first.';
comment on column public.job_audit.cost is 'Work in units of one 1024 x 1024 image at 25 steps.';
comment on column public.job_audit.images is 'Pictures that there are.';
comment on column public.job_audit.trace_id is 'Its trace, where the worker sends traces.';
comment on column public.job_audit.history is 'One line for each change of its status, with the seconds since the one before.';

comment on function private.backoff(integer, real, real) is 'The pause before the next attempt: exponential, with jitter.';
comment on function public.reap_jobs(text, integer) is 'Ends or queues again the jobs whose lease ran out. Workers call it through claim_jobs.';
comment on function public.claim_jobs(text, text, text[], uuid, integer, integer) is 'Takes waiting jobs under a lease, fairly between users. For workers.';
comment on function public.heartbeat_jobs(uuid[], uuid, integer) is 'Renews leases, and says which jobs are cancelled or lost. For workers.';
comment on function public.finish_job(uuid, uuid, text, jsonb, jsonb, jsonb, jsonb, text) is
  'Ends a job with its images or its error, or gives it back. For workers; the only way to publish images.';
comment on function public.sweep_orphans(integer, real) is 'Names objects of deleted jobs, and those that no job will ever publish. For workers.';
comment on function public.retire_jobs(integer, real) is 'Deletes finished jobs that are older than public.retention says. For workers.';
comment on function public.report_worker(text, text, jsonb) is 'Says that a worker lives, or why it does not. For workers.';
comment on function public.jobs_ahead(uuid) is 'How many jobs come before a waiting job of one''s own, up to 1000; null for any other.';
comment on function private.jobs_ahead(uuid) is 'The half of public.jobs_ahead that sees everybody''s jobs.';
comment on function private.lease_facts(uuid) is 'Claims, crashes, worker and cost of a job, for its user and for operators.';
comment on function private.jobs_before_insert() is 'Lets the inserts of one user go one after the other.';
comment on function private.jobs_enqueue() is 'Gives a new job its place in the queue; refuses more than 200 active ones of one user.';
comment on function private.jobs_moved() is 'Keeps the place in the queue in step with target_worker, job_type, priority and run_at of the job.';
comment on function private.jobs_before_update() is 'A finished job never changes; a queued one that is cancelled ends at once.';
comment on function private.send(jsonb, text, text) is 'realtime.send, whose failure never stops a job.';
comment on function private.wake(text, bigint) is 'Tells as many workers as so many new jobs may need.';
comment on function private.jobs_wake() is 'Wakes the workers when jobs are inserted.';
comment on function private.jobs_changed() is 'Ends the lease with its job, writes job_events, and tells the user and the workers.';
comment on function public.delete_jobs(uuid[]) is 'Deletes jobs of one''s own, with their pictures and history; a running one is stopped. Returns how many.';
comment on function public.delete_everything() is
  'Deletes up to a thousand of one''s own jobs, and one''s uploaded references. Returns how many jobs: call it until it is 0.';
comment on function private.delete_jobs(uuid[]) is 'The half of public.delete_jobs that may delete rows.';
comment on function private.delete_everything() is 'The half of public.delete_everything that may delete rows.';
comment on function private.job_images_deleted() is 'Has the objects of deleted pictures removed.';
comment on function private.jobs_deleted() is 'Tells the pages of its user that a job is gone, and the worker that paints it.';
comment on function private.jobs_id_is_free() is 'Refuses the id of a deleted job until its pictures are removed.';
comment on table private.removals is 'Objects whose rows are gone, for a worker to remove through Storage.';
comment on column private.removals.bucket is 'The bucket of the object.';
comment on column private.removals.path is 'The path of the object.';
comment on column private.removals.job_id is 'The job that it was a picture of; absent for a reference.';
comment on column private.removals.asked_at is 'Since when.';
comment on table private.reaping is 'When the claims of each target look for dead leases again.';
comment on column private.reaping.target_worker is 'The target.';
comment on column private.reaping.next_at is 'Not before then.';
