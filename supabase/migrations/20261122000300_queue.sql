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
  with dead as materialized (   -- both rows are locked, so that a lease that is just being renewed is passed over
    select l.job_id from private.leases l join public.jobs j on j.id = l.job_id
     where l.state = 'held' and l.target_worker = p_target and l.expires_at < now() and j.status = 'processing'
     limit p_limit for no key update of j, l skip locked)
  update public.jobs j   -- and the trigger ends the lease
     set status = case when j.cancel_requested_at is not null then 'cancelled'
                       when j.attempts >= j.max_attempts then 'failed' else 'queued' end,
         completed_at = case when j.cancel_requested_at is not null or j.attempts >= j.max_attempts then now() end,
         run_at = now() + private.backoff(j.attempts),
         error_code = 'lease_expired',
         error_message = 'The worker stopped answering.'
   where j.id = any (array (select dead.job_id from dead));
  get diagnostics v_reaped = row_count;
  return v_reaped;
end $$;

-- When the claims of each target look for dead leases again; one row a target.
create table private.reaping (
  target_worker text primary key,
  next_at       timestamptz not null
);

-- Takes up to p_limit waiting jobs under a lease.
-- Returns {"jobs": [row, …], "more": work was seen but locked by others, "next_run_in_ms": until the next job that is put off, or until the
-- next lease ends unless it is renewed (then somebody must look), or null};
-- each row of jobs comes with what the worker needs beside it: "claims", "crashes", the "negative_preset" of its job type, and
-- "fault_is_charged": whether the outcome faulted would count as an attempt.
-- A job that p_worker gave back as faulted or crashed is put off for it alone, until avoid_until.
-- Dead leases are looked for once a second and not at every claim: to look is to visit every job that is processing.
-- The planner traps that this shape avoids: a parameter as LIMIT is planned for a tenth of the backlog, a constant one for one row;
-- and FOR UPDATE would skip rows whose children are being written (FOR NO KEY UPDATE does not).
-- Only the row of jobs is locked; what could have changed in it meanwhile is asked of it again, once it is.
create function public.claim_jobs(
  p_worker text, p_target text, p_job_types text[], p_token uuid, p_limit integer default 1, p_lease_seconds integer default 60
) returns jsonb
language plpgsql volatile set search_path = '' set enable_seqscan = off set statement_timeout = '5s' as $$
declare
  v_expires_at constant timestamptz := now() + make_interval(secs => p_lease_seconds);
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
    update private.leases l set expires_at = v_expires_at
     where l.state = 'held' and l.target_worker = p_target and l.token = p_token returning l.job_id)
  select array_agg(a.job_id) into v_ids from again a;
  if v_ids is null then
    for place in 1 .. p_limit loop
      with next as materialized (
        select j.id from private.leases l join public.jobs j on j.id = l.job_id
         where l.state = 'waiting' and l.target_worker = p_target and l.job_type = any (p_job_types)
           and greatest(l.run_at, case when p_worker = any (l.faulted_on) then l.avoid_until end) <= now()
           and j.status = 'queued' and j.run_at <= now() and j.target_worker = p_target and j.job_type = any (p_job_types)
         order by l.priority, l.fair_key, l.job_id limit 1 for no key update of j skip locked),
      leased as (
        update private.leases l
           set state = 'held', token = p_token, worker = p_worker, expires_at = v_expires_at, claims = l.claims + 1
         where l.job_id = (select n.id from next n))
      update public.jobs j
         set status = 'processing', progress = 0, attempts = j.attempts + 1, started_at = now(), error_code = null, error_message = null
       where j.id = (select n.id from next n)
      returning j.id into v_id;
      exit when not found;
      v_ids := v_ids || v_id;
    end loop;
  end if;
  if v_ids is null then
    select coalesce(bool_or(w.free_at <= now()), false),
           least(min(w.free_at) filter (where w.free_at > now()),
                 (select greatest(min(l.expires_at), now() + interval '1 s') from private.leases l
                   where l.state = 'held' and l.target_worker = p_target having count(*) > 0))
      into v_more, v_next
      from (select greatest(l.run_at, case when p_worker = any (l.faulted_on) then l.avoid_until end) as free_at
              from private.leases l
             where l.state = 'waiting' and l.target_worker = p_target and l.job_type = any (p_job_types)) w;
  else
    select jsonb_agg(to_jsonb(j) || jsonb_build_object(
                       'claims', l.claims, 'crashes', l.crashes, 'negative_preset', coalesce(n.negative_prompt, ''),
                       'fault_is_charged', p_worker = any (l.faulted_on) or cardinality(l.faulted_on) >= j.max_attempts)
                     order by l.priority, l.fair_key, l.job_id) into v_jobs
      from public.jobs j join private.leases l on l.job_id = j.id left join public.negative_presets n on n.job_type = j.job_type
     where j.id = any (v_ids);
  end if;
  return jsonb_build_object('jobs', coalesce(v_jobs, '[]'), 'more', coalesce(v_more, true),
                            'next_run_in_ms', ceil(extract(epoch from v_next - now()) * 1000)::bigint);
