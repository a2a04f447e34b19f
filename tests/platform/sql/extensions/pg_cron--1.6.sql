create schema cron;
create sequence cron.runid_seq;
create table cron.job (
  jobid bigserial primary key, schedule text not null, command text not null, database text not null default current_database(),
  username text not null, active boolean not null default true, jobname text, unique (jobname, username)
);
create table cron.job_run_details (
  jobid bigint, runid bigint primary key default nextval('cron.runid_seq'), job_pid integer, database text, username text, command text,
  status text, return_message text, start_time timestamptz, end_time timestamptz
);
alter table cron.job enable row level security;
alter table cron.job_run_details enable row level security;
create policy cron_job_policy on cron.job using (username = current_user);
create policy cron_job_run_details_policy on cron.job_run_details using (username = current_user);

-- The halves in C of the real one write past every grant, in the caller's name.
create function cron._schedule(p_name text, p_schedule text, p_command text, p_user text) returns bigint
language sql security definer set search_path = '' as $$
  insert into cron.job (jobname, schedule, command, username) values (p_name, p_schedule, p_command, p_user)
  on conflict (jobname, username) do update set schedule = excluded.schedule, command = excluded.command
  returning jobid
$$;
create function cron._unschedule(p_id bigint, p_user text) returns boolean language sql security definer set search_path = '' as $$
  delete from cron.job where jobid = p_id and username = p_user returning true
$$;
create function cron.schedule(job_name text, schedule text, command text) returns bigint language plpgsql as $$
begin
  if schedule !~ '^([1-5]?[0-9] seconds|(\S+ +){4}\S+)$' then
    raise exception 'invalid schedule: %', schedule;
  end if;
  return cron._schedule(job_name, schedule, command, current_user);
end $$;
create function cron.unschedule(job_id bigint) returns boolean language plpgsql as $$
begin
  if not coalesce(cron._unschedule(job_id, current_user), false) then
    raise exception 'could not find valid entry for job ''%''', job_id;
  end if;
  return true;
end $$;
grant usage on schema cron to postgres with grant option;
grant select on cron.job to public;
grant select, delete on cron.job_run_details to public;
grant select on cron.job to postgres with grant option;
grant all on cron.job_run_details to postgres with grant option;
