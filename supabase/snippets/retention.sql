-- How long are finished jobs and their pictures kept, and how many are older than a month?
select r.days as kept_for_days, (select count(*) from public.jobs where completed_at < now() - interval '30 days') as older_than_30_days
  from public.retention r;
-- update public.retention set days = 30;   -- deletes what is older, for good, 200 jobs every 15 s; null keeps everything
