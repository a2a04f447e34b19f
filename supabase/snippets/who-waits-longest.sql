-- Who waits longest, and with how many jobs?
select j.user_id, u.email, count(*) as waiting, max(now() - j.created_at) as longest, sum(j.cost)::numeric(12, 1) as cost_waiting
  from public.jobs j left join auth.users u on u.id = j.user_id
 where j.status = 'queued'
 group by j.user_id, u.email
 order by longest desc limit 50;
