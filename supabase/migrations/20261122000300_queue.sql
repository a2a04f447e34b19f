-- The queue: the only functions that change a job's state. The worker calls them with its service key and chooses the lease token, so
-- that a call whose reply was lost can be made again without further effect.
-- `set enable_seqscan = off`: a plan that was made, and kept, while the table was empty would read all of it when it is full.

-- Waiting time before the next attempt: exponential with full jitter, in seconds.
create function private.backoff(p_attempt integer, p_base real default 5, p_cap real default 300) returns interval
language sql volatile set search_path = '' as $$
  select make_interval(secs => random() * least(p_cap, p_base * power(2, greatest(p_attempt, 1) - 1)))
$$;

-- Ends or requeues the jobs whose lease ran out: their worker died or lost its way. Returns how many.
create function public.reap_jobs(p_target text, p_limit integer default 50) returns integer
language plpgsql volatile set search_path = '' set enable_seqscan = off as $$
declare
  v_reaped integer;
begin
  with dead as materialized (
    select j.id from public.jobs j
     where j.status = 'processing' and j.target_worker = p_target and j.lease_expires_at < now()
     limit p_limit for no key update skip locked)
  update public.jobs j
     set status = case when j.cancel_requested_at is not null then 'cancelled'
                       when j.attempts >= j.max_attempts then 'failed' else 'queued' end,
         completed_at = case when j.cancel_requested_at is not null or j.attempts >= j.max_attempts then now() end,
         run_at = now() + private.backoff(j.attempts),
         lease_expires_at = null,
         error_code = 'lease_expired',
         error_message = 'The worker stopped answering.'
   where j.id = any (array (select dead.id from dead));
  get diagnostics v_reaped = row_count;
  return v_reaped;
end $$;

-- When the claims of each target look for dead leases again; one row a target.
create table private.reaping (
  target_worker text primary key,
  next_at       timestamptz not null
);

-- Takes up to p_limit waiting jobs under a lease.
-- Returns {"jobs": [row, …], "more": work was seen but locked by others, "next_run_in_ms": until the next delayed job, or until the next
-- lease ends unless it is renewed (then somebody must look), or null};
-- each row comes with the "negative_preset" of its job type.
-- Dead leases are looked for once a second and not at every claim: to look is to visit every job that is processing.
-- The planner traps that this shape avoids: a parameter as LIMIT is planned for a tenth of the backlog, a constant one for one row;
-- and FOR UPDATE would skip rows whose children are being written (FOR NO KEY UPDATE does not).
create function public.claim_jobs(
  p_worker text, p_target text, p_job_types text[], p_token uuid, p_limit integer default 1, p_lease_seconds integer default 60
) returns jsonb
language plpgsql volatile set search_path = '' set enable_seqscan = off set statement_timeout = '5s' as $$
declare
  v_lease_expires_at constant timestamptz := now() + make_interval(secs => p_lease_seconds);
  v_id uuid;
  v_ids uuid[];
  v_jobs jsonb;
  v_more boolean;
  v_next timestamptz;
begin
  perform pg_advisory_xact_lock(hashtextextended('claim ' || p_token, 0));   -- made again while the first one still runs, it waits
  if not exists (select from private.reaping r where r.target_worker = p_target and r.next_at between now() and now() + interval '1 s')
     and pg_try_advisory_xact_lock(hashtextextended('reaping of ' || p_target, 0)) then
    insert into private.reaping values (p_target, now() + interval '1 s')
    on conflict (target_worker) do update set next_at = excluded.next_at;
    perform public.reap_jobs(p_target);
  end if;
  with again as (   -- the same call made again: its reply was lost
    update public.jobs j set lease_expires_at = v_lease_expires_at
     where j.status = 'processing' and j.target_worker = p_target and j.lease_token = p_token returning j.id)
  select array_agg(a.id) into v_ids from again a;
  if v_ids is null then
    for place in 1 .. p_limit loop
      update public.jobs j
         set status = 'processing', progress = 0, attempts = j.attempts + 1, claims = j.claims + 1, started_at = now(),
             error_code = null, error_message = null,
             lease_token = p_token, leased_by = p_worker, lease_expires_at = v_lease_expires_at
       where j.id = (select w.id from public.jobs w
                      where w.status = 'queued' and w.target_worker = p_target and w.job_type = any (p_job_types)
                        and w.run_at <= now()
                      order by w.priority, w.fair_key, w.id limit 1 for no key update skip locked)
      returning j.id into v_id;
      exit when not found;
      v_ids := v_ids || v_id;
    end loop;
  end if;
  if v_ids is null then
    select exists (select from public.jobs j
                    where j.status = 'queued' and j.target_worker = p_target and j.job_type = any (p_job_types) and j.run_at <= now()),
           least((select min(j.run_at) from public.jobs j
                   where j.status = 'queued' and j.target_worker = p_target and j.job_type = any (p_job_types) and j.run_at > now()),
                 (select greatest(min(j.lease_expires_at), now() + interval '1 s') from public.jobs j
                   where j.status = 'processing' and j.target_worker = p_target having count(*) > 0))
      into v_more, v_next;
  else
    select jsonb_agg(to_jsonb(j) || jsonb_build_object('negative_preset', coalesce(n.negative_prompt, ''))
                     order by j.priority, j.fair_key, j.id) into v_jobs
      from public.jobs j left join public.negative_presets n on n.job_type = j.job_type where j.id = any (v_ids);
  end if;
  return jsonb_build_object('jobs', coalesce(v_jobs, '[]'), 'more', coalesce(v_more, true),
                            'next_run_in_ms', ceil(extract(epoch from v_next - now()) * 1000)::bigint);
