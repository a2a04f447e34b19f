-- Who waits longest, and with how many jobs?
select j.user_id, u.email, count(*) as waiting, max(now() - j.created_at) as longest, sum(l.cost)::numeric(12, 1) as cost_waiting
  from private.leases l join public.jobs j on j.id = l.job_id left join auth.users u on u.id = j.user_id
 where l.state = 'waiting'
 group by j.user_id, u.email
 order by longest desc limit 50;
