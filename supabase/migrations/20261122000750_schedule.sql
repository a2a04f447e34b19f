-- What pg_cron does, where there is any, as in every Supabase project: workers are started and stopped, and the leases of dead workers end,
-- also when no worker lives to see to it. It needs pg_net, too, by which the database calls the Edge Functions.

-- The fleet is run every 10 seconds, but only while a worker may be started or is left to be stopped: each run costs a row of
-- cron.job_run_details, and most projects never start a worker. The lock makes a new start and the end of the schedule see each other.
create function private.fleet_is_needed() returns boolean
language sql stable set search_path = '' as $$
  select exists (select from public.fleet_settings f
                  where f.max_workers > 0
                     or exists (select from public.worker_starts s where s.target_worker = f.target_worker and s.state <> 'ended'))
$$;

create function private.schedule_fleet() returns trigger
language plpgsql security definer set search_path = '' as $$
begin
  if to_regprocedure('cron.schedule(text, text, text)') is not null then
    perform pg_advisory_xact_lock(hashtextextended('fleet schedule', 0));
    if private.fleet_is_needed() and not exists (select from cron.job j where j.jobname = 'call_fleet' and j.username = current_user) then
      perform cron.schedule('call_fleet', '10 seconds', 'select private.cron_fleet()');
    end if;
  end if;
  return null;
end $$;
create trigger fleet_settings_schedule after insert or update on public.fleet_settings
  for each statement execute function private.schedule_fleet();
create trigger worker_starts_schedule after insert on public.worker_starts
  for each statement execute function private.schedule_fleet();

-- The jobs of pg_cron, which runs them as the owner of these functions.
create function private.cron_fleet() returns void
language plpgsql volatile set search_path = '' as $$
begin
  perform private.call_fleet(f.target_worker) from public.fleet_settings f;
  if not private.fleet_is_needed() then
    perform pg_advisory_xact_lock(hashtextextended('fleet schedule', 0));
    perform cron.unschedule(j.jobid) from cron.job j
      where j.jobname = 'call_fleet' and j.username = current_user and not private.fleet_is_needed();
  end if;
end $$;

create function private.cron_reap() returns void
language sql volatile set search_path = '' as $$
  select public.reap_jobs(t.target_worker) from (select distinct l.target_worker from private.leases l where l.state = 'held') t
$$;

-- pg_cron keeps a row of every run for ever. A run that never began has no time: it is as old as the runs that it stands between.
create function private.cron_purge() returns void
language plpgsql volatile set search_path = '' as $$
begin
  delete from cron.job_run_details d
   where d.username = current_user
     and d.command in ('select private.cron_fleet()', 'select private.cron_reap()', 'select private.cron_purge()')
     and d.runid <= (select max(r.runid) from cron.job_run_details r where r.end_time < now() - interval '1 day');
end $$;

revoke execute on function
  private.fleet_is_needed(), private.schedule_fleet(), private.cron_fleet(), private.cron_reap(), private.cron_purge()
  from public, anon, authenticated, service_role;

do $$ begin
  if exists (select from pg_available_extensions where name = 'pg_net') then
    create extension if not exists pg_net with schema extensions;
  end if;
  if exists (select from pg_available_extensions where name = 'pg_cron') then
    create extension if not exists pg_cron;
    perform cron.schedule('reap_jobs', '* * * * *', 'select private.cron_reap()');
    perform cron.schedule('purge_cron_runs', '17 * * * *', 'select private.cron_purge()');
  end if;
end $$;

comment on function private.fleet_is_needed() is 'Whether a worker may be started, or is left to be stopped.';
comment on function private.schedule_fleet() is 'Has pg_cron run the fleet while that is needed.';
comment on function private.cron_fleet() is 'Job call_fleet of pg_cron: starts and stops what is due; ends its own schedule when nothing can be due.';
comment on function private.cron_reap() is 'Job reap_jobs of pg_cron: ends the leases of dead workers.';
comment on function private.cron_purge() is 'Job purge_cron_runs of pg_cron: deletes the details of our own jobs'' runs after a day.';