end $$;

-- Renews the leases held under p_token. p_progress is {"<job id>": 0..100}.
-- Verdict of each job: ok | cancel (its user asked to stop) | lost (the lease belongs to somebody else, or to nobody).
-- The lease is tested and not the status: with the status the planner prefers the wrong index.
create function public.heartbeat_jobs(p_ids uuid[], p_token uuid, p_lease_seconds integer default 60, p_progress jsonb default '{}')
returns table (id uuid, verdict text)
language plpgsql volatile set search_path = '' set enable_seqscan = off as $$
#variable_conflict use_column
begin
  return query
  with renewed as (
    update public.jobs j
       set lease_expires_at = now() + make_interval(secs => p_lease_seconds),
           progress = greatest(j.progress, coalesce((p_progress ->> j.id::text)::smallint, 0))
     where j.id = any (p_ids) and j.lease_token = p_token and j.lease_expires_at is not null
    returning j.id, j.cancel_requested_at)
  select asked.id, case when r.id is null then 'lost' when r.cancel_requested_at is not null then 'cancel' else 'ok' end
    from unnest(p_ids) asked (id) left join renewed r on r.id = asked.id;
end $$;

-- Ends a job, or gives it back. Outcomes: completed (p_images holds one object for each image, with the columns of job_images) |
-- failed | retry (queued again after a pause, or failed when attempts are used up) | cancelled | released (the worker shuts down:
-- queued again at once, the attempt is given back) | crashed (the worker or its GPU died while painting this job: as released, but
-- the second time in a row the job is failed as poison_job). p_error is {"code", "message"}, p_warnings an array of the same.
-- Returns ok | already (this call was made before) | lost (the lease is no longer the caller's; nothing was written).
create function public.finish_job(
  p_id uuid, p_token uuid, p_outcome text, p_images jsonb default '[]', p_error jsonb default null, p_metrics jsonb default null,
  p_warnings jsonb default '[]', p_enhanced_prompt text default null
) returns text
language plpgsql volatile set search_path = '' set enable_seqscan = off as $$
declare
  v_job public.jobs;
  v_status text;
  v_poison boolean;
begin
  if p_outcome is null or p_outcome not in ('completed', 'failed', 'retry', 'cancelled', 'released', 'crashed') then
    raise exception 'unknown outcome %', p_outcome
      using errcode = 'PT400', hint = 'completed, failed, retry, cancelled, released or crashed';
  end if;
  select * into v_job from public.jobs where id = p_id for no key update;
  if not found or v_job.lease_token is distinct from p_token then
    return 'lost';
  end if;
  if v_job.lease_expires_at is null then   -- the lease ended under this token: by this very call, or by the reaper
    return case when v_job.error_code is distinct from 'lease_expired'
                 and (v_job.status = p_outcome
                      or (p_outcome in ('retry', 'released', 'crashed') and v_job.status in ('queued', 'cancelled'))
                      or (p_outcome in ('retry', 'crashed') and v_job.status = 'failed'))
                then 'already' else 'lost' end;
  end if;
  v_poison := p_outcome = 'crashed' and v_job.crashes >= 1 and v_job.cancel_requested_at is null;
  v_status := case
    when p_outcome in ('completed', 'failed', 'cancelled') then p_outcome
    when v_job.cancel_requested_at is not null then 'cancelled'
    when v_poison or (p_outcome = 'retry' and v_job.attempts >= v_job.max_attempts) then 'failed'
    else 'queued' end;
  if v_status = 'completed' then
    if jsonb_array_length(p_images) <> v_job.batch_size then
      raise exception 'a completed job of batch_size % needs as many images, not %', v_job.batch_size, jsonb_array_length(p_images)
        using errcode = 'PT400';
    end if;
    insert into public.job_images (job_id, index, bucket, path, thumbnail_path, seed, width, height, mime_type, bytes, sha256, similarity_score)
    select p_id, i.index, i.bucket, i.path, i.thumbnail_path, i.seed, i.width, i.height, i.mime_type, i.bytes, i.sha256, i.similarity_score
      from jsonb_populate_recordset(null::public.job_images, p_images) i;
  end if;
  update public.jobs j
     set status = v_status,
         progress = case v_status when 'completed' then 100 when 'queued' then 0 else j.progress end,
         completed_at = case when v_status <> 'queued' then now() end,
         lease_expires_at = null,
         error_code = case when v_poison then 'poison_job' when v_status in ('failed', 'queued') then p_error ->> 'code' end,
         error_message = case when v_poison then 'This job stopped two workers in a row.'
                              when v_status in ('failed', 'queued') then p_error ->> 'message' end,
         metrics = coalesce(p_metrics, j.metrics),
         warnings = p_warnings,
         enhanced_prompt = coalesce(p_enhanced_prompt, j.enhanced_prompt),
         attempts = case when p_outcome in ('released', 'crashed') and not v_poison then j.attempts - 1 else j.attempts end,
         crashes = case p_outcome when 'crashed' then j.crashes + 1 when 'released' then j.crashes else 0 end,
         run_at = case when p_outcome = 'retry' then now() + private.backoff(j.attempts) else j.run_at end
   where j.id = p_id;
  return 'ok';
end $$;

-- Looks through the next p_limit output objects for orphans: those that no job published, of jobs that can no longer publish them.
-- Returns their buckets and paths, for the worker to remove through Storage. The whole fleet shares one place to go on from, so the
-- cost does not grow with the number of objects; a call within p_pause_seconds of the last one returns nothing.
-- Names that are not of the worker's making (<user id>/<job id>/<claim>-<index>…) are left alone.
create function public.sweep_orphans(p_limit integer default 1000, p_pause_seconds real default 15)
returns table (bucket text, path text)
language plpgsql volatile set search_path = '' set enable_seqscan = off as $$
#variable_conflict use_column
declare
  v_from private.sweep;
  v_buckets text[];
  v_paths text[];
  v_seen integer;
begin
  select * into v_from from private.sweep s
   where s.next_at not between now() and now() + make_interval(secs => p_pause_seconds) for update skip locked;
  if not found then
    return;
  end if;
  select array_agg(o.bucket_id order by o.bucket_id, o.name), array_agg(o.name order by o.bucket_id, o.name), count(*)
    into v_buckets, v_paths, v_seen
    from (select o.bucket_id, o.name from storage.objects o
           where o.bucket_id in ('sdxl_image_fast', 'sdxl_image_high') and (o.bucket_id, o.name) > (v_from.bucket, v_from.path)
           order by o.bucket_id, o.name limit p_limit) o;
  update private.sweep s
     set bucket = case when v_seen < p_limit then '' else v_buckets[v_seen] end,
         path = case when v_seen < p_limit then '' else v_paths[v_seen] end,
         next_at = now() + make_interval(secs => p_pause_seconds)
   where s.only_row;
  return query   -- scalar subqueries and not EXISTS: each object is looked up by itself, and nothing is joined as a whole
  select o.bucket, o.path
    from unnest(v_buckets, v_paths) o (bucket, path)
   where case when o.path ~ '^[0-9a-f-]{36}/[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}/[0-9]+-[0-9]\.' then
           coalesce((select j.completed_at is not null from public.jobs j where j.id = split_part(o.path, '/', 2)::uuid), true)
           and (select count(*) from public.job_images i where i.path = o.path and i.bucket = o.bucket) = 0
           and (select count(*) from public.job_images i where i.thumbnail_path = o.path and i.bucket = o.bucket) = 0
         end;
end $$;

-- Deletes up to p_limit finished jobs that are older than public.retention says, oldest first, and names their objects, for the worker
-- to remove through Storage; what it does not get to is an orphan then, and swept. A call within p_pause_seconds of the last one, by
-- whichever worker, deletes nothing. What is known of workers and starts that are long gone goes with them.
create function public.retire_jobs(p_limit integer default 200, p_pause_seconds real default 15)
returns table (bucket text, path text)
language plpgsql volatile set search_path = '' set enable_seqscan = off as $$
#variable_conflict use_column
declare
  v_retention public.retention;
  v_before timestamptz;
begin
  select * into v_retention from public.retention r
   where r.days is not null and r.next_at not between now() and now() + make_interval(secs => p_pause_seconds) for update skip locked;
  if not found then
    return;
  end if;
  update public.retention r set next_at = now() + make_interval(secs => p_pause_seconds) where r.only_row;
  v_before := now() - make_interval(days => v_retention.days);
  delete from public.workers w where w.last_seen_at < v_before;
  delete from public.worker_starts s where s.ended_at < v_before;
  return query
  with old as materialized (
    select j.id from public.jobs j where j.completed_at < v_before order by j.completed_at limit p_limit for update skip locked),
  objects as materialized (
    select i.bucket, i.path, i.thumbnail_path from public.job_images i where i.job_id = any (array (select old.id from old))),
  gone as (
    delete from public.jobs j where j.id = any (array (select old.id from old)))
  select o.bucket, n.path from objects o cross join lateral (values (o.path), (o.thumbnail_path)) n (path);
end $$;

-- Says that a worker lives, or why it does not: p_facts is {"target_worker", "host", "gpu", "vram_mb", "model", "version", "error",
-- "report_seconds", "max_jobs", "idle_seconds", "pod_id", "start_id"}; what is absent is null, or the column's default.
create function public.report_worker(p_worker text, p_state text, p_facts jsonb) returns void
language sql volatile set search_path = '' as $$
  insert into public.workers as w (id, target_worker, host, gpu, vram_mb, model, version, state, error, failed_at,
                                   report_seconds, max_jobs, idle_since, pod_id, start_id)
  values (p_worker, p_facts ->> 'target_worker', p_facts ->> 'host', p_facts ->> 'gpu', (p_facts ->> 'vram_mb')::integer,
          p_facts ->> 'model', p_facts ->> 'version', p_state, p_facts ->> 'error',
          case when p_state = 'failed' then now() end,
          coalesce((p_facts ->> 'report_seconds')::real, 15), coalesce((p_facts ->> 'max_jobs')::smallint, 1),
          case when (p_facts ->> 'idle_seconds')::double precision > 0
               then now() - make_interval(secs => (p_facts ->> 'idle_seconds')::double precision) end,
          p_facts ->> 'pod_id', (p_facts ->> 'start_id')::uuid)
  on conflict (id) do update
    set target_worker = excluded.target_worker, host = excluded.host, gpu = excluded.gpu, vram_mb = excluded.vram_mb,
        model = excluded.model, version = excluded.version, state = excluded.state, last_seen_at = now(),
        error = coalesce(excluded.error, w.error), failed_at = coalesce(excluded.failed_at, w.failed_at),
        report_seconds = excluded.report_seconds, max_jobs = excluded.max_jobs, idle_since = excluded.idle_since,
        pod_id = excluded.pod_id, start_id = excluded.start_id
$$;

-- How many jobs a waiting job of the caller's own has before it; null for any other. It counts to a thousand. The private half sees
-- everybody's jobs, of which it tells nothing else; REST does not reach it.
create function private.jobs_ahead(p_job uuid) returns integer
language sql stable security definer set search_path = '' set enable_seqscan = off as $$
  select (select count(*) from (
            select from public.jobs w
             where w.status = 'queued' and w.target_worker = j.target_worker
               and (w.priority, w.fair_key, w.id) < (j.priority, j.fair_key, j.id) and w.run_at <= now()
             limit 1000) ahead)::integer
    from public.jobs j where j.id = p_job and j.status = 'queued' and j.user_id = (select auth.uid())
$$;
create function public.jobs_ahead(p_job uuid) returns integer
language sql stable set search_path = '' as 'select private.jobs_ahead(p_job)';

revoke execute on all functions in schema private from public;
revoke execute on function public.jobs_ahead(uuid) from public, anon, service_role;
grant usage on schema private to authenticated;
grant execute on function private.jobs_ahead(uuid), public.jobs_ahead(uuid) to authenticated;
revoke execute on function
  public.reap_jobs(text, integer), public.claim_jobs(text, text, text[], uuid, integer, integer),
  public.heartbeat_jobs(uuid[], uuid, integer, jsonb), public.finish_job(uuid, uuid, text, jsonb, jsonb, jsonb, jsonb, text),
  public.report_worker(text, text, jsonb), public.sweep_orphans(integer, real), public.retire_jobs(integer, real)
  from public, anon, authenticated;
grant execute on function
  public.reap_jobs(text, integer), public.claim_jobs(text, text, text[], uuid, integer, integer),
  public.heartbeat_jobs(uuid[], uuid, integer, jsonb), public.finish_job(uuid, uuid, text, jsonb, jsonb, jsonb, jsonb, text),
  public.report_worker(text, text, jsonb), public.sweep_orphans(integer, real), public.retire_jobs(integer, real)
  to service_role;
grant usage on schema private to service_role;
grant select, insert, update on private.reaping to service_role;
grant select, update on private.sweep to service_role;
grant execute on function private.backoff(integer, real, real) to service_role;
