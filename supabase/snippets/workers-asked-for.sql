-- Which workers did the database ask RunPod for, and what became of them?
select created_at, target_worker, state, provider, pod_id, attempts, error, requested_at - created_at as granted_after,
       running_at - requested_at as ready_after, ended_at - running_at as ran_for, next_try_at
  from public.worker_starts
 order by created_at desc limit 100;
