-- Why does the queue stand? One line for each target, with the likeliest reason.
with waiting as (
  select l.target_worker, count(*) filter (where l.state = 'waiting' and l.run_at <= now()) as waiting,
         count(*) filter (where l.state = 'waiting' and l.run_at > now()) as put_off,
         count(*) filter (where l.state = 'held') as running,
         count(*) filter (where l.state = 'held' and l.expires_at < now()) as lost,
         min(j.created_at) filter (where l.state = 'waiting') as oldest
    from private.leases l join public.jobs j on j.id = l.job_id where l.state <> 'ended' group by l.target_worker),
live as (
  select target_worker, count(*) filter (where state = 'ready') as ready, count(*) filter (where state = 'starting') as starting,
         count(*) as workers
    from public.fleet where is_live group by target_worker)
select w.target_worker, w.waiting, w.put_off, w.running, coalesce(l.ready, 0) as ready_workers, now() - w.oldest as oldest_has_waited,
       case when w.waiting = 0 and w.put_off > 0 then 'All that wait are put off after a failed attempt; see failures-today-by-code.'
            when w.waiting = 0 then 'Nothing waits.'
            when l.workers is null and h.runpod_error is not null then 'RunPod starts no pod: ' || h.runpod_error
            when l.workers is null and h.starting_workers > 0 then 'A pod was asked for, and is not ready yet; see workers-asked-for.'
            when l.workers is null then 'No worker of this target lives (' || coalesce(h.why_no_more, 'one is being asked for') || '); see dead-workers.'
            when l.ready = 0 and l.starting > 0 then 'A worker is loading its model.'
            when l.ready = 0 then 'Every worker is draining.'
            when w.lost > 0 then 'A worker stopped answering; its jobs come back with the next claim.'
            when w.running >= l.ready then 'Every worker is busy: more GPUs would help.'
            else 'Ready workers do not claim: run `worker.py doctor` there, and read their log for claim_failed.' end as why
  from waiting w left join live l using (target_worker) left join public.queue_health h using (target_worker)
 order by w.waiting desc, w.target_worker;
