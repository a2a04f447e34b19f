-- Workers that come when there is work and go when there is none. The database decides (private.fleet_decision), the Edge Functions
-- wake-worker and stop-idle carry it out with RunPod, and what the workers report about themselves ends the matter.
--
--   asking ──RunPod says yes──▶ requested ──its worker is ready──▶ running ──idle, silent or failed──▶ stopping ──gone──▶ ended
--     │ ▲                           └──────────────never ready in start_timeout_seconds───────────────────▲                ▲
--     └─┘ RunPod says no: again after a pause                          a serverless request that has drained the queue ────┘

create table public.fleet_settings (
  target_worker         text primary key,
  max_workers           smallint not null default 0,
  jobs_per_worker       smallint not null default 10,
  patience_seconds      integer not null default 0,
  cool_down_seconds     integer not null default 120,
  start_timeout_seconds integer not null default 1200,
  idle_minutes          real not null default 10,

  constraint fleet_target_worker_is_a_short_lowercase_name check (target_worker ~ '^[a-z0-9_-]{1,64}$'),
  constraint max_workers_is_from_0_to_1000 check (max_workers between 0 and 1000),
  constraint jobs_per_worker_is_positive check (jobs_per_worker > 0),
  constraint patience_seconds_is_not_negative check (patience_seconds >= 0),
  constraint cool_down_seconds_is_not_negative check (cool_down_seconds >= 0),
  constraint start_timeout_seconds_is_at_least_60 check (start_timeout_seconds >= 60),
  constraint idle_minutes_is_not_negative check (idle_minutes >= 0)
);
insert into public.fleet_settings (target_worker) values ('sdxl');

create table public.worker_starts (
  id            uuid primary key default gen_random_uuid(),
  target_worker text not null,
  state         text not null default 'asking',
  provider      text,
  pod_id        text,
  attempts      smallint not null default 0,
  next_try_at   timestamptz not null default now(),
  error         text,
  created_at    timestamptz not null default now(),
  requested_at  timestamptz,
  running_at    timestamptz,
  ended_at      timestamptz,

  constraint start_state_is_known check (state in ('asking', 'requested', 'running', 'stopping', 'ended')),
  constraint start_provider_is_pod_or_serverless check (provider in ('pod', 'serverless')),
  constraint what_was_requested_has_an_id check (state in ('asking', 'ended') or (provider is not null and pod_id is not null)),
  constraint ended_start_has_a_time check ((state = 'ended') = (ended_at is not null))
);
create index worker_starts_open_idx on public.worker_starts (target_worker, created_at) where state <> 'ended';
create index worker_starts_target_idx on public.worker_starts (target_worker, created_at desc);
create index worker_starts_pod_idx on public.worker_starts (pod_id) where state <> 'ended';
create index worker_starts_ended_idx on public.worker_starts (ended_at) where state = 'ended';

-- When the Edge Functions were called last; one row a target.
create table private.fleet_calls (
  target_worker text primary key,
  next_at       timestamptz not null
);

alter table public.fleet_settings enable row level security;
alter table public.worker_starts enable row level security;
revoke all on public.fleet_settings, public.worker_starts, private.fleet_calls from public, anon, authenticated, service_role;
grant select, update on public.fleet_settings to service_role;
grant select, insert, update, delete on public.worker_starts to service_role;

-- A worker lives while it reports: one lost report, or three, are no death. While it loads its model it says nothing for a while.
create function private.is_live(p_worker public.workers) returns boolean
language sql stable set search_path = '' as $$
  select p_worker.state in ('ready', 'draining') and p_worker.last_seen_at > now() - 4 * make_interval(secs => p_worker.report_seconds)
      or p_worker.state = 'starting' and p_worker.last_seen_at > now() - interval '10 minutes'
$$;

-- A failed start is tried again after 5 s, then 10, 20, … up to 5 minutes, and so is a stop; no jitter, since nobody else tries.
create function private.start_pause(p_attempt integer) returns interval
language sql immutable set search_path = '' as $$
  select make_interval(secs => least(300, 5 * power(2, least(greatest(p_attempt, 1), 10) - 1)))
$$;

