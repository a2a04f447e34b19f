-- What happens by itself when a job's row is written: its place in the queue, its history, and the word that goes out through Realtime.
-- Trigger functions run as their owner, since realtime.send() works with its caller's rights; none can be called through the API.

-- Place in the queue. Self-clocked fair queueing (Golestani, 1994): jobs go in the order of their ends in virtual time. One begins where
-- the last of those that are processing ends (with none: where the head of the queue begins) or where the same user's last active job
-- ends, whichever is later, and ends its cost later. So a user's flood delays the flood, not the next user's single job; a small
-- job goes before a large one that came with it; and no stream of newcomers keeps a large one waiting, since with each of them that is
-- processed the next ones begin later. Each priority has a queue of its own. A user's inserts go one after the other: side by side, they
-- would not see each other's cost, nor the quota.
create function private.jobs_before_insert() returns trigger
language plpgsql security definer set search_path = '' as $$
begin
  perform pg_advisory_xact_lock(hashtextextended('jobs of ' || new.user_id, 0));
  return new;
end $$;
create trigger jobs_before_insert before insert on public.jobs
  for each row execute function private.jobs_before_insert();

-- After the insert, and so only of rows that were inserted: a repeat that its idempotency key passes over is not held against the quota.
create function private.jobs_enqueue() returns trigger
language plpgsql security definer set search_path = '' set enable_seqscan = off as $$
declare
  v_active integer;
  v_own_end double precision;
  v_now double precision;   -- in virtual time
  v_cost real;
begin
  select count(*), max(l.fair_key) filter (where l.priority = new.priority) into v_active, v_own_end
    from private.leases l
   where l.user_id = new.user_id and l.target_worker = new.target_worker and l.state <> 'ended';
  if v_active >= 200 then
    raise exception 'too many active jobs' using errcode = 'PT429', hint = 'You have 200 jobs waiting or running; let some finish first.';
  end if;
  select max(l.fair_key) into v_now
    from private.leases l
   where l.state = 'held' and l.target_worker = new.target_worker and l.priority = new.priority;
  if v_now is null then
    select l.fair_key - l.cost into v_now
      from private.leases l
     where l.state = 'waiting' and l.target_worker = new.target_worker and l.priority = new.priority and l.run_at <= now()
     order by l.fair_key, l.job_id limit 1;
  end if;
  v_cost := greatest(0.01, new.batch_size * coalesce(new.steps, case new.job_type when 'sdxl_image_fast' then 15 else 25 end) / 25.0
                           * coalesce(new.width::bigint * new.height, 1048576) / 1048576.0);
  insert into private.leases (job_id, state, user_id, target_worker, job_type, priority, run_at, cost, fair_key)
  values (new.id, case new.status when 'queued' then 'waiting' else 'ended' end, new.user_id, new.target_worker, new.job_type,
          new.priority, new.run_at, v_cost, greatest(coalesce(v_now, 0), coalesce(v_own_end, 0)) + v_cost);
  return null;
end $$;
create trigger jobs_enqueue after insert on public.jobs
  for each row execute function private.jobs_enqueue();   -- by its name before jobs_inserted

-- Keeps the queue's copy of what is claimed by: an operator may move a waiting job, and an attempt may be put off.
create function private.jobs_moved() returns trigger
language plpgsql security definer set search_path = '' as $$
begin
  update private.leases l
     set target_worker = new.target_worker, job_type = new.job_type, priority = new.priority, run_at = new.run_at
   where l.job_id = new.id;
  return null;
end $$;
create trigger jobs_moved after update of target_worker, job_type, priority, run_at on public.jobs
  for each row when (old.run_at is distinct from new.run_at or old.priority is distinct from new.priority
                     or old.target_worker is distinct from new.target_worker or old.job_type is distinct from new.job_type)
  execute function private.jobs_moved();   -- by its name before jobs_updated

-- A finished row never changes, whoever asks; a queued job that is cancelled ends at once.
create function private.jobs_before_update() returns trigger
language plpgsql security definer set search_path = '' as $$
begin
  if old.completed_at is not null then
    raise exception 'job % is finished and never changes', old.id using errcode = 'PT409';
  end if;
  if new.cancel_requested_at is not null and old.cancel_requested_at is null then
    new.cancel_requested_at := now();
    if old.status = 'queued' then
      new.status := 'cancelled';
      new.completed_at := now();
    end if;
  elsif old.cancel_requested_at is not null then
    new.cancel_requested_at := old.cancel_requested_at;   -- what was asked cannot be unasked
  end if;
  return new;
end $$;
create trigger jobs_before_update before update on public.jobs
  for each row when (old.completed_at is not null or old.cancel_requested_at is distinct from new.cancel_requested_at)
  execute function private.jobs_before_update();

-- Realtime must never stop a job: whatever goes wrong in there becomes a warning.
create function private.send(p_payload jsonb, p_event text, p_topic text) returns void
language plpgsql volatile set search_path = '' as $$
begin
  perform realtime.send(p_payload, p_event, p_topic, true);
exception when others then
  raise warning 'realtime.send to % failed: %', p_topic, sqlerrm;
end $$;

