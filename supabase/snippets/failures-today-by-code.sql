-- What failed in the last 24 hours, by error code? Attempts that were made again are counted apart.
select e.error_code, count(*) filter (where e.status = 'failed') as failed, count(*) filter (where e.status = 'queued') as tried_again,
       count(distinct e.job_id) as jobs, max(e.created_at) as last_at, (array_agg(e.job_id order by e.id desc))[1] as last_job
  from public.job_events e
 where e.error_code is not null and e.status in ('failed', 'queued') and e.created_at > now() - interval '1 day'
 group by e.error_code
 order by failed desc, tried_again desc;