-- Those of a target's last ten starts after which no worker got ready, since the last one after which one did; and from when on another
-- may be asked for: a minute after the first of them, then 2, 4, … up to an hour, and one at a time. What is wrong with the image, the
-- settings or the model would be wrong with the next pod, too, and each costs its start_timeout_seconds.
create function private.unready_starts(p_target text, out starts integer, out next_at timestamptz)
language sql stable set search_path = '' set enable_seqscan = off as $$
  select count(*)::integer, max(coalesce(l.ended_at, now())) + least(interval '1 hour', interval '1 minute' * power(2, count(*) - 1))
    from (select s.ended_at, bool_or(s.running_at is not null) over (order by s.created_at desc, s.id) as has_run
            from (select * from public.worker_starts s
                   where s.target_worker = p_target and s.requested_at is not null and s.state in ('running', 'stopping', 'ended')
                   order by s.created_at desc, s.id limit 10) s) l
   where not l.has_run
$$;

-- What is to be done for one target now: the only place that decides. `starts_due` counts pods or requests to be asked for, those of
-- failed attempts included; `stops_due` names starts whose pod is to go; `reason` says why nothing more is started.
-- Only what the database asked for is ever stopped: workers that an operator started are the operator's.
create function private.fleet_decision(p_target text)
returns table (starts_due integer, stops_due uuid[], waiting integer, room integer, running integer, coming integer, reason text)
language plpgsql stable set search_path = '' set enable_seqscan = off as $$
declare
  v_settings public.fleet_settings;
  v_open integer;       -- starts that count against max_workers
  v_started integer;    -- the same, and those that are being stopped
  v_retries integer;
  v_cooling boolean;
  v_unready record;
  v_oldest timestamptz;
  v_wanted integer;
begin
  select * into v_settings from public.fleet_settings f where f.target_worker = p_target;
  select count(*), count(*) filter (where s.state in ('asking', 'requested', 'running')),
         count(*) filter (where s.state in ('asking', 'requested')),
         count(*) filter (where s.state = 'asking' and s.next_try_at <= now()),
         coalesce(bool_or(s.created_at > now() - make_interval(secs => v_settings.cool_down_seconds)), false)
    into v_started, v_open, coming, v_retries, v_cooling
    from public.worker_starts s where s.target_worker = p_target and s.state <> 'ended';
  starts_due := v_retries;
  stops_due := '{}';
  if v_settings.target_worker is null or (v_settings.max_workers = 0 and v_started = 0) then
    reason := 'max_workers is 0';
    return next;
    return;
  end if;

  -- counted as far as it matters: to one, where no more can be started anyway
  select count(*), min(w.created_at) into waiting, v_oldest
    from (select j.created_at from private.leases l join public.jobs j on j.id = l.job_id
           where l.state = 'waiting' and l.target_worker = p_target and l.run_at <= now()
           order by l.priority, l.fair_key, l.job_id
           limit case when v_cooling or v_open >= v_settings.max_workers then 1
                      else (v_settings.max_workers - v_open + coming) * v_settings.jobs_per_worker::bigint end) w;
  with live as materialized (
    select w.state, w.max_jobs, w.pod_id, w.start_id, coalesce(h.jobs, 0) as held
      from public.workers w
      left join (select l.worker, count(*) as jobs from private.leases l
                  where l.state = 'held' and l.target_worker = p_target group by l.worker) h on h.worker = w.id
     where w.target_worker = p_target and private.is_live(w))
  select count(*) filter (where l.state = 'ready'),
         coalesce(sum(greatest(0, l.max_jobs - l.held)) filter (where l.state = 'ready'), 0),
         coming + count(*) filter (where l.state = 'starting' and not exists (
                    select from public.worker_starts s where s.state <> 'ended' and (s.pod_id = l.pod_id or s.id = l.start_id)))
    into running, room, coming from live l;

  v_wanted := ceil(waiting / v_settings.jobs_per_worker::real) - coming;
  select * into v_unready from private.unready_starts(p_target);
  reason := case
    when waiting = 0 then 'nothing waits'
    when room > 0 then 'a worker has room'
    when v_open >= v_settings.max_workers then 'max_workers are there or coming'
    when v_cooling then 'cooling down'
    when v_unready.next_at > now() then format('%s workers in a row never got ready; the next one is asked for at %s UTC',
      v_unready.starts, to_char(v_unready.next_at at time zone 'utc', 'HH24:MI'))
    when v_wanted <= 0 then 'enough are coming'
    when running > 0 and v_oldest > now() - make_interval(secs => v_settings.patience_seconds) then 'the workers may still get to it' end;
  if reason is null then
    starts_due := starts_due
      + least(v_wanted, v_settings.max_workers - v_open, case when v_unready.starts > 0 then greatest(0, 1 - coming) end);
  end if;

  select coalesce(array_agg(s.id order by s.created_at), '{}') into stops_due
    from public.worker_starts s
    cross join lateral (
      select count(*) as known, bool_and(w.state = 'stopped') as stopped, max(w.last_seen_at) as seen_at,
             bool_or(private.is_live(w)) as live,
             bool_and(w.state = 'ready' and w.idle_since < now() - v_settings.idle_minutes * interval '1 minute'
                      and not exists (select from private.leases l where l.state = 'held' and l.worker = w.id))
               filter (where private.is_live(w)) as idle
        from public.workers w where w.pod_id = s.pod_id or w.start_id = s.id) its
   where s.target_worker = p_target
     and case s.state
       when 'stopping' then s.next_try_at <= now()
       when 'requested' then s.requested_at < now() - make_interval(secs => v_settings.start_timeout_seconds)
       when 'running' then its.known = 0 or its.stopped
                           or (not its.live and its.seen_at < now() - interval '2 minutes')
                           or (v_settings.idle_minutes > 0 and waiting = 0 and its.live and its.idle)
       else false end;
  return next;