-- Tells workers that so many jobs came. A hint only: the worker's timer gets every job done without it.
-- Nobody is told while fifty others are due already: then nobody is idle, and who paints comes back by himself.
-- Each wake is delivered to all who hear its topic, which is what Realtime's limits count, and each of them that is idle looks twice.
-- So a worker hears worker:<target>, and worker:<target>:<n> with an n of its own from 0 to 31 (ourvidz_sdxl/wakeup.py), and of
-- those shards so many are told that about four of the idle workers hear of each job. That they were idle is as old as their last report; if
-- none of the told ones is any more, one of the others looks by its timer: with more than 12 of them that is soon.
create function private.wake(p_target text, p_jobs bigint) returns void
language plpgsql volatile set search_path = '' set enable_seqscan = off as $$
declare
  v_idle bigint;
begin
  if exists (select from private.leases l where l.state = 'waiting' and l.target_worker = p_target and l.run_at <= now()
              order by l.priority, l.fair_key, l.job_id offset p_jobs + 49 limit 1) then
    return;
  end if;
  select count(*) into v_idle from public.workers w
   where w.target_worker = p_target and w.state = 'ready' and w.idle_since is not null and private.is_live(w);
  if v_idle <= 12 * p_jobs then
    perform private.send('{}', 'wake', 'worker:' || p_target);
  else
    perform private.send('{}', 'wake', 'worker:' || p_target || ':' || (v_first.n + i) % 32)
       from (select floor(32 * random())::integer as n) v_first, generate_series(0, ceil(4.0 * 32 * p_jobs / v_idle)::integer - 1) i;
  end if;
end $$;

-- One wake a statement and target, however many rows it inserts, and a worker more if one may be asked for.
-- A delayed job wakes, too: the empty claim that follows tells the worker when to come back.
create function private.jobs_wake() returns trigger
language plpgsql security definer set search_path = '' as $$
declare
  v_target text;
  v_jobs bigint;
begin
  for v_target, v_jobs in select n.target_worker, count(*) from new_rows n where n.status = 'queued' group by n.target_worker loop
    perform private.wake(v_target, v_jobs);
    if exists (select from public.fleet_settings f
                where f.target_worker = v_target
                  and f.max_workers > (select count(*) from public.worker_starts s
                                        where s.target_worker = v_target and s.state in ('asking', 'requested', 'running'))) then
      perform private.call_fleet(v_target);
    end if;
  end loop;
  return null;
end $$;
create trigger jobs_wake_on_insert after insert on public.jobs
  referencing new table as new_rows for each statement execute function private.jobs_wake();

-- History, and the word to the user, the workers and whoever watches. The lease follows its job: one that is ended otherwise than by
-- finish_job (by its user, the reaper, or an operator) has none any more, and nothing but a lease makes a job processing.
create function private.jobs_changed() returns trigger
language plpgsql security definer set search_path = '' as $$
declare
  v_state constant text := case new.status when 'queued' then 'waiting' when 'processing' then 'held' else 'ended' end;
  v_lease private.leases;
  v_images jsonb;
begin
  if old.status is distinct from new.status then   -- on insert, old is null
    select * into v_lease from private.leases l where l.job_id = new.id;
    if v_lease.state is distinct from v_state then
      if new.status = 'processing' then
        raise exception 'job % is processing without a lease: only claim_jobs makes it so', new.id
          using errcode = 'check_violation', constraint = 'processing_is_leased';
      end if;
      update private.leases l set state = v_state, expires_at = null where l.job_id = new.id;
    end if;
    insert into public.job_events (job_id, status, attempt, worker, error_code)
    values (new.id, new.status, new.attempts, v_lease.worker, new.error_code);
    if new.status = 'queued' and tg_op = 'UPDATE' and new.run_at <= now() then
      perform private.wake(new.target_worker, 1);   -- a worker gave it back
    end if;
    if new.status = 'completed' then
      select jsonb_agg(to_jsonb(i) order by i.index) into v_images from public.job_images i where i.job_id = new.id;
    end if;
  elsif old.cancel_requested_at is distinct from new.cancel_requested_at then
    perform private.send(jsonb_build_object('id', new.id), 'cancel', 'worker:' || new.target_worker);
  end if;
  -- the shape of realtime.broadcast_changes(), plus the images once there are any
  perform private.send(
    jsonb_build_object(
      'schema', tg_table_schema, 'table', tg_table_name, 'operation', tg_op,
      'record', to_jsonb(new),
      'old_record', case when tg_op = 'UPDATE' then jsonb_build_object('id', old.id, 'status', old.status, 'progress', old.progress) end,
      'images', v_images),
    tg_op, 'user:' || new.user_id);
  return null;
end $$;
create trigger jobs_inserted after insert on public.jobs
  for each row execute function private.jobs_changed();
create trigger jobs_updated after update on public.jobs
  for each row when (old.status is distinct from new.status or old.progress is distinct from new.progress
                     or old.cancel_requested_at is distinct from new.cancel_requested_at)
  execute function private.jobs_changed();

revoke execute on function
  private.jobs_before_insert(), private.jobs_enqueue(), private.jobs_moved(), private.jobs_before_update(), private.jobs_wake(),
  private.jobs_changed(), private.send(jsonb, text, text), private.wake(text, bigint)
  from public, anon, authenticated, service_role;
