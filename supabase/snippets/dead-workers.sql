-- Which workers are gone without having said so, or failed, and what did they hold?
select id, target_worker, host, gpu, state, now() - last_seen_at as silent_for, error, failed_at, version, running as holds
  from public.fleet
 where state = 'failed' or (state <> 'stopped' and not is_live)
 order by last_seen_at desc limit 100;