end $$;

-- Says what RunPod is to be asked for now, each start with the number of its attempt; the caller tells how that went by report_start.
-- One that does not report within a minute counts as failed. `needed` is false where a start that may have arrived, though its reply
-- did not, is not wanted any more: then it is only to be looked for.
create function public.claim_starts(p_target text) returns table (id uuid, attempt smallint, needed boolean)
language plpgsql volatile set search_path = '' set enable_seqscan = off as $$
#variable_conflict use_column
declare
  v_decision record;
  v_retries integer;
begin
  perform pg_advisory_xact_lock(hashtextextended('fleet of ' || p_target, 0));
  select * into v_decision from private.fleet_decision(p_target);
  select count(*) into v_retries
    from public.worker_starts s where s.target_worker = p_target and s.state = 'asking' and s.next_try_at <= now();
  insert into public.worker_starts (target_worker)
  select p_target from generate_series(1, v_decision.starts_due - v_retries);
  return query
  update public.worker_starts s set attempts = s.attempts + 1, next_try_at = now() + interval '1 minute'
   where s.target_worker = p_target and s.state = 'asking' and s.next_try_at <= now()
  returning s.id, s.attempts, coalesce(v_decision.waiting, 0) > 0;
end $$;

-- How asking for a start went: p_pod_id is RunPod's name for it (of the pod, or of the serverless request), else p_error says why there
-- is none. Without either it is not wanted any more, and ended. What comes after its end, or again, changes nothing.
create function public.report_start(p_id uuid, p_provider text default null, p_pod_id text default null, p_error text default null)
returns void language sql volatile set search_path = '' as $$
  update public.worker_starts s
     set state = case when p_pod_id is null then case when p_error is null then 'ended' else 'asking' end
                      when exists (select from public.workers w where (w.pod_id = p_pod_id or w.start_id = p_id) and w.state = 'ready')
                      then 'running' else 'requested' end,
         provider = p_provider, pod_id = p_pod_id,
         requested_at = case when p_pod_id is not null then now() end,
         running_at = case when exists (select from public.workers w where (w.pod_id = p_pod_id or w.start_id = p_id) and w.state = 'ready')
                           then now() end,
         ended_at = case when p_pod_id is null and p_error is null then now() end,
         error = left(p_error, 500),
         attempts = case when p_pod_id is null then s.attempts else 0 end,
         next_try_at = now() + private.start_pause(s.attempts)
   where s.id = p_id and s.state = 'asking'
$$;

-- Says which pods are to go now; the caller tells how that went by report_stop. A serverless request is nothing that could be stopped.
create function public.claim_stops(p_target text) returns table (id uuid, pod_id text, attempt smallint)
language plpgsql volatile set search_path = '' set enable_seqscan = off as $$
#variable_conflict use_column
begin
  perform pg_advisory_xact_lock(hashtextextended('fleet of ' || p_target, 0));
  return query
  with due as materialized (
    select s.id from public.worker_starts s where s.id = any (array (select unnest(d.stops_due) from private.fleet_decision(p_target) d))),
  told as (
    update public.worker_starts s
       set state = case s.provider when 'pod' then 'stopping' else 'ended' end,
           ended_at = case s.provider when 'pod' then null else now() end,
           error = case when s.state = 'requested' then 'never ready' else s.error end,
           attempts = s.attempts + 1, next_try_at = now() + interval '1 minute'
     where s.id = any (array (select due.id from due))
    returning s.id, s.pod_id, s.attempts, s.state)
  select t.id, t.pod_id, t.attempts from told t where t.state = 'stopping';
