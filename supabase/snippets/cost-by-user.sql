-- What did each user cost in the last 30 days? A cost of 1 is one 1024 x 1024 image at 25 steps.
select j.user_id, u.email, count(*) as jobs, count(*) filter (where j.status = 'completed') as completed,
       sum(j.batch_size) filter (where j.status = 'completed') as images, sum(l.cost)::numeric(12, 1) as cost,
       sum((j.metrics ->> 'generation_time')::numeric)::numeric(12, 1) as gpu_seconds
  from public.jobs j left join private.leases l on l.job_id = j.id left join auth.users u on u.id = j.user_id
 where j.created_at > now() - interval '30 days'
 group by j.user_id, u.email
 order by gpu_seconds desc nulls last limit 100;