end $$;

-- Renews the leases held under p_token. It writes private.leases only: no heartbeat is an event of postgres_changes, nor a broadcast.
-- Verdict of each job: ok | cancel (its user asked to stop) | lost (the lease belongs to somebody else, or to nobody).
create function public.heartbeat_jobs(p_ids uuid[], p_token uuid, p_lease_seconds integer default 60)
returns table (id uuid, verdict text)
language plpgsql volatile set search_path = '' set enable_seqscan = off as $$
#variable_conflict use_column
begin
  return query
  with renewed as (
    update private.leases l
       set expires_at = now() + make_interval(secs => p_lease_seconds)
     where l.job_id = any (p_ids) and l.token = p_token and l.state = 'held'
    returning l.job_id)
  select asked.id, case when r.job_id is null then 'lost'
                        when (select j.cancel_requested_at from public.jobs j where j.id = asked.id) is not null then 'cancel'
                        else 'ok' end
    from unnest(p_ids) asked (id) left join renewed r on r.job_id = asked.id;
end $$;

-- Ends a job, or gives it back. Outcomes: completed (p_images holds one object for each image, with the columns of job_images) |
-- failed | retry (queued again after a pause, or failed when attempts are used up) | cancelled | released (the worker shuts down:
-- queued again at once, the attempt is given back) | crashed (the worker or its GPU died while painting this job: as released, but
-- the second time in a row the job is failed as poison_job) | faulted (it may be the worker's own fault: another one gets it first, and the
-- attempt is given back; but as retry for a worker that gave this job back as faulted or crashed before, or once max_attempts of them did).
-- After crashed and faulted the same worker passes over the job for a minute (avoid_until): another may have time for it, and a broken
-- worker does not use up the attempts of the few jobs at the head of the queue. Without another worker a crashed job need not wait.
-- p_error is {"code", "message"}, p_warnings an array of the same.
-- Returns ok | already (this call was made before) | lost (the lease is no longer the caller's; nothing was written).
create function public.finish_job(
  p_id uuid, p_token uuid, p_outcome text, p_images jsonb default '[]', p_error jsonb default null, p_metrics jsonb default null,
  p_warnings jsonb default '[]', p_enhanced_prompt text default null
) returns text
language plpgsql volatile set search_path = '' set enable_seqscan = off as $$
declare
  v_job public.jobs;
  v_lease private.leases;
  v_status text;
  v_poison boolean;
  v_uncharged boolean;
begin
  if p_outcome is null or p_outcome not in ('completed', 'failed', 'retry', 'cancelled', 'released', 'crashed', 'faulted') then
    raise exception 'unknown outcome %', p_outcome
      using errcode = 'PT400', hint = 'completed, failed, retry, cancelled, released, crashed or faulted';
  end if;
  select * into v_job from public.jobs where id = p_id for no key update;
  select * into v_lease from private.leases where job_id = p_id for no key update;
  if v_lease.token is distinct from p_token or v_lease.token is null then
    return 'lost';
  end if;
  if v_lease.state <> 'held' then   -- the lease ended under this token: by this very call, or by the reaper
    return case when v_job.error_code is distinct from 'lease_expired'
                 and (v_job.status = p_outcome
                      or (p_outcome in ('retry', 'released', 'crashed', 'faulted') and v_job.status in ('queued', 'cancelled'))
                      or (p_outcome in ('retry', 'crashed', 'faulted') and v_job.status = 'failed'))
                then 'already' else 'lost' end;
  end if;
  v_poison := p_outcome = 'crashed' and v_lease.crashes >= 1 and v_job.cancel_requested_at is null;
  v_uncharged := p_outcome = 'released' or (p_outcome = 'crashed' and not v_poison)
    or (p_outcome = 'faulted' and v_lease.worker <> all (v_lease.faulted_on) and cardinality(v_lease.faulted_on) < v_job.max_attempts);
  v_status := case
    when p_outcome in ('completed', 'failed', 'cancelled') then p_outcome
    when v_job.cancel_requested_at is not null then 'cancelled'
    when v_poison or (not v_uncharged and v_job.attempts >= v_job.max_attempts) then 'failed'
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
  if p_outcome in ('crashed', 'faulted') and v_lease.worker <> all (v_lease.faulted_on) then
    v_lease.faulted_on := v_lease.faulted_on || v_lease.worker;
  end if;
  update private.leases l   -- before the row of jobs, whose trigger looks whether they agree
     set state = case v_status when 'queued' then 'waiting' else 'ended' end,
         expires_at = null,
         crashes = case p_outcome when 'crashed' then l.crashes + 1 when 'released' then l.crashes else 0 end,
         faulted_on = v_lease.faulted_on,
         avoid_until = case when p_outcome = 'faulted' or (p_outcome = 'crashed' and exists (
                                   select from public.workers w
                                    where w.target_worker = l.target_worker and w.id <> all (v_lease.faulted_on)
                                      and w.state = 'ready' and private.is_live(w)))
                            then now() + interval '60 s' else l.avoid_until end
   where l.job_id = p_id;
  update public.jobs j
     set status = v_status,
         progress = case v_status when 'completed' then 100 else 0 end,
         completed_at = case when v_status <> 'queued' then now() end,
         error_code = case when v_poison then 'poison_job' when v_status in ('failed', 'queued') then p_error ->> 'code' end,
         error_message = case when v_poison then 'This job stopped two workers in a row.'
                              when v_status in ('failed', 'queued') then p_error ->> 'message' end,
         metrics = coalesce(p_metrics, j.metrics),
         warnings = p_warnings,
         enhanced_prompt = coalesce(p_enhanced_prompt, j.enhanced_prompt),
         attempts = case when v_uncharged then j.attempts - 1 else j.attempts end,
         run_at = case when v_uncharged or p_outcome not in ('retry', 'faulted') then j.run_at
                       else now() + private.backoff(j.attempts) end
   where j.id = p_id;
  return 'ok';
end $$;

-- Objects for the worker to remove through Storage, by bucket and path: up to p_limit of private.removals, oldest first, and the orphans
-- among the next p_limit output objects, which are those that no job published, of jobs that can no longer publish them. The whole fleet
-- shares one place to go on from, so the cost does not grow with the number of objects; a call within p_pause_seconds of the last one
-- returns nothing. Names that are not of the worker's making (<user id>/<job id>/<claim>-<index>…) are no orphans.
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
  delete from private.removals r
   where (r.bucket, r.path) in (select o.bucket, o.path from private.removals o order by o.asked_at limit p_limit)
     and not exists (select from storage.objects o
                      where o.bucket_id = r.bucket and o.name = r.path and coalesce(o.updated_at, o.created_at) <= r.asked_at);
  return query
  select r.bucket, r.path from private.removals r order by r.asked_at limit p_limit;
  return query   -- scalar subqueries and not EXISTS: each object is looked up by itself, and nothing is joined as a whole
  select o.bucket, o.path
    from unnest(v_buckets, v_paths) o (bucket, path)
   where (select count(*) from private.removals r where r.bucket = o.bucket and r.path = o.path) = 0
     and case when o.path ~ '^[0-9a-f-]{36}/[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}/[0-9]+-[0-9]\.' then
           coalesce((select j.completed_at is not null from public.jobs j where j.id = split_part(o.path, '/', 2)::uuid), true)
           and (select count(*) from public.job_images i where i.path = o.path and i.bucket = o.bucket) = 0
           and (select count(*) from public.job_images i where i.thumbnail_path = o.path and i.bucket = o.bucket) = 0
         end;
end $$;

-- Deletes up to p_limit finished jobs that are older than public.retention says, oldest first; their objects are removed as those of every
-- deleted job. A call within p_pause_seconds of the last one, by whichever worker, deletes nothing. What is known of workers and starts
-- that are long gone goes with them. Returns how many jobs.
create function public.retire_jobs(p_limit integer default 200, p_pause_seconds real default 15) returns integer
language plpgsql volatile set search_path = '' set enable_seqscan = off as $$
declare
  v_retention public.retention;
  v_before timestamptz;
  v_jobs integer;
begin
  select * into v_retention from public.retention r
   where r.days is not null and r.next_at not between now() and now() + make_interval(secs => p_pause_seconds) for update skip locked;
  if not found then
    return 0;
  end if;
  update public.retention r set next_at = now() + make_interval(secs => p_pause_seconds) where r.only_row;
  v_before := now() - make_interval(days => v_retention.days);
  delete from public.workers w where w.last_seen_at < v_before;
  delete from public.worker_starts s where s.ended_at < v_before;
  with old as materialized (
    select j.id from public.jobs j where j.completed_at < v_before order by j.completed_at limit p_limit for update skip locked)
  delete from public.jobs j where j.id = any (array (select old.id from old));
  get diagnostics v_jobs = row_count;
  return v_jobs;
end $$;

-- Says that a worker lives, or why it does not: p_facts is {"target_worker", "host", "gpu", "vram_mb", "model", "engine", "engine_note",
-- "version", "error", "report_seconds", "max_jobs", "idle_seconds", "pod_id", "start_id"}; what is absent is null, or the column's default.
create function public.report_worker(p_worker text, p_state text, p_facts jsonb) returns void
language sql volatile set search_path = '' as $$
  insert into public.workers as w (id, target_worker, host, gpu, vram_mb, model, engine, engine_note, version, state, error, failed_at,
                                   report_seconds, max_jobs, idle_since, pod_id, start_id)
  values (p_worker, p_facts ->> 'target_worker', p_facts ->> 'host', p_facts ->> 'gpu', (p_facts ->> 'vram_mb')::integer,
          p_facts ->> 'model', p_facts ->> 'engine', p_facts ->> 'engine_note', p_facts ->> 'version', p_state, p_facts ->> 'error',
          case when p_state = 'failed' then now() end,
          coalesce((p_facts ->> 'report_seconds')::real, 15), coalesce((p_facts ->> 'max_jobs')::smallint, 1),
          case when (p_facts ->> 'idle_seconds')::double precision > 0
               then now() - make_interval(secs => (p_facts ->> 'idle_seconds')::double precision) end,
          p_facts ->> 'pod_id', (p_facts ->> 'start_id')::uuid)
  on conflict (id) do update
    set target_worker = excluded.target_worker, host = excluded.host, gpu = excluded.gpu, vram_mb = excluded.vram_mb,
        model = excluded.model, engine = excluded.engine, engine_note = excluded.engine_note, version = excluded.version,
        state = excluded.state, last_seen_at = now(),
        error = coalesce(excluded.error, w.error), failed_at = coalesce(excluded.failed_at, w.failed_at),
        report_seconds = excluded.report_seconds, max_jobs = excluded.max_jobs, idle_since = excluded.idle_since,
        pod_id = excluded.pod_id, start_id = excluded.start_id
$$;

-- How many jobs a waiting job of the caller's own has before it; null for any other. It counts to a thousand. The private half sees
-- everybody's jobs, of which it tells nothing else; REST does not reach it. The body of the public half is parsed here and now, so that its
-- callers need no USAGE of the schema.
create function private.jobs_ahead(p_job uuid) returns integer
language sql stable security definer set search_path = '' set enable_seqscan = off as $$
  select (select count(*) from (
            select from private.leases w
             where w.state = 'waiting' and w.target_worker = l.target_worker
               and (w.priority, w.fair_key, w.job_id) < (l.priority, l.fair_key, l.job_id) and w.run_at <= now()
             limit 1000) ahead)::integer
    from private.leases l where l.job_id = p_job and l.state = 'waiting' and l.user_id = (select auth.uid())
$$;
create function public.jobs_ahead(p_job uuid) returns integer
language sql stable set search_path = '' return private.jobs_ahead(p_job);

revoke execute on function private.backoff(integer, real, real), private.jobs_ahead(uuid) from public, anon, authenticated, service_role;
revoke execute on function public.jobs_ahead(uuid) from public, anon, service_role;
grant execute on function private.jobs_ahead(uuid), public.jobs_ahead(uuid) to authenticated;
revoke execute on function
  public.reap_jobs(text, integer), public.claim_jobs(text, text, text[], uuid, integer, integer),
  public.heartbeat_jobs(uuid[], uuid, integer), public.finish_job(uuid, uuid, text, jsonb, jsonb, jsonb, jsonb, text),
  public.report_worker(text, text, jsonb), public.sweep_orphans(integer, real), public.retire_jobs(integer, real)
  from public, anon, authenticated;
grant execute on function
  public.reap_jobs(text, integer), public.claim_jobs(text, text, text[], uuid, integer, integer),
  public.heartbeat_jobs(uuid[], uuid, integer), public.finish_job(uuid, uuid, text, jsonb, jsonb, jsonb, jsonb, text),
  public.report_worker(text, text, jsonb), public.sweep_orphans(integer, real), public.retire_jobs(integer, real)
  to service_role;
grant usage on schema private to service_role;
revoke all on private.reaping from public, anon, authenticated, service_role;
grant select, insert, update on private.reaping to service_role;
grant select, update on private.sweep to service_role;
grant execute on function private.backoff(integer, real, real) to service_role;