end $$;

-- How removing a pod went: gone, or p_error. A pod that is gone takes its workers along, which may not have been able to say so.
create function public.report_stop(p_id uuid, p_error text default null) returns void
language sql volatile set search_path = '' as $$
  update public.workers w set state = 'stopped'
    from public.worker_starts s where s.id = p_id and s.state = 'stopping' and p_error is null and w.pod_id = s.pod_id;
  update public.worker_starts s
     set state = case when p_error is null then 'ended' else s.state end,
         ended_at = case when p_error is null then now() end,
         error = coalesce(left(p_error, 500), s.error),
         next_try_at = now() + private.start_pause(s.attempts)
   where s.id = p_id and s.state = 'stopping'
$$;

-- What a worker says about itself moves the start that it came from.
create function private.workers_reported() returns trigger
language plpgsql security definer set search_path = '' as $$
begin
  update public.worker_starts s
     set state = case when new.state = 'ready' then 'running'
                      when s.provider = 'pod' then 'stopping' else 'ended' end,
         running_at = coalesce(s.running_at, now()),
         ended_at = case when new.state = 'stopped' and s.provider = 'serverless' then now() end,
         next_try_at = now(),
         provider = coalesce(s.provider, 'serverless'), pod_id = coalesce(s.pod_id, new.pod_id, new.id)
   where (s.pod_id = new.pod_id or s.id = new.start_id)
     and (new.state = 'ready' and s.state in ('asking', 'requested')   -- asking: RunPod's yes was lost on its way
          or new.state = 'stopped' and s.state in ('requested', 'running')
             and not exists (select from public.workers w where w.id <> new.id and w.pod_id = new.pod_id and w.state <> 'stopped'
                                                            and private.is_live(w)));
  return null;
end $$;
create trigger workers_arrived after insert on public.workers
  for each row when (new.state in ('ready', 'stopped') and (new.pod_id is not null or new.start_id is not null))
  execute function private.workers_reported();
create trigger workers_changed after update on public.workers
  for each row when (new.state in ('ready', 'stopped') and (new.pod_id is not null or new.start_id is not null)
                     and (old.state, old.pod_id, old.start_id) is distinct from (new.state, new.pod_id, new.start_id))
  execute function private.workers_reported();

-- Has the Edge Functions do what is due, by way of pg_net; called when jobs are inserted, and by pg_cron, which makes it happen when none
-- are. Where to call, and with which secret, is said in Vault: functions_url and fleet_secret. Without pg_net or
-- these two nothing is called. One call in five seconds; it must never stop an insert, so that whatever goes wrong becomes a warning.
create function private.call_fleet(p_target text) returns void
language plpgsql volatile set search_path = '' as $$
declare
  v_decision record;
  v_url text;
  v_secret text;
  v_function text;
begin
  select * into v_decision from private.fleet_decision(p_target);
  if v_decision.starts_due = 0 and v_decision.stops_due = '{}' then
    return;
  end if;
  if to_regprocedure('net.http_post(text, jsonb, jsonb, jsonb, integer)') is null or to_regclass('vault.decrypted_secrets') is null
     or not pg_try_advisory_xact_lock(hashtextextended('fleet call for ' || p_target, 0)) then
    return;
  end if;
  select max(v.decrypted_secret) filter (where v.name = 'functions_url'), max(v.decrypted_secret) filter (where v.name = 'fleet_secret')
    into v_url, v_secret from vault.decrypted_secrets v where v.name in ('functions_url', 'fleet_secret');
  if v_url is null or v_secret is null then
    return;
  end if;
  insert into private.fleet_calls as c values (p_target, now() + interval '5 s')
  on conflict (target_worker) do update set next_at = excluded.next_at where c.next_at not between now() and now() + interval '5 s';
  if not found then
    return;
  end if;
  foreach v_function in array array_remove(array[
      case when v_decision.starts_due > 0 then 'wake-worker' end, case when v_decision.stops_due <> '{}' then 'stop-idle' end], null) loop
    perform net.http_post(
      url := rtrim(v_url, '/') || '/' || v_function, body := jsonb_build_object('target_worker', p_target), params := '{}',
      headers := jsonb_build_object('Content-Type', 'application/json', 'Authorization', 'Bearer ' || v_secret),
      timeout_milliseconds := 60000);
  end loop;
