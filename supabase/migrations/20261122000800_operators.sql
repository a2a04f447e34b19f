-- Who runs the platform: users whose app_metadata says {"role": "operator"}, which only the service key can write there
-- (supabase/snippets/make-an-operator.sql). They see workers and numbers, and never anybody's words or pictures.

-- True for them, and for whoever comes as no user: workers, the dashboard, psql. By the role that was set and not by current_user, which
-- is the owner inside a definer function; and by a list of those who may, so that a role nobody thought of may not.
create function private.is_operator() returns boolean
language sql stable set search_path = '' as $$
  select case coalesce(nullif(current_setting('role', true), 'none'), session_user)
    when 'authenticated' then coalesce(auth.jwt() -> 'app_metadata' ->> 'role' = 'operator', false)
    when 'service_role' then true
    when 'postgres' then true
    when 'supabase_admin' then true
    else false end
$$;

-- Each worker, with what it does now.
create function private.fleet() returns table (
  id text, target_worker text, host text, gpu text, vram_mb integer, model text, engine text, engine_note text, version text, state text, error text,
  failed_at timestamptz, started_at timestamptz, last_seen_at timestamptz, report_seconds real, max_jobs smallint, pod_id text,
  is_live boolean, running integer, seen_seconds_ago double precision)
language sql stable security definer set search_path = '' set enable_seqscan = off as $$
  select w.id, w.target_worker, w.host, w.gpu, w.vram_mb, w.model, w.engine, w.engine_note, w.version, w.state, w.error, w.failed_at, w.started_at, w.last_seen_at,
         w.report_seconds, w.max_jobs, w.pod_id,
         private.is_live(w), coalesce(held.jobs, 0), extract(epoch from now() - w.last_seen_at)::double precision
    from public.workers w
    left join (select l.worker, count(*)::integer as jobs from private.leases l where l.state = 'held' group by l.worker) held
      on held.worker = w.id
   where (select private.is_operator())
$$;

-- Each queue in numbers: one row for each target that has jobs, or workers, or had some within a day.
create function private.queue_health() returns table (
  target_worker text, waiting integer, delayed integer, running integer, oldest_waiting_seconds double precision, live_workers integer,
  completed_last_hour integer, failed_last_hour integer, cancelled_last_hour integer,
  wait_seconds_p50 double precision, wait_seconds_p95 double precision, run_seconds_p50 double precision, failures_last_day jsonb,
  starting_workers integer, stopping_workers integer, why_no_more text,
  runpod_error text, runpod_attempts integer, runpod_next_try_at timestamptz)
language sql stable security definer set search_path = '' set enable_seqscan = off as $$
  with active as (
    select l.target_worker,
           count(*) filter (where l.state = 'waiting' and l.run_at <= now())::integer as waiting,
           count(*) filter (where l.state = 'waiting' and l.run_at > now())::integer as delayed,
           count(*) filter (where l.state = 'held')::integer as running,
           extract(epoch from now() - min(j.created_at) filter (where l.state = 'waiting' and l.run_at <= now())) as oldest
      from private.leases l join public.jobs j on j.id = l.job_id where l.state <> 'ended' group by l.target_worker),
  ended as (
    select j.target_worker,
           count(*) filter (where j.status = 'completed')::integer as completed,
           count(*) filter (where j.status = 'failed')::integer as failed,
           count(*) filter (where j.status = 'cancelled')::integer as cancelled,
           percentile_cont(array[0.5, 0.95]) within group (order by extract(epoch from j.started_at - j.created_at)) as wait,
           percentile_cont(0.5) within group (order by extract(epoch from j.completed_at - j.started_at))
             filter (where j.status = 'completed') as run
      from public.jobs j where j.completed_at > now() - interval '1 hour' group by j.target_worker),
  failures as (
    select c.target_worker, jsonb_object_agg(c.error_code, c.jobs) as by_code
      from (select j.target_worker, j.error_code, count(*) as jobs from public.jobs j
             where j.completed_at > now() - interval '1 day' and j.error_code is not null and j.status = 'failed' group by j.target_worker, j.error_code) c
     group by c.target_worker),
  workers as (
    select w.target_worker, count(*) filter (where w.is_live)::integer as live from private.fleet() w group by w.target_worker),
  starts as (
    select s.target_worker,
           count(*) filter (where s.state in ('asking', 'requested'))::integer as starting,
           count(*) filter (where s.state = 'stopping')::integer as stopping,
           (array_agg(s.error order by s.next_try_at desc) filter (where s.state in ('asking', 'stopping') and s.error is not null))[1] as error,
           max(s.attempts) filter (where s.state in ('asking', 'stopping'))::integer as attempts,
           min(s.next_try_at) filter (where s.state in ('asking', 'stopping')) as next_try_at
      from public.worker_starts s where s.state <> 'ended' group by s.target_worker)
  select target_worker, coalesce(a.waiting, 0), coalesce(a.delayed, 0), coalesce(a.running, 0), a.oldest::double precision,
         coalesce(w.live, 0), coalesce(e.completed, 0), coalesce(e.failed, 0), coalesce(e.cancelled, 0),
         e.wait[1], e.wait[2], e.run, coalesce(f.by_code, '{}'),
         coalesce(s.starting, 0), coalesce(s.stopping, 0),
         case when a.waiting > 0 then (select d.reason from private.fleet_decision(target_worker) d) end,
         s.error, s.attempts, s.next_try_at
    from active a full join ended e using (target_worker) full join failures f using (target_worker)
         full join workers w using (target_worker) full join starts s using (target_worker)
   where (select private.is_operator())
