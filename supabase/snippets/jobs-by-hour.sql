-- How much was done in each hour of the last day, and how fast?
select date_trunc('hour', j.created_at) as hour, j.job_type, count(*) as asked, count(*) filter (where j.status = 'completed') as completed,
       count(*) filter (where j.status = 'failed') as failed, count(*) filter (where j.status = 'cancelled') as cancelled,
       percentile_cont(0.5) within group (order by extract(epoch from j.completed_at - j.created_at)) as seconds_to_the_end_p50,
       percentile_cont(0.95) within group (order by extract(epoch from j.completed_at - j.created_at)) as seconds_to_the_end_p95
  from public.jobs j
 where j.created_at > now() - interval '1 day'
 group by 1, 2
 order by 1 desc, 2;