exception when others then
  raise warning 'the fleet of % was not called: %', p_target, sqlerrm;
end $$;

-- By name and not for all of the schema: a project's own functions may live there, too.
revoke execute on function
  private.is_live(public.workers), private.start_pause(integer), private.unready_starts(text), private.fleet_decision(text),
  private.workers_reported(), private.call_fleet(text)
  from public, anon, authenticated, service_role;
grant execute on function
  private.is_live(public.workers), private.start_pause(integer), private.unready_starts(text), private.fleet_decision(text)
  to service_role;
revoke execute on function
  public.claim_starts(text), public.report_start(uuid, text, text, text), public.claim_stops(text), public.report_stop(uuid, text)
  from public, anon, authenticated;
grant execute on function
  public.claim_starts(text), public.report_start(uuid, text, text, text), public.claim_stops(text), public.report_stop(uuid, text)
  to service_role;

comment on table public.fleet_settings is 'How many workers may be asked for, and when; one row a target. Edit it here.';
comment on column public.fleet_settings.target_worker is 'The kind of worker that the row is about.';
comment on column public.fleet_settings.max_workers is 'At most so many pods, or serverless requests, of the database''s asking at once; 0: none is ever asked for.';
comment on column public.fleet_settings.jobs_per_worker is 'One worker is asked for for each so many waiting jobs.';
comment on column public.fleet_settings.patience_seconds is 'While workers live, a job may wait so long for one of them before another is asked for.';
comment on column public.fleet_settings.cool_down_seconds is 'After workers were asked for, no more are for so long.';
comment on column public.fleet_settings.start_timeout_seconds is 'A pod without a ready worker by then is removed: time to fetch the image and the model.';
comment on column public.fleet_settings.idle_minutes is 'After so many minutes without a job a pod is removed; 0: never.';
comment on table public.worker_starts is 'Each pod, or serverless request, that the database asked RunPod for.';
comment on column public.worker_starts.id is 'Part of the pod''s name.';
comment on column public.worker_starts.target_worker is 'The kind of worker that jobs waited for.';
comment on column public.worker_starts.state is 'asking, requested (RunPod said yes), running (its worker is ready), stopping, ended.';
comment on column public.worker_starts.provider is 'pod or serverless; absent before RunPod said yes.';
comment on column public.worker_starts.pod_id is 'RunPod''s name for the pod or the request.';
comment on column public.worker_starts.attempts is 'How often RunPod was asked, to start it or to remove it.';
comment on column public.worker_starts.next_try_at is 'When RunPod is asked again, where it is to be.';
comment on column public.worker_starts.error is 'What went wrong last.';
comment on column public.worker_starts.created_at is 'When it was decided.';
comment on column public.worker_starts.requested_at is 'When RunPod said yes.';
comment on column public.worker_starts.running_at is 'When its worker was ready.';
comment on column public.worker_starts.ended_at is 'When it was over.';
comment on table private.fleet_calls is 'When the Edge Functions are called again at the earliest.';
comment on column private.fleet_calls.target_worker is 'The target.';
comment on column private.fleet_calls.next_at is 'Not before then.';
comment on function private.is_live(public.workers) is 'Whether a worker was heard of lately, and neither stopped nor failed.';
comment on function private.unready_starts(text) is 'Starts in a row after which no worker got ready, and when the next one may be asked for.';
comment on function private.start_pause(integer) is 'The pause after so many attempts to have RunPod start or remove something.';
comment on function private.fleet_decision(text) is 'What is to be started and stopped for a target now, and why no more.';
comment on function private.workers_reported() is 'Moves the start that a worker came from, by what the worker says.';
comment on function private.call_fleet(text) is 'Calls wake-worker or stop-idle where there is something to do.';
comment on function public.claim_starts(text) is 'Says what RunPod is to be asked for now. For the Edge Function wake-worker.';
comment on function public.report_start(uuid, text, text, text) is 'Says how asking for a start went. For the Edge Function wake-worker.';
comment on function public.claim_stops(text) is 'Says which pods RunPod is to remove now. For the Edge Function stop-idle.';
comment on function public.report_stop(uuid, text) is 'Says how removing a pod went. For the Edge Function stop-idle.';