$$;

create view public.fleet with (security_invoker = true) as select * from private.fleet();
create view public.queue_health with (security_invoker = true) as select * from private.queue_health();

revoke execute on function private.is_operator(), private.fleet(), private.queue_health() from public, anon, authenticated, service_role;
grant execute on function private.is_operator(), private.fleet(), private.queue_health() to authenticated, service_role;
revoke all on public.fleet, public.queue_health from anon, authenticated, service_role;
grant select on public.fleet, public.queue_health to authenticated, service_role;

comment on function private.is_operator() is 'Whether the caller is an operator, a worker, or somebody with a connection of their own.';
comment on function private.fleet() is 'What public.fleet shows; nothing to whoever is no operator.';
comment on function private.queue_health() is 'What public.queue_health shows; nothing to whoever is no operator.';
comment on view public.fleet is 'Each worker: on what it runs, how it is, what it holds. For operators and the dashboard.';
comment on column public.fleet.id is 'WORKER_ID, with -gpu0, -gpu1, … on a host of several GPUs.';
comment on column public.fleet.target_worker is 'The kind of worker: it takes the jobs of that target_worker.';
comment on column public.fleet.host is 'The name of the host.';
comment on column public.fleet.gpu is 'The GPU''s name; absent on a CPU.';
comment on column public.fleet.vram_mb is 'The GPU''s memory, in MiB.';
comment on column public.fleet.model is 'The checkpoint that it has loaded.';
comment on column public.fleet.engine is 'fast, "fast, FP8", or reference: diffusers as it is.';
comment on column public.fleet.engine_note is 'Why it is not the fast one, or not with FP8; absent where nothing is in the way.';
comment on column public.fleet.version is 'The worker''s version.';
comment on column public.fleet.state is 'What it said last: starting, ready, draining, stopped or failed.';
comment on column public.fleet.error is 'Why it last failed, as "code: message".';
comment on column public.fleet.failed_at is 'When it last failed.';
comment on column public.fleet.started_at is 'When it first reported.';
comment on column public.fleet.last_seen_at is 'When it last reported.';
comment on column public.fleet.report_seconds is 'So often it reports: a quarter of its LEASE_SECONDS.';
comment on column public.fleet.max_jobs is 'So many jobs it holds at most before they are painted: its MAX_CONCURRENT_JOBS.';
comment on column public.fleet.pod_id is 'The RunPod pod that it runs in; absent elsewhere.';
comment on column public.fleet.is_live is 'It has neither stopped nor failed, and was heard of within four times report_seconds; or within 10 minutes while it starts.';
comment on column public.fleet.running is 'Jobs that it holds now.';
comment on column public.fleet.seen_seconds_ago is 'Seconds since it last reported.';
comment on view public.queue_health is 'Each target''s queue in numbers: how many wait and for how long, who works, what failed. For operators and the dashboard.';
comment on column public.queue_health.target_worker is 'The kind of worker that the jobs ask for.';
comment on column public.queue_health.waiting is 'Jobs that could be claimed now.';
comment on column public.queue_health.delayed is 'Jobs that are put off after a failed attempt.';
comment on column public.queue_health.running is 'Jobs that a worker holds.';
comment on column public.queue_health.oldest_waiting_seconds is 'How long ago the oldest waiting job was asked for.';
comment on column public.queue_health.live_workers is 'Workers that live: those with fleet.is_live.';
comment on column public.queue_health.completed_last_hour is 'Jobs completed in the last hour.';
comment on column public.queue_health.failed_last_hour is 'Jobs failed in the last hour.';
comment on column public.queue_health.cancelled_last_hour is 'Jobs cancelled in the last hour.';
comment on column public.queue_health.wait_seconds_p50 is 'Seconds from asking to the last claim, of the last hour''s jobs: the median.';
comment on column public.queue_health.wait_seconds_p95 is 'The same: 95 of 100 waited less.';
comment on column public.queue_health.run_seconds_p50 is 'Seconds from the claim to the end, of the last hour''s completed jobs: the median.';
comment on column public.queue_health.starting_workers is 'Workers that RunPod was asked for and that are not ready yet.';
comment on column public.queue_health.stopping_workers is 'Pods that RunPod is to remove and has not yet.';
comment on column public.queue_health.why_no_more is 'Why no further worker is asked for while jobs wait; absent where one is, or nothing waits.';
comment on column public.queue_health.runpod_error is 'What RunPod answered last where it would not start or remove a pod.';
comment on column public.queue_health.runpod_attempts is 'So often it was asked in vain.';
comment on column public.queue_health.runpod_next_try_at is 'When it is asked again.';
comment on column public.queue_health.failures_last_day is 'Failed jobs of the last day by error_code: {"out_of_memory": 2}.';
