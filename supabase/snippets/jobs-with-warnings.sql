-- Which jobs of the last 24 hours went otherwise than asked for, though they were completed?
select w.warning ->> 'code' as warning, count(*) as jobs, max(j.completed_at) as last_at, (array_agg(j.id order by j.completed_at desc))[1] as last_job
  from public.jobs j cross join lateral jsonb_array_elements(j.warnings) w (warning)
 where j.completed_at > now() - interval '1 day'
 group by 1
 order by 2 desc;
